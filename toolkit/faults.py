"""Failpoints: named places at which tests kill the toolkit.

A failpoint is where a crash would hurt most: just before an effect, between the effect and the
record of it, and just after the record. They cost one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "TOOLKIT_FAILPOINT"
"""`NAME` or `NAME:COUNT`: the process kills itself when it gets there for the COUNT-th time."""

MOMENTS = ("intended", "acted", "committed")
"""The three failpoints of every effect."""

_reached: dict[str, int] = {}


def reach(name: str) -> None:
    """Die here if a test asked for it."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    wanted_name, _, count = wanted.partition(":")
    if wanted_name == name:
        _reached[name] = _reached.get(name, 0) + 1
        if _reached[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
