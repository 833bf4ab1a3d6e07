"""Private directories on a RAM file system, wiped when they are left, also after a kill.

A directory is held by a file lock for as long as its owner lives. Whoever makes the next one
first wipes those that nobody holds any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import OutsideError
from toolkit.state import RAM_FILE_SYSTEMS, RAM_ROOT, file_system_of

_PREFIX = "toolkit-secrets-"


@contextmanager
def ram_directory(root: Path = RAM_ROOT) -> Iterator[Path]:
    """Yield a directory that only this user may enter and that no disk ever holds.

    Raises:
        OutsideError: `root` is not on a RAM file system.
    """
    if file_system_of(root) not in RAM_FILE_SYSTEMS:
        raise OutsideError(
            f"{root} is not on a RAM file system; secrets are not written to a disk",
            hint=f"mount a tmpfs at {root}",
        )
    _sweep(root)
    directory, lock = _make(root)
    try:
        yield directory
    finally:
        _wipe(directory)
        os.close(lock)


def _make(root: Path) -> tuple[Path, int]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        # Before it is locked, a sweeper may take it for an abandoned one.
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return directory, lock
        os.close(lock)


def _sweep(root: Path) -> None:
    for directory in root.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _wipe(directory)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _wipe(directory: Path) -> None:
    """Overwrite every file, so that freed memory holds none of it, then remove everything."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                with path.open("r+b") as file:
                    file.write(b"\0" * os.fstat(file.fileno()).st_size)
            except OSError:
                continue
    shutil.rmtree(directory, ignore_errors=True)
