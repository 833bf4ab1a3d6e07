"""The errors that the toolkit raises on purpose, and the exit code that each one means.

    ToolkitError                1  the work failed
    ├── ConfigurationError      2  a file, an argument or the order of commands is wrong
    │   └── NotFound            2  a role, digest, release or environment does not exist
    ├── OutsideError            3  an outside system (a host tool, the kernel, a mirror) failed
    │   ├── DeadlineExceeded    3  an outside system did not answer in time
    │   │   └── Unhealthy       3  machines did not pass the balancer's check in time
    │   └── DidNotStart         3  a machine did not come up, or was gone before its first test
    ├── BakeFailed              1  a role did not apply, or its result could not be sealed
    ├── SmokeTestsFailed        4  new machines failed their tests; the pool never heard of them
    ├── RolledBack              5  the new version was taken out again
    ├── DoesBadly               1  new machines fail under traffic; it leads to a RolledBack
    ├── LeaseHeld               6  somebody else is changing the environment
    ├── UnfinishedRoll          1  a roll was cut short; it must be resumed or aborted first
    └── Interrupted           130  the operator pressed Ctrl-C

A module may refine one of these where its callers tell it from others; it keeps the code. A message
names its subject; the hint says what to do next. Anything else that reaches the
command line is a bug, exit code 70.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class ToolkitError(Exception):
    """The work failed for a reason that the operator can act on."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigurationError(ToolkitError):
    """Something that people wrote or asked for is wrong; nothing was changed."""

    exit_code = 2


class NotFound(ConfigurationError):
    """A named thing does not exist."""


class OutsideError(ToolkitError):
    """A tool or service outside the toolkit failed."""

    exit_code = 3


class DeadlineExceeded(OutsideError):
    """Something outside did not happen in time."""


class Unhealthy(DeadlineExceeded):
    """Machines did not pass the balancer's check in time.

    Attributes:
        addresses: Theirs.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, addresses: Collection[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.addresses = frozenset(addresses)


class DidNotStart(OutsideError):
    """A machine did not come up, or was gone before its first test."""


class BakeFailed(ToolkitError):
    """An image could not be made; the store is as it was."""


class SmokeTestsFailed(ToolkitError):
    """New machines failed their smoke tests and were discarded; nothing was registered."""

    exit_code = 4


class RolledBack(ToolkitError):
    """A roll was undone after its machines had been registered."""

    exit_code = 5


class DoesBadly(ToolkitError):
    """New machines fail while they are watched under traffic: keeping them is no capacity."""


class UnfinishedRoll(ToolkitError):
    """A roll was cut short; the operator chooses between going on and going back."""


class Interrupted(ToolkitError):
    """The operator asked to stop."""

    exit_code = EXIT_INTERRUPTED


class LeaseHeld(ToolkitError):
    """Another process holds the right to change this environment."""

    exit_code = 6
