"""Several files that are replaced together, and files that are never replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from toolkit.state import sync_directory


def replace_all(files: Mapping[Path, bytes], *, mode: int = 0o600) -> None:
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
        sync_directory(directory)


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
    sync_directory(path.parent)
    return True


def _stage(path: Path, content: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
