"""What a load run is asked to do."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from toolkit.errors import ConfigurationError

CLASSES = ("http1-new", "http1-kept", "http2-new", "http2-kept")
"""The protocol, and whether each request opens a connection of its own or shares kept ones."""

EVEN_MIX = ",".join(f"{name}=1" for name in CLASSES)
"""As `parse_mix` takes it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go.

    Attributes:
        is_tls: Whether the scheme is https.
        host: A loopback address.
        port: TCP port.
        server_name: What the certificate must name.
        authority: Value of `Host` and `:authority`.
    """

    is_tls: bool
    host: str
    port: int
    server_name: str
    authority: str


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """A load run, bounded in time and, if wanted, in count.

    Attributes:
        url: Scheme, loopback address and port, such as `https://127.0.0.1:8443/`.
        cafile: PEM file with the authorities to trust; needed for https.
        server_name: Name to ask for and to verify; the address of `url` by default.
        paths: Asked for in turn by each class.
        rate: Requests a second over all classes, whatever becomes of earlier ones.
        requests: Stop after so many; None for no bound but time.
        max_seconds: Stop sending after so many seconds.
        until_file: Stop sending once this file exists.
        by_header: Count responses by the value of this header.
        mix: Weight of each class; a class left out gets nothing.
        timeout_s: For one request, from its real start to the end of its body.
        grace_s: For outstanding requests after a signal.
        kept_connections: How many each kept class holds open and uses in turn. More are opened
            when all are busy.
        idle_s: A kept connection unused for longer is closed, as every client does, so that the
            server's own limit is not raced.
        late_ms: Requests started later than this behind schedule are counted as late.
    """

    url: str
    cafile: Path | None = None
    server_name: str | None = None
    paths: tuple[str, ...] = ("/",)
    rate: float = 320.0
    requests: int | None = None
    max_seconds: float = 60.0
    until_file: Path | None = None
    by_header: str | None = None
    mix: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 1.0))
    timeout_s: float = 10.0
    grace_s: float = 3.0
    kept_connections: int = 8
    idle_s: float = 4.0
    late_ms: float = 100.0

    def __post_init__(self) -> None:
        endpoint = self.endpoint
        if endpoint.is_tls and self.cafile is None:
            raise ConfigurationError("https needs a CA file")
        if self.cafile is not None and not self.cafile.is_file():
            raise ConfigurationError(f"{self.cafile}: no such CA file")
        for name in ("rate", "max_seconds", "timeout_s", "kept_connections", "idle_s", "late_ms"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}: must be a number greater than zero")
        if self.grace_s < 0:
            raise ConfigurationError("grace_s: must not be negative")
        if self.requests is not None and self.requests < 1:
            raise ConfigurationError("requests: must be at least one")
        if not self.paths or not all(path.startswith("/") for path in self.paths):
            raise ConfigurationError("paths: each must begin with /")
        unknown = sorted(set(self.mix) - set(CLASSES))
        if unknown:
            raise ConfigurationError(
                f"mix: {unknown[0]}: no such class", hint=f"classes: {', '.join(CLASSES)}"
            )
        if min(self.mix.values(), default=0) < 0 or not sum(self.mix.values()) > 0:
            raise ConfigurationError("mix: weights must not be negative, and not all zero")

    @property
    def endpoint(self) -> Endpoint:
        """The parsed `url`.

        Raises:
            ConfigurationError: It is malformed, or leads anywhere but to this host.
        """
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{self.url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"{self.url}: must be like https://127.0.0.1:8443/")
        if parts.path not in ("", "/") or parts.query or parts.username:
            raise ConfigurationError(f"{self.url}: must end after the port; use paths for the rest")
        try:
            is_loopback = ipaddress.ip_address(parts.hostname).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise ConfigurationError(
                f"{self.url}: only a loopback address may be put under load",
                hint="give the address in the url and the name with --server-name",
            )
        default_port = 443 if parts.scheme == "https" else 80
        port = port if port is not None else default_port
        name = self.server_name or parts.hostname
        shown = f"[{name}]" if ":" in name else name
        return Endpoint(
            is_tls=parts.scheme == "https",
            host=parts.hostname,
            port=port,
            server_name=name,
            authority=shown if port == default_port else f"{shown}:{port}",
        )

    def arguments(self) -> list[str]:
        """Return the same settings as arguments of `python -m bench.load`, from any directory."""
        words = ["--url", self.url, "--rate", repr(self.rate)]
        for path in self.paths:
            words += ["--path", path]
        words += ["--mix", ",".join(f"{name}={weight!r}" for name, weight in self.mix.items())]
        optional = {
            "--cafile": self.cafile and self.cafile.absolute(),
            "--server-name": self.server_name,
            "--requests": self.requests,
            "--until-file": self.until_file and self.until_file.absolute(),
            "--by-header": self.by_header,
        }
        for option, value in optional.items():
            if value is not None:
                words += [option, str(value)]
        for option, number in {
            "--max-seconds": self.max_seconds,
            "--timeout-seconds": self.timeout_s,
            "--grace-seconds": self.grace_s,
            "--kept-connections": self.kept_connections,
            "--idle-seconds": self.idle_s,
            "--late-ms": self.late_ms,
        }.items():
            words += [option, repr(number)]
        return words


def parse_mix(text: str) -> dict[str, float]:
    """Parse `http1-new=1,http2-kept=3`.

    Raises:
        ConfigurationError: A part is not NAME=NUMBER.
    """
    mix = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            mix[name.strip()] = float(weight)
        except ValueError:
            raise ConfigurationError(f"mix: {part!r}: must be CLASS=WEIGHT") from None
    return mix
