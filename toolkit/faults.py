"""Failpoints: named places at which tests kill the toolkit.

A failpoint is where a crash would hurt most: just before an effect, between the effect and the
record of it, and just after the record. They cost one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

VARIABLE = "TOOLKIT_FAILPOINT"
"""`NAME` or `NAME:COUNT`: the process kills itself when it gets there for the COUNT-th time."""

MOMENTS = ("intended", "acted", "committed")
"""The three failpoints of every effect."""

EFFECTS: Mapping[str, tuple[str, ...]] = {
    "bake": ("layer", "image", "release"),
    "up": ("network", "balancer"),
    "down": ("balancer", "machines", "network"),
    "roll": (
        "snapshot",
        "launch",
        "smoke",
        "hook",
        "register",
        "await-healthy",
        "weigh",
        "admit",
        "drain",
        "watch",
        "await-drained",
        "keep-warm",
        "deregister",
        "destroy",
    ),
    "rotate": ("renew", "revoke", "certificate"),
    "gc": ("retire", "orphans", "snapshots", "store"),
    "repair": ("places",),
}
"""Every effect by name. An effect that is not listed here is a bug, and raises at once."""


def names() -> tuple[str, ...]:
    """Return all failpoints, `SCOPE.EFFECT.MOMENT`."""
    return tuple(
        f"{scope}.{effect}.{moment}"
        for scope, effects in EFFECTS.items()
        for effect in effects
        for moment in MOMENTS
    )


_reached: dict[str, int] = {}


def reach(scope: str, effect: str, moment: str) -> None:
    """Die here if a test asked for it.

    Raises:
        KeyError: The effect is not listed.
    """
    if effect not in EFFECTS[scope]:
        raise KeyError(f"the effect {scope}.{effect} is not listed in EFFECTS")
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    name = f"{scope}.{effect}.{moment}"
    wanted_name, _, count = wanted.partition(":")
    if wanted_name == name:
        _reached[name] = _reached.get(name, 0) + 1
        if _reached[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
