"""How long a role of one machine served nobody while that was replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.clock import Instant
from toolkit.roll.journal import DONE, INTENT, UNDOING
from toolkit.roll.plan import Effect


def downtime_s(entries: Iterable[Mapping[str, Any]], *, now: Instant) -> float | None:
    """Return how long the one machine of a role served nobody; None when it never drained. Pure.

    A roll that was taken up has done steps again that changed nothing: on either way, forward and
    back, only the first drain and the first admission count.

    Args:
        entries: Of the roll, oldest first.
        now: For a downtime that ends now.
    """
    total_s: float | None = None
    began: Instant | None = None
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if entry["kind"] == UNDOING:
            seen.clear()
        what = entry["kind"], entry["data"].get("effect", "")
        if what in seen:
            continue
        seen.add(what)
        if what == (INTENT, Effect.DRAIN) and began is None:
            began, total_s = _instant(entry), total_s or 0.0
        elif what == (DONE, Effect.ADMIT) and began is not None:
            total_s = (total_s or 0.0) + _instant(entry).since(began)
            began = None
    if began is not None:
        total_s = (total_s or 0.0) + now.since(began)
    return total_s


def _instant(entry: Mapping[str, Any]) -> Instant:
    if "at" in entry["data"]:
        return Instant.from_data(entry["data"]["at"])
    # An entry of before that was recorded has the wall clock's time alone.
    return Instant(entry["time"], 0.0, f"entry {entry['sequence']}")
