"""Turn a directory into a sealed erofs file: the same tree gives the same bytes.

The tree is cleaned first and all times are clamped.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from toolkit import shell

SEALED_TIME = 1_577_836_800
"""Every file's time, seconds since the epoch: 2020-01-01. Compiled Python is therefore checked by
nothing (`unchecked-hash`), and a web server must not derive validators from file times."""

MKFS_TIMEOUT_S = 600.0

_UUID_SPACE = uuid.UUID("6e1c4c6a-4b1c-5d0e-9a43-3f6a0c5be0a1")

JUNK = (
    "dev/*",
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "proc/*",
    "root/.ansible",
    "root/.bash_history",
    "root/.cache",
    "run/*",
    "sys/*",
    "tmp/*",
    "tmp/.[!.]*",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/timers/*",
    "var/log/journal",
    "var/tmp/*",
)
"""What a bake leaves behind and no machine needs; patterns relative to the root."""


def clean(tree: Path) -> None:
    """Remove what must not be sealed: scratch files, caches, logs, marks of the build machine."""
    for pattern in JUNK:
        for path in tree.glob(pattern):
            _remove(path)
    for path in (tree / "var" / "log").rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.unlink()
    for entry in _walk(tree):
        for name in os.listxattr(entry, follow_symlinks=False):
            # `opaque` hides a lower directory; the others name inodes of the build machine.
            if name.startswith("trusted.overlay.") and name != "trusted.overlay.opaque":
                os.removexattr(entry, name, follow_symlinks=False)


def seal(tree: Path, output: Path, *, name: str) -> None:
    """Write a tree as an uncompressed erofs file.

    Args:
        tree: What to seal; whiteouts and opaque marks of overlayfs are kept.
        output: The file to write.
        name: The layer's name, from which the file system's UUID is taken.

    Raises:
        OutsideError: `mkfs.erofs` failed.
    """
    shell.run(
        [
            "mkfs.erofs",
            "--quiet",
            f"-T{SEALED_TIME}",
            f"-U{uuid.uuid5(_UUID_SPACE, name)}",
            output,
            tree,
        ],
        env=shell.environment(),
        timeout_s=MKFS_TIMEOUT_S,
    )


def compiled_directories(tree: Path) -> list[str]:
    """Return the directories, as seen from inside, whose Python files have compiled forms."""
    return sorted(
        "/" + str(path.parent.relative_to(tree))
        for path in tree.rglob("__pycache__")
        if path.is_dir() and not path.is_symlink()
    )


def _walk(tree: Path) -> Iterator[str]:
    yield str(tree)
    for directory, directories, files in os.walk(tree):
        for entry in (*directories, *files):
            yield os.path.join(directory, entry)  # noqa: PTH118 - tens of thousands of files


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
