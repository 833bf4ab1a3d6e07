"""Runs as a process of its own: mounts an image's layers and becomes systemd-nspawn.

It is started in a new, private mount namespace, so that every mount and loop device of a
container disappears with the container, however that ends. It imports little, since it
runs once for each machine.

The order comes as JSON on the descriptor named by the first argument:

    {"mountpoint", "layers": [top … bottom], "upper": DIR|null, "work": DIR|null, "ram_mib",
     "cgroup", "pid_file", "argv"}
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

from toolkit import shell
from toolkit.machines import cgroups
from toolkit.machines.processes import identify, write_pid_file

MOUNT_TIMEOUT_S = 30.0

OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=off,xino=off"
"""An upper directory that is sealed later must hold plain files, whiteouts and opaque marks."""

NSPAWN_SCRATCH = Path("/run/systemd/nspawn")
"""Where systemd-nspawn keeps locks and sockets that it does not remove when it is killed."""


def main() -> None:
    """Carry out the order; never returns."""
    descriptor = int(sys.argv[1])
    with os.fdopen(descriptor, "rb") as stream:
        order: dict[str, Any] = json.load(stream)
    process = identify(os.getpid())
    if process:
        write_pid_file(Path(order["pid_file"]), process)
    cgroups.join(order["cgroup"])
    _mount_root(order)
    argv: list[str] = order["argv"]
    # From here on it is a machine of its own, no longer a child of the command that started it.
    env = {name: value for name, value in os.environ.items() if name != shell.MARK}
    os.execvpe(argv[0], argv, env)  # noqa: S606 - shell.py started this process


def _mount_root(order: dict[str, Any]) -> None:
    top = Path(order["mountpoint"])
    _mount("-t", "tmpfs", "-o", f"mode=0700,size={order['ram_mib']}m", "tmpfs", top)
    NSPAWN_SCRATCH.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", "mode=0700,size=1m", "tmpfs", NSPAWN_SCRATCH)
    lower = []
    for number, layer in enumerate(order["layers"]):
        directory = top / f"layer-{number}"
        directory.mkdir()
        mount_layer(Path(layer), directory)
        lower.append(str(directory))
    upper = Path(order["upper"] or top / "upper")
    work = Path(order["work"] or top / "work")
    root = top / "root"
    for directory in (upper, work, root):
        directory.mkdir(exist_ok=True)
    upper.chmod(0o755)
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},{OVERLAY_OPTIONS}"
    _mount("-t", "overlay", "-o", options, "overlay", root)


def mount_layer(layer: Path, directory: Path) -> None:
    """Mount a layer through the loop device that all machines with it share.

    mount(8) takes the device that the same file already has, so that machines share the page cache
    of their layers. Those that look at the same moment would find none and each make one; the
    lock lets them look one after another.

    Args:
        layer: An erofs file.
        directory: Where it shall be mounted, in this process's mount namespace.

    Raises:
        OutsideError: It cannot be mounted.
        DeadlineExceeded: mount(8) did not end.
    """
    with layer.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _mount("-t", "erofs", "-o", "loop,ro", layer, directory)


def _mount(*arguments: str | Path) -> None:
    shell.run(["mount", *arguments], env=shell.environment(), timeout_s=MOUNT_TIMEOUT_S)


if __name__ == "__main__":
    main()
