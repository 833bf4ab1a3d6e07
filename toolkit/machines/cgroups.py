"""A control group of its own for each container, so that its processes can be told and ended.

systemd-nspawn with `--keep-unit` makes `supervisor` and `payload` below the group it was started
in; two containers started from one group would share them, and stopping a service in one would
kill its namesake in the other. On a hybrid host both the unified hierarchy and systemd's named
one must be joined.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
HIERARCHIES = (ROOT / "unified", ROOT / "systemd")


def hierarchies() -> tuple[Path, ...]:
    """Return the mount points of the hierarchies that a container must be told apart in."""
    if (ROOT / "cgroup.controllers").exists():
        return (ROOT,)
    return tuple(path for path in HIERARCHIES if path.is_dir())


def join(group: str) -> None:
    """Make a group and move the calling process into it."""
    for top in hierarchies():
        path = top / group
        path.mkdir(parents=True, exist_ok=True)
        (path / "cgroup.procs").write_text(str(os.getpid()))


def processes(group: str) -> Iterator[int]:
    """Yield the process ids in a group and below it, whatever disappears meanwhile."""
    for top in hierarchies():
        # Unlike `Path.glob`, it passes over a directory that has gone.
        for directory, _, _ in os.walk(top / group):
            try:
                yield from map(int, Path(directory, "cgroup.procs").read_text().split())
            except OSError:
                continue


def remove(group: str, *, deadline_s: float = 5.0) -> bool:
    """Kill whatever is left in a group and remove it; return whether it is gone."""
    deadline = time.monotonic() + deadline_s
    while True:
        for top in hierarchies():
            kill = top / group / "cgroup.kill"
            if kill.exists():
                try:
                    kill.write_text("1")
                except OSError:
                    pass
            _remove_tree(top / group)
        if not any((top / group).exists() for top in hierarchies()):
            _remove_empty_parents(group)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def groups_below(group: str) -> list[str]:
    """Return the names of the groups directly below one."""
    names: set[str] = set()
    for top in hierarchies():
        if (top / group).is_dir():
            names.update(path.name for path in (top / group).iterdir() if path.is_dir())
    return sorted(names)


def _remove_empty_parents(group: str) -> None:
    for top in hierarchies():
        for parent in Path(group).parents[:-1]:
            try:
                (top / parent).rmdir()
            except OSError:
                break


def _remove_tree(path: Path) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            Path(directory).rmdir()
        except OSError:
            # Still busy, or gone already: the caller looks again.
            continue
