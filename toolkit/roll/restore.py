"""Have machines serve again that are meant to."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.errors import LeaseHeld, ToolkitError, Unhealthy
from toolkit.ledger.ledger import MachineRecord
from toolkit.model import TargetState, ready_addresses, running_names
from toolkit.roll.expire import remove_machines
from toolkit.roll.inputs import Inputs
from toolkit.roll.journal import Journal
from toolkit.roll.lease import Lease
from toolkit.roll.order import Crew
from toolkit.roll.plan import RECOVERY_LIMIT_S, WHOLE, RollPlan
from toolkit.roll.prepare import gather_inputs, make_order
from toolkit.roll.recover import is_whole
from toolkit.roll.run import Roll
from toolkit.roll.site import Site


def restore(site: Site, roles: Sequence[str], held: Lease, *, is_repair: bool = False) -> list[str]:
    """Start and admit the members of pools that do not serve; one that fails holds up no other.

    Args:
        site: Where; its network and its balancer run.
        roles: Whose pools.
        held: The lease.
        is_repair: Whether places that were changed by hand are put right too.

    Returns:
        Names of the machines that were started or admitted.

    Raises:
        ToolkitError: Some failed and stay out of their pools; the message has the words of each.
    """
    restored: list[str] = []
    failures: list[ToolkitError] = []
    for role in roles:
        try:
            absent = _find_absent(site, role, held, is_repair=is_repair)
            ill = _find_ill(site, role) if is_repair else []
            absent += [one for one in ill if one not in absent]
            if absent:
                failed = _introduce(site, role, absent, ill, gather_inputs(site, role), held)
                failures += failed.values()
                restored += [one.name for one in absent if one.name not in failed]
            if is_repair:
                _rest_warm(site, role, held)
        except LeaseHeld:
            raise
        except ToolkitError as error:
            failures.append(error)
    if failures:
        if restored:
            site.progress.note(f"brought back: {', '.join(restored)}")
        raise _sum_up(failures)
    return restored


def _find_absent(site: Site, role: str, held: Lease, *, is_repair: bool) -> list[MachineRecord]:
    """Return the members of a pool that do not serve, after warm machines that ended are gone."""
    name = site.environment.name
    records = held.ledger.machines(name, role)
    machines = site.provider.machines()
    running = running_names(machines)
    dead = [one for one in records if one.is_warm and one.name not in running]
    remove_machines(site, held, dead)
    # One that is recorded as new was on its way back when an earlier `up` was cut short.
    members = [one for one in records if not one.is_warm]
    pool = site.pools[role]
    targets = pool.targets()
    states = {target.address: target.state for target in targets}
    if is_repair:
        known = {one.address for one in records}
        # A machine that the ledger has forgotten may serve until others do.
        strangers = sorted(set(states) - known - {one.address for one in machines})
        # What is in maintenance gets a place again, and with it a whole share.
        uneven = [
            one.address
            for one in targets
            if one.percent != WHOLE
            and one.address in known
            and one.state is not TargetState.MAINTENANCE
        ]
        journal = Journal(held.ledger, {"environment": name, "role": role}, scope="repair")
        with journal.effect("places", {"addresses": strangers, "weights": uneven}):
            pool.deregister(strangers)
            pool.weigh(uneven, WHOLE)
    return [
        one
        for one in members
        if (is_repair or states.get(one.address) is not TargetState.MAINTENANCE)
        and (
            one.name not in running
            or not one.is_member
            or one.address not in states
            or (is_repair and states[one.address] is not TargetState.READY)
        )
    ]


def _rest_warm(site: Site, role: str, held: Lease) -> None:
    """Drain warm machines that somebody has put back into service, once all others serve."""
    pool = site.pools[role]
    targets = pool.targets()
    ready = ready_addresses(targets)
    records = held.ledger.machines(site.environment.name, role)
    warm = [one for one in records if one.is_warm and one.address in ready]
    if not warm:
        return
    if not is_whole(site, role, targets):
        names = ", ".join(one.name for one in warm)
        site.progress.note(f"{names} serve on, since not all of {role} do that are meant to")
        return
    addresses = [one.address for one in warm]
    place = {"environment": site.environment.name, "role": role}
    journal = Journal(held.ledger, place, scope="repair")
    with journal.effect("places", {"drained": addresses}):
        pool.drain(addresses)


def _find_ill(site: Site, role: str) -> list[MachineRecord]:
    """Return the members that run and are to serve, and fail the balancer's check for a while."""
    pool, running = site.pools[role], running_names(site.provider.machines())
    members = {one.address: one for one in site.members(role) if one.name in running}
    ready = [
        target.address
        for target in pool.targets()
        if target.state is TargetState.READY and target.address in members
    ]
    try:
        pool.await_healthy(ready, deadline_s=RECOVERY_LIMIT_S)
    except Unhealthy as error:
        return [members[address] for address in ready if address in error.addresses]
    return []


def _introduce(
    site: Site,
    role: str,
    machines: Sequence[MachineRecord],
    ill: Sequence[MachineRecord],
    inputs: Inputs,
    held: Lease,
) -> dict[str, ToolkitError]:
    """Have machines serve, the ill ones started anew.

    Returns:
        Machine name to what went wrong with it, of those that do not serve.
    """
    plan = RollPlan("restore", (), tuple(one.name for one in machines), (), ())
    order = make_order(site, role, plan, machines, inputs, roll_id="up")
    crew = Crew(site.provider, site.pools[role], site.smoke, site.hooks, held.ledger, site.progress)
    return Roll(order, crew).restore(ill={one.name for one in ill})


def _sum_up(failures: Sequence[ToolkitError]) -> ToolkitError:
    """Return the first error, and so its exit code, with the words of all."""
    first = failures[0]
    if len(failures) > 1:
        first.message = "\n".join(
            ["not everything came back:", *(error.message for error in failures)]
        )
    return first
