"""Looks for private keys in a build machine after every command that Ansible runs in it.

What a task writes and a later one removes is in no layer; it was on the disk of the build
machine all the same, and whatever was made from it may still be there. This runs inside Ansible's
workers, so it imports next to nothing, reads only files that have changed since it looked last,
and notes what it finds where only the toolkit reads.

The order is a file `watch.json` in a directory of the host; beside it stand `looked`, whose
modification time says when, and `found`, a line for each finding:

    {"upper": DIR, "init_pid": N}
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.bake.leak_rules import Finding, check_path, find_keys

WATCHED_RULES = frozenset({"private-key", "ssh-host-key", "authorized-keys", "key-store"})

MEMORY_DIRECTORIES = ("tmp", "run", "dev/shm")
"""What is not in the upper directory: the machine's RAM file systems."""

IGNORED = ("root/.ansible/tmp", "run/toolkit", "run/host", "run/systemd", "run/udev")
"""Ansible's own transfers, which end in their real place within the same task, and what the
toolkit and systemd put there."""

SLACK_S = 0.05
"""The kernel stamps files with a clock that is up to one tick (10 ms) late."""


def prepare(directory: Path, *, upper: Path, init_pid: int | None) -> None:
    """Make ready to look; what is there now has been looked at."""
    directory.mkdir()
    order = {"upper": str(upper), "init_pid": init_pid}
    (directory / "watch.json").write_text(json.dumps(order))
    (directory / "looked").touch()


def look(directory: Path) -> None:
    """Note every private key in files that have changed since this was called last."""
    order = json.loads((directory / "watch.json").read_bytes())
    looked = directory / "looked"
    since = looked.stat().st_mtime - SLACK_S
    now = time.time()
    lines = [
        json.dumps([one.path, one.rule, one.detail, one.digest])
        for root, path in _places(order["upper"], order["init_pid"])
        for one in _check(root, path, since)
    ]
    if lines:
        with (directory / "found").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    os.utime(looked, (now, now))


def findings(directory: Path) -> list[Finding]:
    """Return what was found, each thing once."""
    try:
        lines = (directory / "found").read_text().splitlines()
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(Finding(*json.loads(line)) for line in lines))


def _places(upper: str, init_pid: int | None) -> Iterator[tuple[str, str]]:
    yield upper, ""
    if init_pid is not None:
        for name in MEMORY_DIRECTORIES:
            yield f"/proc/{init_pid}/root", name


def _check(root: str, path: str, since: float) -> Iterator[Finding]:
    """Yield the findings below a directory, in files that have changed since a moment."""
    try:
        entries = list(os.scandir(f"{root}/{path}" if path else root))
    except OSError:
        # It may be gone again, or be another machine's idea of a path.
        return
    for entry in entries:
        inner = f"{path}/{entry.name}" if path else entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                if inner not in IGNORED:
                    yield from _check(root, inner, since)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_ctime >= since and status.st_size:
                    yield from _check_file(inner, read_file(entry.path))
        except OSError:
            continue


def _check_file(path: str, content: bytes) -> Iterator[Finding]:
    rule = check_path(path)
    if rule in WATCHED_RULES:
        yield Finding(path, rule, "while the role was applied")
    for found in find_keys(path, content):
        yield Finding(path, found.rule, f"{found.detail}, while the role was applied", found.digest)


def read_file(path: str) -> bytes:
    """Return a regular file's content; never follows a link, never waits for a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
