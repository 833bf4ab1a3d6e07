"""What the balancer needs of the host: processes found again, ports, namespaces, whole files."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from toolkit import shell
from toolkit.errors import ConfigurationError
from toolkit.machines.processes import identify
from toolkit.network.names import namespace_path

_POLL_S: Final = 0.01
_KILL_TIMEOUT_S: Final = 5.0


class AddressRefused(ConfigurationError):
    """Nobody can listen on an address.

    Attributes:
        address: IPv4 address and port.
    """

    def __init__(self, address: str, reason: str) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(
            f"port {port} on {host} {reason}",
            hint="end what listens there, or choose another public port",
        )
        self.address = address


def check_ports_free(addresses: frozenset[str], *, patience_s: float = 0.0) -> None:
    """Make sure that nobody listens on these addresses.

    HAProxy itself would not always notice: it shares a port with another process of the same user
    that allows this.

    Args:
        addresses: IPv4 address and port, such as `127.0.0.1:8443`.
        patience_s: How long a process that is ending may take to let go of one.

    Raises:
        AddressRefused: Somebody does, or the address is not one of the host's.
    """
    for address in sorted(addresses):
        deadline = time.monotonic() + patience_s
        while (error := _try_to_listen(address)) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if error is not None:
            is_taken = error.errno == errno.EADDRINUSE
            reason = "is already taken" if is_taken else f"cannot be used: {error.strerror}"
            raise AddressRefused(address, reason) from error


def _try_to_listen(address: str) -> OSError | None:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        # Connections of an earlier process that are still timing out are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
            probe.listen()
        except OSError as error:
            return error
    return None


def is_in_namespace(pid: int, name: str) -> bool:
    """Whether a process runs in the network namespace that has this name now."""
    try:
        theirs, named = Path(f"/proc/{pid}/ns/net").stat(), namespace_path(name).stat()
    except FileNotFoundError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (named.st_dev, named.st_ino)


def name_own_namespace(name: str) -> None:
    """Give the network namespace of this process a name, unless it has this name already."""
    if is_in_namespace(os.getpid(), name):
        return
    forget_namespace(name)
    _ip("netns", "attach", name, str(os.getpid()))


def forget_namespace(name: str) -> None:
    """Remove the name of a network namespace; one that is not there is fine."""
    if namespace_path(name).exists():
        _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    shell.run(["ip", *words], env=shell.environment(), timeout_s=30.0)


def wait(is_done: Callable[[], bool], *, timeout_s: float, poll_s: float = _POLL_S) -> bool:
    """Ask at once, then every `poll_s`, until it is so; return whether it came true."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        time.sleep(min(poll_s, remaining))
    return True


def write(path: Path, text: str) -> None:
    """Replace a file as a whole; a killed process leaves the old or the new one.

    Not synchronised to disk: no file here is of use after the host itself has gone down.
    """
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def kill_all(program: str, *, argument: str) -> None:
    """Kill every process of a program that was started with exactly this argument.

    Args:
        program: Name of its file.
        argument: Must be one that nobody else would give, such as the path of an own file.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            argv = (entry / "cmdline").read_text(errors="surrogateescape").split("\0")
        except OSError:
            continue
        if Path(argv[0]).name == program and argument in argv:
            process = identify(int(entry.name))
            if process:
                process.send(signal.SIGKILL)
                wait(lambda one=process: not one.is_alive, timeout_s=_KILL_TIMEOUT_S)  # type: ignore[misc]
