"""The words of the toolkit as immutable values. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Layer:
    """What one Ansible role (or the bare operating system) added.

    Attributes:
        name: `os` for the operating system, else the Ansible role's name.
        digest: Of the sealed file's bytes.
        size_bytes: Of the sealed file.
    """

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Image:
    """The sealed result for one role.

    Attributes:
        digest: SHA-256 of the canonical manifest.
        role: What kind of machine it makes.
        layers: From the operating system upwards.
        parent: Digest of the image of this role that was baked before, if there was one.
        commit: The last commit that changed what the image takes from the service's source;
            None for an image that takes nothing from it.
        is_dirty: Whether uncommitted changes went into it.
        created: Time of the bake, seconds since the epoch.
    """

    digest: str
    role: str
    layers: tuple[Layer, ...]
    parent: str | None
    commit: str | None
    is_dirty: bool
    created: float

    @property
    def size_bytes(self) -> int:
        """Sum of the layers' sizes."""
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Release:
    """One image per role from one commit: what is rolled and promoted.

    Attributes:
        id: `r-` and 12 hexadecimal digits of the digest of its content.
        service: Name of the service.
        commit: Of the service's source.
        is_dirty: Whether uncommitted changes went into it.
        images: Role name to image digest.
        created: Time of the first bake that gave it, seconds since the epoch.
    """

    id: str
    service: str
    commit: str
    is_dirty: bool
    images: Mapping[str, str]
    created: float


def release_of(digest: str, releases: Iterable[Release]) -> Release | None:
    """Return the release that an image was baked for: of all that hold it, the earliest.

    Later releases hold it because nothing that it is made from had changed.
    """
    holders = [one for one in releases if digest in one.images.values()]
    return min(holders, key=lambda one: one.created, default=None)


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that only granted machines may know; it never shows in a representation."""

    name: str
    version: int
    _value: bytes = field(repr=False)

    def reveal(self) -> bytes:
        """Return the value. Call it only where the value is handed over."""
        return self._value


class MachineState(StrEnum):
    """What a provider sees of a machine."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Machine:
    """One running instance of an image, as its provider observes it.

    Attributes:
        name: Unique within the provider; opaque to everybody else.
        environment: Where it belongs.
        role: Its kind.
        image: Digest of its image.
        address: IP address within its environment.
        state: As observed now.
        since: When it was launched, seconds since the epoch.
    """

    name: str
    environment: str
    role: str
    image: str
    address: str
    state: MachineState
    since: float


def running_names(machines: Iterable[Machine]) -> set[str]:
    """Return the names of the machines that are starting or run."""
    return {one.name for one in machines if one.state is not MachineState.STOPPED}


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What a provider needs to start one machine.

    Attributes:
        name: The machine's name; launching a name twice makes one machine.
        environment: Where it belongs.
        role: Its kind.
        image: Digest of its image.
        address: IP address to give it, or empty where the provider chooses.
        credentials: What the machine may know: credential name to value.
        volumes: Volume name to mount point inside the machine; one machine owns a volume.
    """

    name: str
    environment: str
    role: str
    image: str
    address: str
    credentials: tuple[Secret, ...]
    volumes: Mapping[str, str]


class TargetState(StrEnum):
    """What a balancer does with a target."""

    READY = "ready"
    """Gets new requests while its health check passes."""
    DRAINING = "draining"
    """Gets no new requests; is health-checked; may still be answering old ones."""
    MAINTENANCE = "maintenance"
    """Gets nothing and is not checked. Only somebody's hand puts a target there."""


@dataclass(frozen=True, slots=True)
class Target:
    """One place of a pool that is in use, as the balancer itself reports it.

    Attributes:
        slot: The balancer's own name of the place; opaque.
        address: IP address of the machine.
        state: What the balancer was told.
        is_healthy: Whether the balancer's own check passes now.
        sessions: Requests or connections that it carries or queues for the target.
        percent: Its share of new requests, of that which others get.
    """

    slot: str
    address: str
    state: TargetState
    is_healthy: bool
    sessions: int
    percent: float = 100.0

    @property
    def is_serving(self) -> bool:
        """Whether new requests reach it."""
        return self.state is TargetState.READY and self.is_healthy


def held_addresses(targets: Iterable[Target]) -> set[str]:
    """Return the addresses that an operator has put into maintenance."""
    return {one.address for one in targets if one.state is TargetState.MAINTENANCE}


def ready_addresses(targets: Iterable[Target]) -> set[str]:
    """Return the addresses that get new requests while their check passes."""
    return {one.address for one in targets if one.state is TargetState.READY}


def serving_addresses(targets: Iterable[Target]) -> set[str]:
    """Return the addresses that get new requests."""
    return {one.address for one in targets if one.is_serving}


def withdrawn_addresses(targets: Iterable[Target]) -> set[str]:
    """Return the addresses that were told to take no new requests: draining or in maintenance."""
    return {one.address for one in targets if one.state is not TargetState.READY}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume, as it was before a roll.

    Attributes:
        volume: The volume's name, `ROLE-VOLUME`.
        roll: Name of the roll.
    """

    volume: str
    roll: str

    @property
    def name(self) -> str:
        """Its own name, under which it is kept."""
        return f"{self.volume}-{self.roll}"


@dataclass(frozen=True, slots=True)
class Counters:
    """What a balancer counted for one target since it got its place.

    Attributes:
        requests: Requests (or connections) sent to it.
        errors: Of these: 5xx answers, and connections that were refused or broke.
        response_ms: Recent average time until it answered.
    """

    requests: int
    errors: int
    response_ms: float


@dataclass(frozen=True, slots=True)
class SmokeCheck:
    """The outcome of one smoke test on one machine.

    Attributes:
        machine: Machine name.
        name: Name of the test.
        is_passed: Whether it passed.
        seconds: How long it took.
        message: Why it failed, else empty.
    """

    machine: str
    name: str
    is_passed: bool
    seconds: float
    message: str
