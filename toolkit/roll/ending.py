"""End a roll that was cut short without going on or back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolkit.errors import Unhealthy
from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.model import TargetState, held_addresses, running_names
from toolkit.ports import Pool
from toolkit.roll.journal import SWITCHED, UNDOING, Journal
from toolkit.roll.plan import RECOVERY_LIMIT_S, RollPlan, plan_from_data
from toolkit.roll.site import Site


@dataclass(frozen=True, slots=True)
class Left:
    """How a roll was left.

    Attributes:
        kept: Machines that are meant to serve after it.
        serving: Those of them that do.
    """

    kept: tuple[str, ...]
    serving: tuple[str, ...]


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
    _end(ledger, roll, "failed", reason, kept=kept, untested=kept, forgotten=gone)


def end_left(site: Site, ledger: Ledger, roll: RollRecord) -> Left:
    """End a roll as it stands: machines that serve stay, of whichever version, and all others go.

    Where fewer serve than before the roll, old machines that it has drained and that are well serve
    again. Such as somebody had withdrawn before it, and that are still there, stay as they are.
    Where none serves, those of before are meant to, and `up` tries. A machine's share of the
    traffic is left as it is.

    Args:
        site: Where; it has the roll's role.
        ledger: The lease's.
        roll: Which.
    """
    plan = plan_from_data(roll.order["plan"])
    address = {one["name"]: one["address"] for one in roll.order["records"]}
    pool, timeouts = site.pools[roll.role], site.environment.deployments[roll.role].timeouts
    state = {target.address: target.state for target in pool.targets()}
    place = {"environment": roll.environment, "role": roll.role, "roll": roll.id}
    journal = Journal(ledger, place, scope="roll")

    running = running_names(site.provider.machines())
    held = [
        name
        for name in roll.order.get("held", ())
        if name in running and state.get(address[name]) not in {None, TargetState.READY}
    ]
    well = _find_well(pool, plan, running, address)
    serving = [name for name in well if state[address[name]] is TargetState.READY]
    machines = ledger.machines(roll.environment, roll.role)
    tested = {one.name for one in machines if one.standing != "new"}
    drained = [n for n in well if n in plan.old and n in tested and n not in {*serving, *held}]
    before = len(plan.old) - len(roll.order.get("absent", ()))
    missing = before - len(serving)
    returning = drained[: max(missing, 0)]
    if returning:
        with journal.effect("admit", {"machines": returning}):
            pool.admit([address[name] for name in returning])
    serving += returning
    # More than there were, or are configured, would leave no places for the next roll.
    new = [name for name in serving if name in plan.new]
    room = max(before, len(plan.new)) - len(new)
    serving = [*[name for name in serving if name in plan.old][:room], *new]
    kept = [*serving, *held] if serving else list(plan.old)
    leaving = [name for name in (*plan.old, *plan.new) if name not in kept]
    # A warm machine that has made room is no quick way back any more.
    leaving += [name for name in plan.retired if address[name] not in state]
    addresses, data = [address[name] for name in leaving], {"machines": leaving}
    with journal.effect("drain", data):
        # They may still be answering what they got before.
        pool.drain(addresses)
        pool.await_drained(addresses, deadline_s=timeouts.drain_s)
    with journal.effect("deregister", data):
        pool.deregister(addresses)
    with journal.effect("destroy", data):
        site.provider.destroy(leaving, deadline_s=timeouts.stop_s)
    reason = {"reason": "left as it stood", "machines": kept}
    # One that somebody has withdrawn has passed as little, or as much, as before.
    untested = {*held} - tested if serving else {*kept}
    _end(ledger, roll, "left", reason, kept=kept, untested=untested, forgotten=leaving)
    return Left(tuple(kept), tuple(serving))


def _find_well(
    pool: Pool, plan: RollPlan, running: Collection[str], address: Mapping[str, str]
) -> list[str]:
    """Return the machines of a plan that run, have a place and pass the balancer's check."""
    targets = pool.targets()
    placed = {target.address for target in targets} - held_addresses(targets)
    found = [n for n in (*plan.old, *plan.new) if n in running and address[n] in placed]
    try:
        pool.await_healthy([address[name] for name in found], deadline_s=RECOVERY_LIMIT_S)
    except Unhealthy as error:
        return [name for name in found if address[name] not in error.addresses]
    return found


def _end(
    ledger: Ledger,
    roll: RollRecord,
    outcome: str,
    data: dict[str, Any],
    *,
    kept: Collection[str],
    forgotten: Collection[str],
    untested: Collection[str],
) -> None:
    records = [MachineRecord(**one) for one in roll.order["records"]]
    ledger.end_roll(
        roll.id,
        outcome,
        data,
        keep=[
            replace(one, standing="new" if one.name in untested else "member", warm_until=None)
            for one in records
            if one.name in kept
        ],
        forget=list(forgotten),
    )
