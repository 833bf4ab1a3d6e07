"""The configuration of one environment's HAProxy, from values to text. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import jinja2

from toolkit.errors import ConfigurationError

FREE_ADDRESS: Final = "127.0.0.1"
FREE_PORT: Final = 1
"""Where the slots point that no machine has; nothing is ever sent there."""

CHECK_RISE: Final = 2
"""Checks in a row that must pass. At least two: when a slot is given a new address, the check of
the old address that is still on its way counts as one (`haproxy_pool` builds on this)."""

CIPHERS: Final = ":".join(
    f"ECDHE-{authentication}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for authentication in ("ECDSA", "RSA")
)
"""For TLS 1.2: forward secrecy and authenticated encryption only."""

CIPHERSUITES: Final = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""For TLS 1.3."""

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})(:\d{1,5})?")
_WORD = re.compile(r"[!-~]+")
_UNSAFE = frozenset("\"'\\#$(){}")
_PUBLIC_BIND = re.compile(r"^\s*bind\s+(\S+:\d+)\s+namespace\s", re.MULTILINE)
_NAMESPACE = re.compile(r"^\s*setenv\s+TOOLKIT_NAMESPACE\s+(\S+)$", re.MULTILINE)


class Protocol(StrEnum):
    """How a pool's machines are spoken to."""

    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"


@dataclass(frozen=True, slots=True)
class PublicListen:
    """Where clients outside the environment connect.

    Attributes:
        address: IP address and port on the host, such as `127.0.0.1:8443`.
        certificate: PEM file of certificate chain and key; None listens without TLS.
    """

    address: str
    certificate: Path | None


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How the machines of an `https` pool prove who they are.

    Attributes:
        authority: PEM file of the certificate authority.
        verify_name: Host name that the certificate must carry; sent as SNI.
    """

    authority: Path
    verify_name: str


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """The part of one role.

    Attributes:
        role: Its backend is called `pool_<role>`.
        slots: Most machines at once; a roll needs room for old and new.
        machine_port: Where every machine listens.
        protocol: How machines are spoken to; clients of an `https` pool's internal frontend
            speak plain HTTP.
        health_path: Answers 2xx on a healthy machine; unused for `tcp`.
        health_host: Host header of the health check.
        internal: IP address and port inside the environment's namespace, for other machines.
        public: For clients outside; on the host's loopback only.
        tls: Present exactly when the protocol is `https`.
    """

    role: str
    slots: int
    machine_port: int
    protocol: Protocol
    health_path: str = "/"
    health_host: str = "localhost"
    internal: str | None = None
    public: PublicListen | None = None
    tls: UpstreamTls | None = None

    @property
    def mode(self) -> str:
        """HAProxy's word for what it understands of the traffic."""
        return "tcp" if self.protocol is Protocol.TCP else "http"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds.

    `http_keep_alive_s` must stay below the idle time after which a machine closes a connection.
    """

    connect_s: float = 3.0
    queue_s: float = 5.0
    client_s: float = 60.0
    server_s: float = 60.0
    http_request_s: float = 10.0
    http_keep_alive_s: float = 60.0
    tunnel_s: float = 3600.0
    check_s: float = 2.0
    hard_stop_s: float = 60.0


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How often a slot is checked, in HAProxy's words.

    The interval is also the longest that a check may take to connect, TLS handshake included, and
    the longest that a slot which has just been given a machine waits for its first check. A
    quarter of a second made rolls faster and took machines out that were well: with four processes
    to a processor, handshakes took longer four times in a row, and a pool without a healthy
    machine answers 503 (measured, `make bench-roll ARGS="--spinners 8"`). A machine that refuses
    connections costs nothing while it is not yet out: its requests go elsewhere. One that hangs is
    out after six seconds.
    """

    interval_ms: int = 1000
    fast_interval_ms: int = 100
    rise: int = CHECK_RISE
    fall: int = 6


@dataclass(frozen=True, slots=True)
class BalancerConfig:
    """Everything that HAProxy needs to know of one environment.

    Attributes:
        namespace: The environment's network namespace, in which HAProxy runs.
        runtime_directory: Holds the configuration, sockets and state of this HAProxy.
        pools: One for each role, in the order of the file.
        max_connections: Of all frontends together.
        timeouts: Of all frontends and backends.
    """

    namespace: str
    runtime_directory: Path
    pools: tuple[PoolConfig, ...]
    max_connections: int = 4096
    timeouts: Timeouts = Timeouts()

    @property
    def admin_socket(self) -> Path:
        """Where the worker takes run-time commands."""
        return admin_socket(self.runtime_directory)

    @property
    def state_file(self) -> Path:
        """From where a new worker learns addresses, states and weights."""
        return state_file(self.runtime_directory)


