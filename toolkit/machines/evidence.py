"""Everything that a running machine of this host shows, gathered to be searched.

What a machine wrote (its overlay and its RAM file systems), the environment and arguments of its
processes, its journal and its console go into one file in memory. Credential directories do not:
of them a program inside the machine reports names and keyed digests, so that no value leaves it.
"""

from __future__ import annotations

import bisect
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.bake.watch import read_file
from toolkit.machines import cgroups, enter
from toolkit.state import RAM_FILE_SYSTEMS

TIMEOUT_S = 60.0
CREDENTIALS = ("/run/credentials", "/run/host/credentials", "/run/credstore")
CONFIG = "/run/host/credentials/config"

DIGESTS = """
import hashlib, hmac, json, os, sys

key = bytes.fromhex(sys.stdin.read())
found = {}
tops = ("/run/host/credentials", "/run/credentials", "/run/credstore", "/etc/credstore",
        "/usr/lib/credstore")
for top in tops:
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[path] = hmac.digest(key, file.read(), "sha256").hex()
print(json.dumps(found))
"""


class Spool:
    """Named pieces of bytes, one after the other in a file in memory."""

    def __init__(self, name: str) -> None:
        self.descriptor = os.memfd_create(f"audit-{name}")
        self._offsets: list[int] = []
        self._places: list[str] = []
        self._file = io.FileIO(self.descriptor, "w", closefd=False)
        self.size_bytes = 0

    def add(self, place: str, content: bytes) -> None:
        """Append what was found at a place."""
        self._offsets.append(self.size_bytes)
        self._places.append(place)
        # Between two pieces, so that no value is found across them.
        record = content + b"\0\0\0\0"
        view = memoryview(record)
        while view:
            view = view[self._file.write(view) :]
        self.size_bytes += len(record)

    def place_at(self, offset: int) -> str:
        """Return the place that a position belongs to."""
        return self._places[bisect.bisect_right(self._offsets, offset) - 1]

    def close(self) -> None:
        """Free the memory."""
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Subject:
    """One machine, or the balancer, as it is looked at from outside.

    Attributes:
        name: Of the machine.
        role: Its role.
        spool: What it shows.
        credentials: Path inside the machine to the keyed digest of the credential's content.
        volumes: Files of its volumes on this host.
        layers: Layer name to sealed file.
    """

    name: str
    role: str
    spool: Spool
    credentials: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[Path, ...] = ()
    layers: Mapping[str, Path] = field(default_factory=dict)


def gather(spool: Spool, *, init_pid: int, group: str, console: bytes) -> None:
    """Put everything that a machine shows into a spool.

    Args:
        spool: Takes it.
        init_pid: Process id of the machine's init on this host.
        group: Its control group.
        console: What its console printed.
    """
    gather_processes(spool, {*cgroups.processes(group), *_namesakes(init_pid)})
    root = f"/proc/{init_pid}/root"
    for place, path in _written(init_pid):
        _add_tree(spool, place, path)
    _add_file(spool, CONFIG, root + CONFIG)
    journal = enter.run_inside(
        init_pid,
        ["journalctl", "--no-pager", "--all", "--output=export"],
        timeout_s=TIMEOUT_S,
        max_output_bytes=None,
    )
    spool.add("journal", journal.stdout)
    spool.add("console", console)


def gather_processes(spool: Spool, pids: Iterable[int]) -> None:
    """Put environment and arguments of processes into a spool."""
    for pid in sorted(pids):
        for name in ("cmdline", "environ"):
            _add_file(spool, f"{name} of process {_name(pid)}", f"/proc/{pid}/{name}")


def digests(init_pid: int, key: bytes) -> dict[str, str]:
    """Return path and keyed digest of every credential in a machine."""
    done = enter.run_inside(
        init_pid,
        ["/usr/bin/python3", "-IS", "-c", DIGESTS],
        timeout_s=TIMEOUT_S,
        stdin=key.hex().encode(),
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _namesakes(init_pid: int) -> Iterator[int]:
    """Yield the processes that the machine's own see: one that entered it is in no group of it."""
    wanted = os.stat(f"/proc/{init_pid}/ns/pid").st_ino  # noqa: PTH116
    for name in os.listdir("/proc"):  # noqa: PTH208
        try:
            if name.isdigit() and os.stat(f"/proc/{name}/ns/pid").st_ino == wanted:  # noqa: PTH116
                yield int(name)
        except OSError:
            continue


def _written(init_pid: int) -> Iterator[tuple[str, str]]:
    """Yield where the machine can have written, and how this host reaches it."""
    supervisor = Path(f"/proc/{init_pid}/stat").read_text().rpartition(")")[2].split()[1]
    for line in Path(f"/proc/{supervisor}/mountinfo").read_text().splitlines():
        words = line.split(" ")
        kind = words[words.index("-") + 1]
        if kind == "overlay":
            options = dict(o.partition("=")[::2] for o in words[-1].split(","))
            if "upperdir" in options and words[4].endswith("/root"):
                yield "", f"/proc/{supervisor}/root{options['upperdir']}"
    seen = set()
    for line in Path(f"/proc/{init_pid}/mountinfo").read_text().splitlines():
        words = line.split(" ")
        point = words[4]
        is_ours = words[words.index("-") + 1] in RAM_FILE_SYSTEMS and point not in seen
        if is_ours and not point.startswith(CREDENTIALS):
            seen.add(point)
            yield point, f"/proc/{init_pid}/root{point}"


def _add_tree(spool: Spool, place: str, path: str) -> None:
    """Add every file of one file system below a directory, and the targets of links."""
    try:
        device = os.stat(path).st_dev  # noqa: PTH116 - below /proc/PID/root
    except OSError:
        return
    for directory, directories, names in os.walk(path):
        inner = place + directory[len(path) :]
        if inner.startswith(CREDENTIALS):
            directories.clear()
            continue
        directories[:] = [name for name in directories if _device(f"{directory}/{name}") == device]
        for name in names:
            _add_file(spool, f"{inner}/{name}", f"{directory}/{name}")


def _add_file(spool: Spool, place: str, path: str) -> None:
    try:
        if os.path.islink(path):  # noqa: PTH114
            spool.add(place, os.fsencode(os.readlink(path)))  # noqa: PTH115
        elif os.path.isfile(path):  # noqa: PTH113
            spool.add(place, read_file(path))
    except OSError:
        # It was there a moment ago: a process or a file that is gone holds nothing any more.
        return


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return str(pid)
