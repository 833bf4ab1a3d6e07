"""Boots an image's disk as a UEFI virtual machine under QEMU, on this host.

The disk is opened read-only: an image's root file system writes to RAM, and a machine must not be
able to change the image that the next one starts from.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from toolkit import shell
from toolkit.errors import ConfigurationError, DeadlineExceeded, OutsideError
from toolkit.model import Secret

PROGRAM = "qemu-system-x86_64"
FIRMWARE_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
FIRMWARE_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""Debian package ovmf; without Secure Boot."""

MAX_CONSOLE_BYTES = 1024 * 1024
"""How much of the end of the console's log is searched; a machine may print without end."""

_MEMORY_MIB = 1024
"""Half of it at most holds what the machine writes."""

_PROCESSORS = 2

_POLL_S = 0.1
_STOP_S = 5.0

_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")

_BARE = ("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot")


def probe_kvm(deadline_s: float) -> bool:
    """Tell whether machines run under KVM here, by starting the firmware of one without an image.

    That /dev/kvm can be opened says little: in a virtual machine without working nested
    virtualisation a guest runs for some thousand instructions and then hangs for ever.

    Args:
        deadline_s: How long the firmware may take to look for a system to boot; under KVM that is
            about a second, under plain emulation five.
    """
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and firmware_runs(
        has_kvm=True, deadline_s=deadline_s
    )


