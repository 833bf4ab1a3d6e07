"""End a roll that was cut short without going on or back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.roll.journal import SWITCHED, UNDOING
from toolkit.roll.plan import RollPlan, plan_from_data


def end_removed(ledger: Ledger, roll: RollRecord) -> None:
    """End a roll whose environment is being removed, and leave one version in the ledger.

    Should this command be cut short too, `up` brings back what the ledger has: the machines that
    served before the roll, or those that serve after it if they alone did already. They count as
    untested, so that `up` has them serve wherever the roll had left them.
    """
    plan = plan_from_data(roll.order["plan"])
    kinds = {entry["kind"] for entry in ledger.roll_entries(roll.id)}
    is_forward = SWITCHED in kinds and UNDOING not in kinds
    reason = {"reason": "the environment was removed"}
    _end(ledger, roll, plan, "failed", reason, kept=plan.new if is_forward else plan.old)


def end_left(ledger: Ledger, roll: RollRecord, serving: Collection[str]) -> list[str]:
    """End a roll as it stands: machines that serve are members, of whichever version.

    Where none serves, those of before are meant to, and `up` tries.

    Args:
        ledger: The lease's.
        roll: Which.
        serving: Addresses that the balancer sends requests to.

    Returns:
        Names of the machines that stay.
    """
    plan = plan_from_data(roll.order["plan"])
    records = {one["name"]: MachineRecord(**one) for one in roll.order["records"]}
    kept = [name for name in (*plan.old, *plan.new) if records[name].address in serving]
    standing = "member" if kept else "new"
    kept = kept or list(plan.old)
    reason = {"reason": "left as it stood", "machines": kept}
    _end(ledger, roll, plan, "left", reason, kept=kept, standing=standing)
    return kept


def _end(
    ledger: Ledger,
    roll: RollRecord,
    plan: RollPlan,
    outcome: str,
    data: dict[str, Any],
    *,
    kept: Collection[str],
    standing: str = "new",
) -> None:
    records = [MachineRecord(**one) for one in roll.order["records"]]
    ledger.end_roll(
        roll.id,
        outcome,
        data,
        keep=[
            replace(one, standing=standing, warm_until=None) for one in records if one.name in kept
        ],
        forget=[name for name in (*plan.old, *plan.new) if name not in kept],
    )
