"""Where the toolkit keeps what outlives a command.

One directory holds everything durable. Sockets and pid files live under `/run`, because a Unix
socket's path is limited to 107 bytes; what holds a secret lives on a RAM file system. Both are
named after the state directory, so that two toolkits on one host do not meet.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError, LeaseHeld, OutsideError
from toolkit.machines.processes import identify, parse_process

RAM_ROOT = Path("/dev/shm")  # noqa: S108 - a RAM file system on every Linux host
RAM_FILE_SYSTEMS = {"tmpfs", "ramfs"}
RUNTIME_ROOT = Path("/run/toolkit")

_MARKS = {"bake.lock", "environments", "ledger.db", "secret-versions.json", "store"}
"""What tells a state directory from another; one of these is in it as soon as much else is."""


@dataclass(frozen=True, slots=True)
class State:
    """The paths that belong to one state directory.

    Attributes:
        root: The directory itself.
    """

    root: Path

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that stand for this state directory on this host."""
        return hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:8]

    @property
    def store(self) -> Path:
        """Images, layers and releases."""
        return self.root / "store"

    @property
    def ledger(self) -> Path:
        """The ledger's database."""
        return self.root / "ledger.db"

    @property
    def keys(self) -> Path:
        """Vault passwords, unless an environment names another place."""
        return self.root / "keys"

    @property
    def sources(self) -> Path:
        """Clones of sources that are named by URL."""
        return self.root / "sources"

    @property
    def work(self) -> Path:
        """Scratch space of a running bake; empty otherwise."""
        return self.root / "work"

    @property
    def runtime(self) -> Path:
        """Sockets and pid files; gone after the host has restarted."""
        return RUNTIME_ROOT / self.id

    @property
    def ram(self) -> Path:
        """Files that hold secrets."""
        return RAM_ROOT / f"toolkit-{self.id}"

    def environment(self, name: str) -> Path:
        """Durable files of an environment."""
        return self.root / "environments" / name

    def volumes(self, environment: str) -> Path:
        """The data volumes of an environment."""
        return self.environment(environment) / "volumes"

    def snapshots(self, environment: str) -> Path:
        """The copies of an environment's data volumes."""
        return self.environment(environment) / "snapshots"

    def namespace(self, environment: str) -> str:
        """The network namespace of an environment."""
        return f"tk{self.id}-{environment}"

    def prepare(self) -> None:
        """Make the directory, readable by its owner alone.

        One that others may look into is taken over only when it is empty or a state directory
        already: it may be somebody's home, or the root of the file system.

        Raises:
            ConfigurationError: It cannot be made or written, or holds other things.
        """
        try:
            if not self.root.is_dir():
                make_private(self.root)
            elif self.root.stat().st_mode & 0o077:
                names = {path.name for path in self.root.iterdir()}
                if names and not names & _MARKS:
                    raise ConfigurationError(
                        f"the directory {self.root} holds other things than a state directory, and "
                        "others may look into it",
                        hint="name a directory that is empty or does not exist with --state or "
                        f"TOOLKIT_STATE, or make this one private: chmod 700 {self.root}",
                    )
                make_private(self.root)
        except OSError as error:
            raise ConfigurationError(
                f"the state directory {self.root} cannot be used: {error.strerror}",
                hint="run it with sudo, or choose another with --state or TOOLKIT_STATE",
            ) from None

    def need_service(self, service: str) -> None:
        """Refuse to mix services: machines, images and passwords are told apart by role alone.

        Args:
            service: The name in the project's `service.yml`.

        Raises:
            ConfigurationError: The directory was made for another service.
        """
        owner = self._owner()
        if owner not in {None, service}:
            raise ConfigurationError(
                f"the state directory {self.root} belongs to the service {owner}, and this project "
                f"is {service}",
                hint="name another directory with --state or TOOLKIT_STATE; if the service was "
                f"renamed, write its new name into {self._service_file}",
            )

    def prepare_for(self, service: str) -> None:
        """Make the directory, and note whose it is.

        Args:
            service: The name in the project's `service.yml`.

        Raises:
            ConfigurationError: As `prepare` and `need_service`.
            OutsideError: It cannot be written.
        """
        self.prepare()
        try:
            with self._service_file.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                if not file.read().strip():
                    file.write(f"{service}\n")
        except OSError as error:
            raise OutsideError(
                f"{self._service_file} could not be written: {error.strerror}",
                hint="it names the service that the state directory belongs to",
            ) from None
        self.need_service(service)

    @property
    def _service_file(self) -> Path:
        return self.root / "service"

    def _owner(self) -> str | None:
        """Return the service that the directory was made for; None before, or if it is hidden."""
        try:
            return self._service_file.read_text(errors="replace").strip() or None
        except OSError:
            return None


@contextmanager
def exclusive(path: Path, *, doing: str) -> Iterator[None]:
    """Hold a lock file while the body runs; a crash lets go of it.

    What a holder that was killed has left running is ended first.

    Args:
        path: The lock file.
        doing: What the holder does, for the message that others get.

    Raises:
        LeaseHeld: Another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise OutsideError(f"{path} could not be opened: {error.strerror}") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LeaseHeld(
                f"another process is at work here: {file.readline().strip() or doing}",
                hint="wait until it has ended, then try again",
            ) from None
        file.seek(0)
        previous = parse_process(file.read().partition("\n")[2])
        if previous and not previous.is_alive:
            shell.end_children(previous)
        content = f"{doing} (process {os.getpid()})\n{identify(os.getpid())}"
        try:
            file.truncate(0)
            # Not through the file's buffer, which would be tried again when the file is closed.
            os.write(file.fileno(), content.encode())
        except OSError as error:
            raise OutsideError(f"{path} could not be written: {error.strerror}") from None
        yield


def make_durable(path: Path) -> Path:
    """Make a directory below the state directory; return it.

    Raises:
        OutsideError: The file system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutsideError(f"{path} could not be made: {error.strerror}") from None
    return path


def make_private(path: Path) -> Path:
    """Make a directory that only its owner can read; return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def remove_if_empty(directory: Path) -> None:
    """Remove a shared directory when nothing of anybody's is left in it."""
    try:
        directory.rmdir()
    except OSError:
        pass


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new.

    Raises:
        OutsideError: The file system refuses; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutsideError(f"{path} could not be written: {error.strerror}") from None


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds a path, such as `tmpfs`."""
    best = ("", "")
    resolved = path.resolve()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split(" ")
        if resolved.is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return best[1]


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
