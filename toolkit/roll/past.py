"""What earlier rolls of a role tell: where a rollback goes, how long a roll takes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.ledger.ledger import RollRecord
    from toolkit.roll.plan import RollPlan

MOST_ROLLS = 9
"""How many of the newest rolls an estimate is taken from: settings and images change."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """About how long a roll will take.

    Attributes:
        seconds: Median of earlier rolls of the same kind.
        rolls: How many these were.
    """

    seconds: float
    rolls: int


def rollback_target(rolls: Sequence[RollRecord], current: str | None) -> RollRecord | None:
    """Return the roll to whose image a rollback goes, or None when there is nothing earlier.

    A rollback takes the version that it leaves, and whatever came after its target, out of the
    succession of versions; so the next one goes further back, and none returns to a version that
    was left, until that is rolled again, or named, on purpose.

    Args:
        rolls: Of one role, newest first.
        current: Digest of the image that serves now.
    """
    served: list[RollRecord] = []
    left: set[str] = set()
    standing: RollRecord | None = None
    for roll in reversed(rolls):
        if roll.outcome == "left":
            standing = roll
        elif standing and roll.outcome == "rolled":
            # What an operator let stand has served, if this roll replaced it.
            served += [standing] if standing.image == roll.previous else []
            standing = None
        if roll.outcome != "rolled" or roll.image == roll.previous:
            continue
        left.discard(roll.image)
        if roll.is_rollback:
            left |= {roll.previous} if roll.previous else set()
            images = [one.image for one in served]
            if roll.image in images:
                del served[_last(images, roll.image) + 1 :]
                continue
            served = [one for one in served if one.image != roll.previous]
        served.append(roll)
    images = [one.image for one in served]
    if current in images:
        del served[_last(images, current) :]
    for roll in reversed(served):
        if roll.image != current and roll.image not in left:
            return roll
    return None


def estimate(
    rolls: Sequence[RollRecord], plan: RollPlan, *, resumed: Collection[str] = ()
) -> Estimate | None:
    """Return about how long a plan will take, or None when no earlier roll was of its kind.

    Of its kind are rolls that succeeded, by the same strategy (`warm` is one), and that had
    machines to replace if the plan has: the first roll of a role drains nobody.

    Args:
        rolls: Of the plan's role, newest first.
        plan: What is to be done.
        resumed: Names of rolls that were cut short, and took as long as nobody looked.
    """
    seconds = [
        roll.ended - roll.started
        for roll in rolls
        if roll.outcome == "rolled"
        and roll.id not in resumed
        and roll.ended is not None
        # A clock that was set back.
        and roll.ended > roll.started
        and roll.order["plan"]["strategy"] == plan.strategy
        and bool(roll.order["plan"]["old"]) == bool(plan.old)
    ][:MOST_ROLLS]
    return Estimate(median(seconds), len(seconds)) if seconds else None


def _last(images: Sequence[str], image: str) -> int:
    return len(images) - 1 - list(reversed(images)).index(image)
