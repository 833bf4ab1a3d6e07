"""How long a role of one machine served nobody while that was replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.roll.journal import DONE, INTENT, UNDOING
from toolkit.roll.plan import Effect


def downtime_s(entries: Iterable[Mapping[str, Any]], *, now: float) -> float | None:
    """Return how long the one machine of a role served nobody; None when it never drained. Pure.

    A roll that was taken up has done steps again that changed nothing: on either way, forward and
    back, only the first drain and the first admission count.

    Args:
        entries: Of the roll, oldest first.
        now: Seconds since the epoch, for a downtime that ends now.
    """
    total_s: float | None = None
    since: float | None = None
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if entry["kind"] == UNDOING:
            seen.clear()
        what = entry["kind"], entry["data"].get("effect", "")
        if what in seen:
            continue
        seen.add(what)
        if what == (INTENT, Effect.DRAIN) and since is None:
            since, total_s = entry["time"], total_s or 0.0
        elif what == (DONE, Effect.ADMIT) and since is not None:
            since, total_s = None, (total_s or 0.0) + max(entry["time"] - since, 0.0)
    if since is not None:
        total_s = (total_s or 0.0) + max(now - since, 0.0)
    return total_s
