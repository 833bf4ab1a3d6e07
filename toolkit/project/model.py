"""A project, as the rest of the toolkit sees it: immutable values without any I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MOST_MACHINES: Final = 50
"""That a role may have in an environment."""

BASE_LAYER: Final = "os"
"""The lowest layer of every image, which is no Ansible role."""

CONFIG_CREDENTIAL: Final = "config"
"""The credential that holds a machine's settings."""

EDGE_CERTIFICATE: Final = "edge_tls"
"""The certificate that an environment's balancer serves."""

STOP_S: Final = 20.0
"""How long a machine may take to end, unless its role says otherwise."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One Ansible role of an image.

    Attributes:
        role: Name of the Ansible role.
        source_paths: Paths of the service's source that the role reads; empty for none.
        variables: Extra variables for the role.
    """

    role: str
    source_paths: tuple[str, ...]
    variables: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """A secret that a role declares.

    Attributes:
        name: Roles that declare the same name share the value.
        kind: `password`, `tls`, `token` or `file`.
        description: For people.
        dns_names: For `tls`; `{environment}` is filled in.
        rotate_days: Age after which it is overdue.
        renew: Program of the role's machines that changes the value while the service runs.
    """

    name: str
    kind: str
    description: str
    dns_names: tuple[str, ...]
    rotate_days: int | None
    renew: str | None = None


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One kind of machine, the same in every environment.

    Attributes:
        name: Ansible role, inventory group and image name.
        layers: From just above the operating system upwards.
        port: Where its service listens.
        protocol: How the balancer talks to it: `tcp`, `http` or `https`.
        health: Path of the balancer's own check; None for a connection check.
        uses: Roles whose pools it calls.
        volumes: Volume name to mount point.
        before_hook: Playbook that runs before a roll's first new machine gets traffic, or None.
        after_hook: Playbook that runs after a roll's switch, or None.
    """

    name: str
    layers: tuple[LayerSpec, ...]
    port: int
    protocol: str
    health: str | None
    uses: tuple[str, ...]
    volumes: Mapping[str, str]
    before_hook: str | None
    after_hook: str | None


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The bare operating system.

    Attributes:
        suite: Debian release.
        mirror: Package mirror; None for the tool's own default.
        packages: Debian packages beyond those the toolkit needs.
    """

    suite: str
    mirror: str | None
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Project:
    """What a service's operators keep under version control.

    Attributes:
        root: Directory of `service.yml`.
        name: Of the service.
        source: Absolute path or git URL of the service's source.
        base: The operating system of all images.
        roles: By name, each role after those that it uses.
    """

    root: Path
    name: str
    source: str
    base: BaseSpec
    roles: Mapping[str, RoleSpec]

    def role_directory(self, role: str) -> Path:
        """Return where the Ansible role lives."""
        return self.root / "roles" / role


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of a roll's steps, in seconds."""

    boot_s: float
    smoke_s: float
    healthy_s: float
    drain_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Canary:
    """How a few new machines are tried before the others.

    Attributes:
        machines: How many go first.
        percent: Weight of each against an old machine.
        watch_s: How long they are watched.
    """

    machines: int
    percent: int
    watch_s: float


@dataclass(frozen=True, slots=True)
class Soak:
    """How new machines are watched after the switch.

    Attributes:
        seconds: How long; 0 for not at all.
        max_error_percent: Share of failed requests that is tolerated, here and for canaries.
        min_requests: Requests before a share means anything.
        max_response_ratio: Response time against the old machines'; 0 for any.
    """

    seconds: float
    max_error_percent: float
    min_requests: int
    max_response_ratio: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """A role in an environment.

    Attributes:
        role: Name.
        machines: Configured capacity.
        public: `ADDRESS:PORT` on which the balancer serves it; None for internal roles.
        strategy: `rolling`, `blue-green`, `canary` or `stateful`.
        batch: Machines replaced at a time.
        canary: How a canary is tried.
        soak: How new machines are watched after the switch.
        keep_warm_s: How long old machines are kept for a quick way back.
        has_snapshot: Whether a volume is copied before its machine is replaced.
        timeouts: Deadlines of a roll.
    """

    role: str
    machines: int
    public: str | None
    strategy: str
    batch: int
    canary: Canary
    soak: Soak
    keep_warm_s: float
    has_snapshot: bool
    timeouts: Timeouts


@dataclass(frozen=True, slots=True)
class KeySetting:
    """Where vault passwords come from; without any of these, from the state directory.

    Attributes:
        directory: Holds a file for each environment and role.
        command: Prints one.
        keyring: First part of the names of keys in the kernel's keyring.
    """

    directory: Path | None
    command: tuple[str, ...] | None
    keyring: str | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """One inventory.

    Attributes:
        name: Name of its directory.
        directory: `inventories/<name>`.
        network: Addresses of its machines, inside its own network namespace.
        keys: Where its vault passwords come from.
        deployments: Role name to deployment, each role after those that it uses.
    """

    name: str
    directory: Path
    network: ipaddress.IPv4Network
    keys: KeySetting
    deployments: Mapping[str, Deployment]

    def stop_s(self, *roles: str) -> float:
        """Return how long machines of these roles, or else of all, may take to end, in seconds.

        Machines of a role that is gone from the environment may take what others do by default.
        """
        found = (self.deployments.get(role) for role in roles or self.deployments)
        return max((one.timeouts.stop_s for one in found if one), default=STOP_S)
