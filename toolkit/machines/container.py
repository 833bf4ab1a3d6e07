"""One systemd-nspawn container: start it, look at it, end it.

Both machines and build machines are containers; what differs is in the order.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit import shell
from toolkit.errors import DeadlineExceeded, OutsideError
from toolkit.machines import cgroups, enter
from toolkit.machines.processes import ProcessId, children, identify, read_pid_file, write_pid_file
from toolkit.model import Secret
from toolkit.state import make_private

RAM_MIB = 2048
"""Upper bound of what a machine may write to its root before that is full."""

NSPAWN = (
    "systemd-nspawn",
    "--quiet",
    "--boot",
    "--register=no",
    "--keep-unit",
    "--settings=no",
    "--link-journal=no",
    "--resolv-conf=off",
    "--timezone=off",
    "--console=pipe",
    "--notify-ready=yes",
)

CONSOLE_BYTES = 256 * 1024
"""Kept of what the console prints, from its beginning; the kernel refuses what comes after it."""

CONSOLE_TAIL_BYTES = 2000
POLL_S = 0.01

_HINT = "'toolkit doctor' says whether the host has room for more machines"


@dataclass(frozen=True, slots=True)
class ContainerOrder:
    """How to start a container.

    Attributes:
        name: Host name inside.
        layers: Sealed files, bottom first.
        mountpoint: Existing directory that its private mounts cover.
        cgroup: Control group of its own.
        arguments: Further arguments of systemd-nspawn.
        credentials: Delivered through memory; never on a disk or in an argument.
        upper: Directory that takes what it writes; None for RAM.
        work: Scratch directory on the file system of `upper`.
    """

    name: str
    layers: Sequence[Path]
    mountpoint: Path
    cgroup: str
    arguments: Sequence[str] = ()
    credentials: Sequence[Secret] = ()
    upper: Path | None = None
    work: Path | None = None


class Container:
    """A container that was started, perhaps by another process.

    Args:
        cgroup: Its control group.
        files: Path without suffix; `.pid` and `.up` are its runtime files.
    """

    def __init__(self, *, cgroup: str, files: Path) -> None:
        self._cgroup = cgroup
        self._files = files
        self._notify: socket.socket | None = None
        self._console: int | None = None

    @property
    def pid_file(self) -> Path:
        """Names the supervising process."""
        return self._files.with_name(self._files.name + ".pid")

    @property
    def notify_socket(self) -> Path:
        """Where its init reports that it is up; a socket's path has at most 107 bytes."""
        return self._files.with_name(self._files.name + ".up")

    @property
    def console(self) -> bytes:
        """What the console has printed; nothing once another process's container has ended."""
        process = self.process
        try:
            if self._console is not None:
                content = os.pread(self._console, CONSOLE_BYTES, 0)
            else:
                content = Path(f"/proc/{process.pid}/fd/1").read_bytes() if process else b""
        except OSError:
            content = b""
        return content.rstrip(b"\0")

    @property
    def process(self) -> ProcessId | None:
        """The supervising systemd-nspawn, if it runs."""
        process = read_pid_file(self.pid_file)
        return process if process and process.is_alive else None

    @property
    def init_pid(self) -> int | None:
        """Process id, on the host, of the container's init."""
        process = self.process
        found = children(process.pid) if process else []
        return found[0] if found else None

    def start(self, order: ContainerOrder) -> None:
        """Begin to start the container.

        Raises:
            OutsideError: A host tool is missing.
        """
        make_private(self._files.parent)
        make_private(order.mountpoint)
        path = self.notify_socket
        path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        descriptors: list[int] = []
        try:
            arguments = list(order.arguments)
            for credential in order.credentials:
                descriptors.append(_memory_file(credential.name, credential.reveal()))
                arguments.append(
                    f"--load-credential={credential.name}:/proc/self/fd/{descriptors[-1]}"
                )
            spec = {
                "mountpoint": str(order.mountpoint),
                "layers": [str(path) for path in reversed(order.layers)],
                "upper": str(order.upper) if order.upper else None,
                "work": str(order.work) if order.work else None,
                "ram_mib": RAM_MIB,
                "cgroup": order.cgroup,
                "pid_file": str(self.pid_file),
                "argv": [
                    *NSPAWN,
                    f"--directory={order.mountpoint / 'root'}",
                    f"--machine={order.name}",
                    *arguments,
                ],
            }
            descriptors.append(_memory_file("order", json.dumps(spec).encode()))
            self._close_console()
            self._console = _console()
            pid = shell.spawn(
                ["unshare", "--mount", "--propagation=private", sys.executable, "-I", "-m",
                 "toolkit.machines.launcher", str(descriptors[-1])],
                env=shell.environment(NOTIFY_SOCKET=str(path)),
                log=self._console,
                pass_fds=descriptors,
                is_marked=True,
            )  # fmt: skip
            process = identify(pid)
            if process:
                write_pid_file(self.pid_file, process)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def await_ready(self, *, deadline_s: float) -> None:
        """Wait until the container's init reports that it is up.

        Raises:
            OutsideError: It ended; the message carries the end of its console.
            DeadlineExceeded: It did not come up in time.
        """
        deadline = time.monotonic() + deadline_s
        while not self._is_ready():
            if self.process is None:
                raise OutsideError(
                    f"{self._files.name} ended while starting: {self.console_tail()}", hint=_HINT
                )
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{self._files.name} is not up after {deadline_s:g} s: {self.console_tail()}",
                    hint=_HINT,
                )
            time.sleep(POLL_S)

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", is_checked: bool = True
    ) -> shell.Completed:
        """Run a program inside; see `toolkit.shell.run`.

        Raises:
            OutsideError: The container does not run, or the program failed.
        """
        pid = self.init_pid
        if pid is None:
            raise OutsideError(f"{self._files.name} is not running")
        return enter.run_inside(pid, argv, timeout_s=timeout_s, stdin=stdin, is_checked=is_checked)

    def request_stop(self) -> None:
        """Ask for a clean power-off; returns at once."""
        process = self.process
        if process:
            process.send(signal.SIGTERM)

    def remove(self, *, deadline_s: float) -> None:
        """Wait for the power-off that was asked for, then end and remove what is left.

        Raises:
            OutsideError: The kernel does not let go of a process.
        """
        deadline = time.monotonic() + deadline_s
        while self.process is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        init = self.init_pid
        process = self.process
        for pid in (init, process.pid if process else None):
            identity = identify(pid) if pid else None
            if identity:
                identity.send(signal.SIGKILL)
        if not cgroups.remove(self._cgroup):
            raise OutsideError(f"{self._files.name} has processes that cannot be ended")
        if self._notify:
            self._notify.close()
            self._notify = None
        self._close_console()
        for path in self._files.parent.glob(f"{self._files.name}.*"):
            path.unlink(missing_ok=True)

    def console_tail(self) -> str:
        """Return the end of what the console printed."""
        text = self.console[-CONSOLE_TAIL_BYTES:].decode(errors="replace").strip()
        return text or "its console printed nothing"

    def _close_console(self) -> None:
        if self._console is not None:
            os.close(self._console)
            self._console = None

    def _is_ready(self) -> bool:
        if self._notify is None:
            return self._is_ready_by_asking()
        self._notify.setblocking(False)
        try:
            while True:
                if b"READY=1" in self._notify.recv(65536).split(b"\n"):
                    self._notify.close()
                    self._notify = None
                    return True
        except BlockingIOError:
            return False

    def _is_ready_by_asking(self) -> bool:
        if self.init_pid is None:
            return False
        asked = self.run(["systemctl", "is-system-running"], timeout_s=10, is_checked=False)
        return asked.text.strip() in {"running", "degraded"}


def _console() -> int:
    """Return a file in memory that takes so much and no more, however much is printed."""
    descriptor = os.memfd_create("console", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, CONSOLE_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _memory_file(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
