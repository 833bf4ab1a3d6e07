"""End a roll that was cut short without going on or back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.roll.journal import SWITCHED, UNDOING, Journal
from toolkit.roll.plan import plan_from_data
from toolkit.roll.site import Site


def end_removed(ledger: Ledger, roll: RollRecord) -> None:
    """End a roll whose environment is being removed, and leave one version in the ledger.

    Should this command be cut short too, `up` brings back what the ledger has: the machines that
    served before the roll, or those that serve after it if they alone did already. They count as
    untested, so that `up` has them serve wherever the roll had left them.
    """
    plan = plan_from_data(roll.order["plan"])
    kinds = {entry["kind"] for entry in ledger.roll_entries(roll.id)}
    is_forward = SWITCHED in kinds and UNDOING not in kinds
    kept, gone = (plan.new, plan.old) if is_forward else (plan.old, plan.new)
    reason = {"reason": "the environment was removed"}
    _end(ledger, roll, "failed", reason, kept=kept, forgotten=gone)


def end_left(site: Site, ledger: Ledger, roll: RollRecord) -> list[str]:
    """End a roll as it stands: machines that serve stay, of whichever version, and all others go.

    Where none serves, those of before are meant to, and `up` tries. A machine's share of the
    traffic is left as it is.

    Args:
        site: Where; it has the roll's role.
        ledger: The lease's.
        roll: Which.

    Returns:
        Names of the machines that stay.
    """
    plan = plan_from_data(roll.order["plan"])
    address = {one["name"]: one["address"] for one in roll.order["records"]}
    pool, timeouts = site.pools[roll.role], site.environment.deployments[roll.role].timeouts
    targets = pool.targets()
    serving = {target.address for target in targets if target.is_serving}
    served = [name for name in (*plan.old, *plan.new) if address[name] in serving]
    kept = served or list(plan.old)
    placed = {target.address for target in targets}
    leaving = [name for name in (*plan.old, *plan.new) if name not in kept]
    # A warm machine that has made room is no quick way back any more.
    leaving += [name for name in plan.retired if address[name] not in placed]
    addresses = [address[name] for name in leaving]
    place = {"environment": roll.environment, "role": roll.role, "roll": roll.id}
    journal, data = Journal(ledger, place, scope="roll"), {"machines": leaving}
    with journal.effect("drain", data):
        # They may still be answering what they got before.
        pool.drain(addresses)
        pool.await_drained(addresses, deadline_s=timeouts.drain_s)
    with journal.effect("deregister", data):
        pool.deregister(addresses)
    with journal.effect("destroy", data):
        site.provider.destroy(leaving, deadline_s=timeouts.stop_s)
    reason = {"reason": "left as it stood", "machines": kept}
    standing = "member" if served else "new"
    _end(ledger, roll, "left", reason, kept=kept, standing=standing, forgotten=leaving)
    return kept


def _end(
    ledger: Ledger,
    roll: RollRecord,
    outcome: str,
    data: dict[str, Any],
    *,
    kept: Collection[str],
    forgotten: Collection[str],
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
        forget=list(forgotten),
    )