def firmware_runs(*, has_kvm: bool, deadline_s: float) -> bool:
    """Tell whether a machine's firmware gets as far as looking for a system to boot.

    Args:
        has_kvm: Whether to use KVM or plain emulation.
        deadline_s: How long it may take.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-probe-") as scratch:
        disk = Path(scratch) / "empty.raw"
        disk.write_bytes(bytes(1024 * 1024))
        console = Path(scratch) / "console"
        with QemuMachine(disk, console=console, has_kvm=has_kvm) as machine:
            try:
                machine.wait_for_console(rb"BdsDxe: ", deadline_s=deadline_s)
            except OutsideError:
                return False
    return True


class QemuMachine:
    """One virtual machine, from `__enter__` to `__exit__`.

        with QemuMachine(disk, console=log, credentials=secrets, forward=(8080,)) as machine:
            machine.wait_for_console(rb"login:", deadline_s=120)
            httpx.get(f"http://127.0.0.1:{machine.ports[8080]}/")

    It has no network unless ports are forwarded; with them it has one that answers DHCP and lets
    nothing out. Credentials reach systemd through SMBIOS strings, over memory files: they show in
    no argument list and are on no disk.

    Args:
        disk: Raw disk file.
        console: Takes what the machine prints on its first serial port; readable by root alone.
        volumes: Raw files that the machine sees as further disks, and may write to.
        credentials: What the machine may know, by credential name.
        forward: TCP ports of the machine that shall be reachable on this host's loopback.
        has_kvm: Whether to use KVM; see `probe_kvm`. Else plain emulation.
    """

    def __init__(
        self,
        disk: Path,
        *,
        console: Path,
        volumes: Sequence[Path] = (),
        credentials: Sequence[Secret] = (),
        forward: Sequence[int] = (),
        has_kvm: bool = False,
    ) -> None:
        self._disk = disk
        self._console = console
        self._volumes = tuple(volumes)
        self._credentials = tuple(credentials)
        self._forward = tuple(forward)
        self._accelerator, self._processor = (
            ("kvm", "host") if has_kvm else ("tcg,thread=multi", "max")
        )
        self._cleanup = ExitStack()
        self._process: int | None = None
        self._log = Path()
        self.ports: Mapping[int, int] = {}

    def __enter__(self) -> QemuMachine:
        """Start the machine; it is not up yet when this returns.

        Raises:
            ConfigurationError: A credential's name is impossible.
            OutsideError: QEMU or its firmware is missing.
        """
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the machine."""
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether QEMU runs; a machine that powers itself off or restarts ends it."""
        return self._process is not None and not _has_ended(self._process, 0.0)

    def wait_for_console(self, pattern: bytes, *, deadline_s: float) -> re.Match[bytes]:
        """Wait until the console shows a regular expression.

        Args:
            pattern: Searched for in the last `MAX_CONSOLE_BYTES` of what was printed so far.
            deadline_s: Seconds from now.

        Raises:
            DeadlineExceeded: It did not appear in time; the message has the console's end.
            OutsideError: The machine ended without it.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + deadline_s
        while True:
            is_running = self.is_running
            printed = self._printed()
            if match := expression.search(printed):
                return match
            tail = printed[-1500:].decode(errors="replace")
            if not is_running:
                said = self._log.read_text(errors="replace").strip() if self._log.is_file() else ""
                raise OutsideError(
                    f"the machine of {self._disk.name} ended before it printed {pattern!r}; "
                    f"QEMU said: {said or 'nothing'}; its console ends with:\n{tail}"
                )
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"the machine of {self._disk.name} did not print {pattern!r} "
                    f"within {deadline_s:g} s; its console ends with:\n{tail}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the machine at once, as pulling the plug does, and remove what it used."""
        if self._process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if _has_ended(self._process, 0.0):
                    break
                signal.pidfd_send_signal(self._process, number)
                _has_ended(self._process, _STOP_S)
            os.close(self._process)
            self._process = None
        self._cleanup.close()

    def _start(self) -> None:
        for file in (FIRMWARE_CODE, FIRMWARE_VARIABLES):
            if not file.is_file():
                raise OutsideError(f"{file} is missing", hint="install the package ovmf")
        scratch = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="toolkit-")))
        variables = scratch / "variables.fd"
        shutil.copyfile(FIRMWARE_VARIABLES, variables)
        self._log = scratch / "qemu.log"
        self._console.unlink(missing_ok=True)
        self._console.touch(mode=0o600)
        self.ports = {port: _free_port() for port in self._forward}
        with ExitStack() as memory_files:
            descriptors = [
                memory_files.enter_context(os.fdopen(_credential_file(credential), "rb")).fileno()
                for credential in self._credentials
            ]
            pid = shell.spawn(
                self._arguments(variables, descriptors),
                env=shell.environment(),
                log=self._log,
                pass_fds=descriptors,
            )
        # The child has inherited the memory files. Unlike a process id, a descriptor never comes
        # to mean another process.
        try:
            self._process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise OutsideError(f"{PROGRAM} ended at once: {self._log.read_text()}") from None

    def _arguments(self, variables: Path, credentials: Sequence[int]) -> list[str]:
        console = str(self._console).replace(",", ",,")
        arguments = [
            *(PROGRAM, *_BARE, "-accel", self._accelerator, "-cpu", self._processor),
            # The 64-bit entry point lifts the limit of 64 KiB on all SMBIOS strings together.
            *("-machine", "q35,pflash0=code,pflash1=variables,smbios-entry-point-type=64"),
            *("-m", str(_MEMORY_MIB), "-smp", str(_PROCESSORS)),
            *("-blockdev", _blockdev("code", FIRMWARE_CODE, is_read_only=True)),
            *("-blockdev", _blockdev("variables", variables, is_read_only=False)),
            *("-blockdev", _blockdev("disk", self._disk, is_read_only=True)),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
        ]
        for index, volume in enumerate(self._volumes):
            arguments += ["-blockdev", _blockdev(f"volume{index}", volume, is_read_only=False)]
            arguments += ["-device", f"virtio-blk-pci,drive=volume{index}"]
        if self.ports:
            forwards = "".join(
                f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.ports.items()
            )
            arguments += ["-netdev", f"user,id=network,restrict=on{forwards}"]
            arguments += ["-device", "virtio-net-pci,netdev=network,romfile="]
        for descriptor in credentials:
            arguments += ["-smbios", f"type=11,path=/dev/fd/{descriptor}"]
        return arguments

    def _printed(self) -> bytes:
        with self._console.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_CONSOLE_BYTES))
            return file.read(MAX_CONSOLE_BYTES)


def _has_ended(process: int, timeout_s: float) -> bool:
    """Wait until a process ends; it is reaped, unless another part of this program did that."""
    if not select.select([process], [], [], timeout_s)[0]:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOHANG)
    return True


def _blockdev(name: str, file: Path, *, is_read_only: bool) -> str:
    return json.dumps(
        {
            "driver": "raw",
            "node-name": name,
            "read-only": is_read_only,
            "file": {"driver": "file", "filename": str(file)},
        }
    )


def _credential_file(credential: Secret) -> int:
    """Return a memory file with the SMBIOS string that systemd reads a credential from."""
    if not _CREDENTIAL_NAME.fullmatch(credential.name) or credential.name in {".", ".."}:
        raise ConfigurationError(f"'{credential.name}' cannot be the name of a credential")
    encoded = base64.b64encode(credential.reveal())
    descriptor = os.memfd_create("credential")
    os.fchmod(descriptor, 0o600)
    os.write(
        descriptor, b"io.systemd.credential.binary:%s=%s" % (credential.name.encode(), encoded)
    )
    return descriptor


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
