"""Tell a process from a later one that got the same number."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit.clock import host_boot

START_TIME_FIELD = 19
"""Index of `starttime` in `/proc/PID/stat` after the command's closing bracket; proc(5)."""

POLL_S = 0.005
END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process by number and start.

    Attributes:
        pid: Its number.
        started: Clock ticks between the host's start and its own.
        boot: Identity of the host's start.
    """

    pid: int
    started: int
    boot: str

    def __str__(self) -> str:
        return f"{self.pid} {self.started} {self.boot}"

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return identify(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.is_alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a running process, or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return ProcessId(pid, int(fields[START_TIME_FIELD]), host_boot())


def write_pid_file(path: Path, process: ProcessId) -> None:
    """Name a process in a file, so that a reader never finds half of it.

    The one who starts a process and the process itself may both write; they write the same.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(str(process))
    temporary.replace(path)


def read_pid_file(path: Path) -> ProcessId | None:
    """Return the process that a pid file names, or None without a usable file."""
    try:
        return parse_process(path.read_text(errors="replace"))
    except OSError:
        return None


def parse_process(text: str) -> ProcessId | None:
    """Return the process that `str(ProcessId)` described, or None."""
    try:
        pid, started, boot = text.split()
        return ProcessId(int(pid), int(started), boot)
    except ValueError:
        return None


def marked(variable: str, mark: str) -> list[ProcessId]:
    """Return the running processes in whose environment a variable contains a mark.

    Whoever a process has lost its parent to, and whatever session or control group it has gone
    to, it still has the environment that it was started with.

    Args:
        variable: Its name.
        mark: Part of its value.
    """
    beginning, found = f"{variable}=".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if not any(one.startswith(beginning) and mark.encode() in one for one in environment):
            continue
        process = identify(int(entry.name))
        if process and process.pid != os.getpid():
            found.append(process)
    return found


def end_marked(variable: str, mark: str) -> list[ProcessId]:
    """Kill marked processes until none is left, also those that they start meanwhile.

    Args:
        variable: As for `marked`.
        mark: As for `marked`.

    Returns:
        Those that the kernel had not let go of after `END_TIMEOUT_S`; usually none.
    """
    deadline = time.monotonic() + END_TIMEOUT_S
    while found := marked(variable, mark):
        if time.monotonic() > deadline:
            return found
        for process in found:
            process.send(signal.SIGKILL)
        time.sleep(POLL_S)
    return []


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
