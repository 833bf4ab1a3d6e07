"""Times of this host that nobody can set, beside the wall clock, which anybody can."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def host_uptime() -> float:
    """Return the seconds since this host's start, which nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_boot() -> str:
    """Return the identity of this host's start; another start, or another host, has another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class Instant:
    """When something happened, so that another process can tell how long ago that is.

    Attributes:
        wall: Seconds since the epoch, as the wall clock had it.
        uptime: Seconds since the host's start.
        boot: Which start that is.
    """

    wall: float
    uptime: float
    boot: str

    @classmethod
    def now(cls) -> Instant:
        """Return the present."""
        return cls(time.time(), host_uptime(), host_boot())

    def since(self, earlier: Instant) -> float:
        """Return the seconds that have passed, never less than none.

        By the wall clock only if the host was started anew in between, or was another one.
        """
        if self.boot == earlier.boot:
            return max(self.uptime - earlier.uptime, 0.0)
        return max(self.wall - earlier.wall, 0.0)

    def as_data(self) -> dict[str, Any]:
        """Return it for the ledger."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Instant:
        """Return what `as_data` described."""
        return cls(**data)
