"""Several files that are replaced together, and files that are never replaced."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from toolkit.errors import OutsideError
from toolkit.state import sync_directory


def replace_all(files: Mapping[Path, bytes], *, mode: int = 0o600) -> None:
    """Replace files; none is replaced before the content of all is safely on the disk.

    A file keeps its owner, group and mode: root works on projects that belong to people. A new one,
    and directories that are missing, belong to whoever owns the directory that is there.

    Args:
        files: What they are to hold.
        mode: Of new ones.

    Raises:
        OutsideError: The file system refused; no file was changed unless renaming itself failed, or
            what makes it durable, and then the message says so.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in files.items():
            _make_directory(path.parent)
            staged[path] = _stage(path, content, mode, like=_model_of(path))
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        raise OutsideError(
            f"{path} could not be written: {error.strerror}",
            hint="the project has to be writable for who changes its secrets",
        ) from None
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    for directory in {path.parent for path in files}:
        try:
            sync_directory(directory)
        except OSError as error:
            raise OutsideError(
                f"what was written to {directory} may not outlive a power failure: {error.strerror}"
            ) from None


def create_exclusively(path: Path, content: bytes) -> bool:
    """Write a file that does not exist yet, for nobody but its owner to read.

    Returns:
        False when it existed; it is then untouched.
    """
    temporary = _stage(path, content, 0o600)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_directory(path.parent)
    return True


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    owner = path.parent.stat()
    with suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)


def _model_of(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        return path.parent.stat()


def _stage(path: Path, content: bytes, mode: int, like: os.stat_result | None = None) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if like is not None:
            # Who is not root can give a file to nobody else, but may share it with a group.
            with suppress(PermissionError):
                os.fchown(file.fileno(), -1, like.st_gid)
                os.fchown(file.fileno(), like.st_uid, -1)
            if stat.S_ISREG(like.st_mode):
                mode = stat.S_IMODE(like.st_mode)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
