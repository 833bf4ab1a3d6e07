"""Files that are either as they were or as they shall be, whenever the power fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_atomically(files: Mapping[Path, bytes], *, mode: int = 0o600) -> None:
    """Replace files; none is replaced before the content of all is safely on the disk.

    Raises:
        OSError: The file system refused; no file was changed unless renaming itself failed.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            staged[path] = _stage(path, content, mode)
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    for directory in {path.parent for path in files}:
        _sync_directory(directory)


def create_exclusively(path: Path, content: bytes, *, mode: int = 0o600) -> bool:
    """Write a file that does not exist yet.

    Returns:
        False when it existed; it is then untouched.
    """
    temporary = _stage(path, content, mode)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_directory(path.parent)
    return True


def _stage(path: Path, content: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
