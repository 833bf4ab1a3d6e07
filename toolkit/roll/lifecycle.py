"""Start and remove an environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.model import MachineState, TargetState
from toolkit.progress import step
from toolkit.roll.effects import Crew
from toolkit.roll.expire import remove_machines
from toolkit.roll.journal import Journal
from toolkit.roll.lease import Lease
from toolkit.roll.plan import RollPlan, plan_restore
from toolkit.roll.prepare import gather_inputs, make_order
from toolkit.roll.recover import remove_orphans
from toolkit.roll.run import Roll
from toolkit.roll.site import Site

STOP_DEADLINE_S = 20.0


def bring_up(site: Site, *, is_repair: bool = False) -> list[str]:
    """Have the environment's network and balancer run, and every machine that is meant to.

    Machines that are gone, after the host has restarted for instance, start again from the same
    image, pass their smoke tests again and are admitted again.

    Args:
        site: Where.
        is_repair: Whether places that were changed by hand are put right too.

    Returns:
        Names of the machines that were started or admitted.

    Raises:
        ConfigurationError: The balancer cannot run as configured, since a public port is taken
            for instance; an environment that was not up is left as it was.
        ToolkitError: A machine that came back failed; it stays out of its pool.
    """
    name = site.environment.name
    with site.held("up") as held:
        journal = Journal(held.ledger, {"environment": name}, scope="up")
        was_up = site.ledger.is_up(name)
        try:
            with step(site.progress, f"network of {name}"), journal.effect("network", {}):
                site.network.up()
            with step(site.progress, f"balancer of {name}"), journal.effect("balancer", {}):
                site.balancer.ensure()
        except ToolkitError:
            if not was_up:
                site.balancer.stop()
                site.network.down()
                site.remove_runtime()
            raise
        if not was_up:
            held.ledger.set_up(name, is_up=True)
        remove_orphans(site, held.ledger)
        # What a roll that was cut short has left half-way is for resume or abort to decide.
        unfinished = {roll.role for roll in site.ledger.unfinished_rolls(name)}
        return [
            machine
            for role in site.environment.deployments
            if role not in unfinished
            for machine in _restore(site, role, held, is_repair=is_repair)
        ]


def take_down(site: Site, *, data: Iterable[Path] = ()) -> list[str]:
    """Remove the environment's machines, balancer and network.

    Args:
        site: Where.
        data: Directories of its volumes and their copies, if they are to go too.

    Returns:
        Names of the machines that were removed.
    """
    name = site.environment.name
    with site.held("down") as held:
        ledger = held.ledger
        journal = Journal(ledger, {"environment": name}, scope="down")
        recorded = {one.name for one in ledger.machines(name)}
        machines = sorted(recorded.union(one.name for one in site.provider.machines()))
        for roll in ledger.unfinished_rolls(name):
            ledger.end_roll(roll.id, "failed", {"reason": "the environment was removed"})
        with step(site.progress, f"balancer of {name}"), journal.effect("balancer", {}):
            site.balancer.stop()
        with (
            step(site.progress, f"{len(machines)} machines of {name}"),
            journal.effect("machines", {"machines": machines}),
        ):
            site.provider.destroy(machines, deadline_s=STOP_DEADLINE_S)
        ledger.forget_machines(machines)
        with step(site.progress, f"network of {name}"), journal.effect("network", {}):
            site.network.down()
        # Under the lease: whoever holds it next has files of its own in the same places.
        for directory in data:
            shutil.rmtree(directory, ignore_errors=True)
        site.remove_runtime()
        if ledger.is_up(name):
            ledger.set_up(name, is_up=False)
        return machines


def _restore(site: Site, role: str, held: Lease, *, is_repair: bool) -> list[str]:
    """Start and admit the members of a pool that do not serve."""
    name = site.environment.name
    records = held.ledger.machines(name, role)
    running = {
        one.name for one in site.provider.machines() if one.state is not MachineState.STOPPED
    }
    dead = [one for one in records if one.standing == "warm" and one.name not in running]
    remove_machines(site, held, dead)
    # One that is recorded as new was on its way back when an earlier `up` was cut short.
    members = [one for one in records if one.standing != "warm"]
    pool = site.pools[role]
    states = {target.address: target.state for target in pool.targets()}
    if is_repair:
        strangers = sorted(set(states) - {one.address for one in records})
        journal = Journal(held.ledger, {"environment": name, "role": role}, scope="repair")
        with journal.effect("places", {"addresses": strangers}):
            pool.deregister(strangers)
    absent = [
        one
        for one in members
        if one.name not in running
        or not one.is_member
        or one.address not in states
        or (is_repair and states[one.address] is not TargetState.READY)
    ]
    if not absent:
        return []
    names = tuple(one.name for one in absent)
    plan = RollPlan("restore", (), names, plan_restore(names), ())
    order = make_order(site, role, plan, members, gather_inputs(site, role), roll_id="up")
    crew = Crew(site.provider, pool, site.smoke, site.hooks, held.ledger, site.progress)
    Roll(order, crew).restore()
    return list(names)
