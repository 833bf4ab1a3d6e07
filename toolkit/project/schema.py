"""The files that people write, as pydantic models: `service.yml`, an environment's `toolkit.yml`.

Only `toolkit.project.load` uses these; everything else gets the immutable values of
`toolkit.project.model`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from toolkit.project.model import BASE_LAYER, MOST_MACHINES, STOP_S

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,30}$"
"""A role's name: an Ansible role, an inventory group and part of machine names at once."""

ENVIRONMENT_PATTERN = r"[a-z][a-z0-9_-]{0,30}"
"""An environment's name: part of host names, network namespaces and paths of sockets."""

PASSWORD = re.compile(r"(?i)://[^/\s]*:[^/\s]*@|https?://[^/\s]*@")
"""The user's part of a URL, with a password; over HTTP a token often stands alone there."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
AbsolutePath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]+$")]

HEALTH_PATTERN = r"^/[!%&*+,./0-9:;<=>?@A-Z^_`a-z|~\[\]-]*$"
"""What HAProxy reads as one plain word."""

_MOST_S = 7 * 86400
Seconds = Annotated[float, Field(ge=0, le=_MOST_S, allow_inf_nan=False)]
Deadline = Annotated[float, Field(gt=0, le=_MOST_S, allow_inf_nan=False)]

_NOT_FOR_VOLUMES = {"/dev", "/proc", "/run", "/sys", "/tmp"}  # noqa: S108 - no file of ours
"""systemd mounts these itself."""


_NOT_FOR_MACHINES = tuple(
    ipaddress.IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")
)
"""This host itself, loopback, and multicast with what is reserved (RFC 6890)."""


def _relative(path: str) -> str:
    if not path or path.startswith(("/", "-", ":")) or ".." in path.split("/"):
        raise ValueError("must be a path inside the source, and not begin with '-' or ':'")
    return path


def _absolute(path: str) -> str:
    if not path.startswith(("/", "~")):
        raise ValueError("must begin with / or ~: who runs the command may be anywhere")
    return path


def _without_password(url: str) -> str:
    if PASSWORD.search(url):
        raise ValueError(
            "must hold no password or token, which would be in argument lists, messages and files; "
            "git asks a credential helper or an SSH agent for it"
        )
    return url


def _loopback(listen: str) -> str:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be ADDRESS:PORT, as in 127.0.0.1:8443")
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ValueError("must be an IPv4 address and a port, as in 127.0.0.1:8443") from None
    if not is_loopback:
        raise ValueError("must be a loopback address: this provider publishes nowhere else")
    return listen


def _network(text: str) -> str:
    network = ipaddress.IPv4Network(text)
    if network.num_addresses < 16:
        raise ValueError("must have room for machines: /28 or larger")
    if any(network.overlaps(other) for other in _NOT_FOR_MACHINES):
        raise ValueError("must hold addresses that machines can have: 10.90.0.0/24, say")
    return text


def _own_variables(names: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in names:
        if name.startswith(("ansible_", "toolkit_")):
            raise ValueError(f"{name} is not yours: it says how the machine is reached")
    return names


def _layers(layers: tuple[LayerEntry, ...]) -> tuple[LayerEntry, ...]:
    names = [layer.role for layer in layers]
    for name in names:
        if name == BASE_LAYER or names.count(name) > 1:
            raise ValueError(f"{name} is the name of another layer of the image already")
    return layers


def _mount_points(volumes: dict[str, str]) -> dict[str, str]:
    points = [PurePosixPath(point) for point in volumes.values()]
    for path, point in zip(volumes.values(), points, strict=True):
        if str(point) != path or ".." in point.parts or path.startswith("//"):
            raise ValueError(f"{path} must be written without '..' and needless '/'")
        if f"/{point.parts[1]}" in _NOT_FOR_VOLUMES:
            raise ValueError(f"{path} is below one that systemd mounts itself")
        if sum(point.is_relative_to(other) for other in points) > 1:
            raise ValueError(f"{path} is the mount point of two, or below another one")
    return volumes


def _layer(value: Any) -> Any:
    return {"role": value} if isinstance(value, str) else value


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerEntry(Strict):
    """One Ansible role of an image; a plain string is its name."""

    role: Name
    source: tuple[Annotated[str, AfterValidator(_relative)], ...] = ()
    vars: Annotated[dict[str, JsonValue], AfterValidator(_own_variables)] = {}


class HooksEntry(Strict):
    """Playbooks, in `playbooks/`, that run once in each roll of the role."""

    before: Annotated[str, AfterValidator(_relative)] | None = None
    after: Annotated[str, AfterValidator(_relative)] | None = None


class RoleEntry(Strict):
    """One kind of machine."""

    layers: Annotated[
        tuple[Annotated[LayerEntry, BeforeValidator(_layer)], ...],
        Field(min_length=1),
        AfterValidator(_layers),
    ]
    port: int = Field(ge=1, le=65535)
    protocol: Literal["tcp", "http", "https"] = "http"
    health: Annotated[str, Field(pattern=HEALTH_PATTERN)] | None = None
    uses: tuple[Name, ...] = ()
    volumes: Annotated[dict[Name, AbsolutePath], AfterValidator(_mount_points)] = {}
    hooks: HooksEntry = HooksEntry()


class BaseEntry(Strict):
    """The bare operating system below every image."""

    suite: Annotated[str, Field(pattern=r"^[a-z]+$")] = "bookworm"
    mirror: Annotated[str, AfterValidator(_without_password)] | None = None
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$")], ...] = ()


class ServiceFile(Strict):
    """`service.yml`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    source: Annotated[str, Field(min_length=1), AfterValidator(_without_password)]
    base: BaseEntry = BaseEntry()
    roles: Annotated[dict[Name, RoleEntry], Field(min_length=1)]