def admin_socket(runtime_directory: Path) -> Path:
    """Return where the worker takes run-time commands."""
    return runtime_directory / "admin.sock"


def state_file(runtime_directory: Path) -> Path:
    """Return from where a new worker learns addresses, states and weights."""
    return runtime_directory / "servers.state"


def host_namespace(namespace: str) -> str:
    """Return by what name the HAProxy of an environment finds the host's own namespace.

    No environment and no machine can have a name with `@`.
    """
    return f"{namespace}@host"


def backend_name(role: str) -> str:
    """Return the name of a role's backend."""
    return f"pool_{role}"


def render(config: BalancerConfig) -> str:
    """Return the text of the configuration file.

    Raises:
        ConfigurationError: A value cannot stand in the file.
    """
    for pool in config.pools:
        _check(pool)
    roles = [pool.role for pool in config.pools]
    if len(set(roles)) != len(roles):
        raise ConfigurationError("two pools have the same role")
    return _ENVIRONMENT.get_template("haproxy.cfg.j2").render(
        config=config,
        check=HealthCheck(),
        ciphers=CIPHERS,
        ciphersuites=CIPHERSUITES,
        host_namespace=host_namespace(config.namespace),
        free_address=FREE_ADDRESS,
        free_port=FREE_PORT,
    )


def public_addresses(text: str) -> frozenset[str]:
    """Return the host's own `address:port` pairs that a configuration file listens on."""
    return frozenset(_PUBLIC_BIND.findall(text))


def sections(text: str) -> dict[str, str]:
    """Return the sections of a configuration file, by the line that begins each."""
    found = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0].strip(): section.rstrip() for section in found}


def internal_address(text: str, role: str) -> str | None:
    """Return where other machines reach a role, by a configuration file; None if nowhere."""
    section = sections(text).get(f"frontend internal_{role}", "")
    found = re.search(r"^ *bind (\S+)$", section, flags=re.MULTILINE)
    return found[1] if found else None


def namespace_of(text: str) -> str:
    """Return the environment's namespace, in which HAProxy is to run with a configuration file.

    Raises:
        ConfigurationError: It is not a file that `render` has made.
    """
    found = _NAMESPACE.search(text)
    if found is None:
        raise ConfigurationError("the balancer's configuration names no network namespace")
    return found[1]


def _check(pool: PoolConfig) -> None:
    if not _ROLE.fullmatch(pool.role):
        raise ConfigurationError(f"pool {pool.role!r}: the role's name cannot name a pool")
    if pool.slots < 1:
        raise ConfigurationError(f"pool {pool.role}: needs at least one slot")
    if not 1 <= pool.machine_port <= 65535:
        raise ConfigurationError(f"pool {pool.role}: {pool.machine_port} is not a port")
    if (pool.protocol is Protocol.HTTPS) != (pool.tls is not None):
        raise ConfigurationError(
            f"pool {pool.role}: an https pool needs a certificate authority, and only that"
        )
    if pool.mode == "http" and not pool.health_path.startswith("/"):
        raise ConfigurationError(f"pool {pool.role}: the health path must begin with '/'")
    if pool.internal is not None:
        _parse_listen(pool, pool.internal)
    if pool.public is not None and not _parse_listen(pool, pool.public.address).is_loopback:
        raise ConfigurationError(
            f"pool {pool.role}: {pool.public.address} is not on the host's loopback",
            hint="listen on 127.0.0.1",
        )
    hosts = [pool.health_host, *([pool.tls.verify_name] if pool.tls else [])]
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigurationError(f"pool {pool.role}: {host!r} is not a host name")


def _parse_listen(pool: PoolConfig, listen: str) -> ipaddress.IPv4Address:
    address, _, port = listen.rpartition(":")
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        parsed = None
    if parsed is None or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(
            f"pool {pool.role}: {listen!r} is not an IPv4 address and a port",
            hint="write it like 127.0.0.1:8443",
        )
    return parsed


def _word(value: str) -> str:
    """Return `value` if HAProxy reads it as one plain word."""
    if not _WORD.fullmatch(value) or not _UNSAFE.isdisjoint(value):
        raise ConfigurationError(f"{value!r} cannot stand in the balancer's configuration")
    return value


def _quoted(path: Path) -> str:
    r"""Return a path as HAProxy reads it: in double quotes, where `\`, `"`, `$` are special."""
    text = str(path)
    if not text.isprintable():
        raise ConfigurationError(f"path {text!r} has unprintable characters")
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - the result is no HTML; `word` and `quoted` guard it
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(word=_word, quoted=_quoted, ms=_milliseconds)
    return environment


_ENVIRONMENT = _environment()
