"""Bring an environment back to what the ledger says of it, from whatever was left behind."""

from __future__ import annotations

from toolkit.model import MachineState
from toolkit.roll.lease import Lease
from toolkit.roll.site import Site


def settle(site: Site, held: Lease) -> None:
    """Undo or finish a roll that was killed. The caller holds the lease.

    Machines that were never admitted are discarded; when all new ones were, it is the old ones
    that go. What to do is decided from the ledger and done to what is observed, so it may be
    repeated.
    """
    ledger, name = site.ledger, site.environment.name
    for roll in ledger.rolls(name):
        if roll.outcome != "running":
            continue
        held.renew()
        switched = ledger.entries(environment=name, kinds=["roll.switched"])
        is_switched = any(entry["roll"] == roll.id for entry in switched)
        prefix = f"{roll.role}-{roll.id.removeprefix('roll-')}-"
        recorded = ledger.machines(name, roll.role)
        new = [one for one in recorded if one.name.startswith(prefix)]
        old = [one for one in recorded if not one.name.startswith(prefix)]
        leaving, staying = (old, new) if is_switched else (new, old)
        site.progress.note(
            f"{roll.id} of {roll.role} was interrupted: "
            + ("finishing it" if is_switched else "undoing it")
        )
        timeouts = site.environment.deployments[roll.role].timeouts
        pool = site.pools[roll.role]
        known = {target.address for target in pool.targets()}
        pool.admit([one.address for one in staying if one.address in known])
        gone = [one.address for one in leaving if one.address in known]
        pool.drain(gone)
        pool.await_drained(gone, deadline_s=timeouts.drain_s)
        pool.deregister(gone)
        names = [one.name for one in leaving]
        site.provider.destroy(names, deadline_s=timeouts.stop_s)
        ledger.forget_machines(names)
        ledger.end_roll(roll.id, "rolled" if is_switched else "rolled-back", {"recovered": True})
    remove_orphans(site)


def remove_orphans(site: Site) -> None:
    """Destroy machines that run but that the ledger does not know."""
    known = {one.name for one in site.ledger.machines(site.environment.name)}
    orphans = [one.name for one in site.provider.machines() if one.name not in known]
    if orphans:
        site.progress.note(f"removing machines that nothing knows: {', '.join(orphans)}")
        site.provider.destroy(orphans, deadline_s=0)


def is_running(site: Site, name: str) -> bool:
    """Whether a machine runs, as its provider observes it."""
    return any(
        one.name == name and one.state is not MachineState.STOPPED
        for one in site.provider.machines()
    )
