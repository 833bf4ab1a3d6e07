"""What the operating system's tree needs so that its initial RAM file system boots an image's disk.

`tree/` mirrors the root of a Debian system with initramfs-tools: a boot script, which is chosen by
`boot=toolkit` on the kernel's command line, a hook that adds the modules it needs, and settings
that keep the build host out of the result.
"""

from __future__ import annotations

import shutil
from pathlib import Path

UPDATE_COMMAND = ("update-initramfs", "-u", "-k", "all")
"""Run inside the tree (chroot) after `install_initramfs_support`, with `SOURCE_DATE_EPOCH` in its
environment: initramfs-tools clamps times and compresses in one thread only when it is set."""

_TREE = Path(__file__).parent / "tree"


def install_initramfs_support(tree: Path) -> None:
    """Copy the boot script, hook and settings into an operating system's tree.

    The tree needs initramfs-tools and a kernel either before or after. When the files are there
    before the packages are configured, the kernel's installation already makes the right initial
    RAM file system; else `UPDATE_COMMAND` does. Repeating it is harmless.

    Args:
        tree: Root directory of the operating system.
    """
    for source in sorted(_TREE.rglob("*")):
        if source.is_dir():
            continue
        target = tree / source.relative_to(_TREE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        # initramfs-tools runs only hooks that are executable, and a wheel keeps no modes.
        target.chmod(0o755 if source.parent.name == "hooks" else 0o644)