class TimeoutsEntry(Strict):
    """Deadlines of a roll's steps, in seconds."""

    boot_s: Deadline = 60.0
    smoke_s: Deadline = 120.0
    healthy_s: Deadline = 30.0
    drain_s: Deadline = 30.0
    stop_s: Deadline = STOP_S


class CanaryEntry(Strict):
    """How many machines go first, with which share of the traffic, watched for how long."""

    machines: int = Field(1, ge=1)
    percent: int = Field(10, ge=1, le=100)
    watch_s: Seconds = 30.0


class SoakEntry(Strict):
    """How long new machines are watched after the switch, and what is tolerated."""

    seconds: Seconds = 0.0
    max_error_percent: float = Field(1.0, ge=0, le=100)
    min_requests: int = Field(50, ge=1)
    max_response_ratio: float = Field(0.0, ge=0, allow_inf_nan=False)


class DeploymentEntry(Strict):
    """A role in an environment."""

    machines: int = Field(ge=1, le=MOST_MACHINES)
    public: Annotated[str, AfterValidator(_loopback)] | None = None
    strategy: Literal["rolling", "blue-green", "canary", "stateful"] | None = None
    batch: int | None = Field(None, ge=1)
    canary: CanaryEntry = CanaryEntry()
    soak: SoakEntry = SoakEntry()
    keep_warm_s: Seconds = 0.0
    snapshot: bool = False
    timeouts: TimeoutsEntry = TimeoutsEntry()


class KeysEntry(Strict):
    """Where the vault passwords of the environment come from: one of these, or none."""

    directory: Annotated[str, AfterValidator(_absolute)] | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    keyring: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(one is not None for one in (self.directory, self.command, self.keyring)) > 1:
            raise ValueError("must have one of directory, command and keyring, not several")
        return self


class EnvironmentFile(Strict):
    """`inventories/<env>/toolkit.yml`, also the configuration of the inventory plugin."""

    plugin: Literal["toolkit"]
    network: Annotated[str, AfterValidator(_network)] = "10.90.0.0/24"
    keys: KeysEntry = KeysEntry()
    roles: Annotated[dict[Name, DeploymentEntry], Field(min_length=1)]


class SecretEntry(Strict):
    """One secret that a role needs."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,60}$")]
    kind: Literal["password", "tls", "token", "file"]
    description: str
    dns_names: tuple[str, ...] = ()
    rotate_days: int | None = Field(None, ge=1)
    renew: AbsolutePath | None = None


class SecretsFile(Strict):
    """`roles/<role>/meta/secrets.yml`."""

    secrets: tuple[SecretEntry, ...] = ()
