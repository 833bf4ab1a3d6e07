"""What of an environment has had its time, and what must be kept."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.ledger.ledger import MachineRecord
from toolkit.model import MachineState
from toolkit.roll import lease
from toolkit.roll.lease import Lease, host_uptime
from toolkit.roll.prepare import previous_image
from toolkit.roll.recover import find_orphans, remove_orphans
from toolkit.roll.site import Site

STOP_DEADLINE_S = 20.0


def retire(site: Site, *, is_dry_run: bool) -> list[str]:
    """Remove machines past their warm window and machines that nothing knows.

    An environment with an unfinished roll is left alone: resuming may need what it has.

    Raises:
        LeaseHeld: Another process is changing the environment.
    """
    name = site.environment.name
    if is_dry_run or not _find_retired(site):
        return _find_retired(site)
    with lease.held(site.ledger, name, doing="gc") as held:
        # Looked at again: a rollback may have taken a warm machine back into service meanwhile.
        expired = _find_expired(site)
        remove_machines(site, held, expired)
        orphans = remove_orphans(site) if not site.ledger.unfinished_rolls(name) else []
        return [*(one.name for one in expired), *orphans]


def remove_machines(site: Site, held: Lease, machines: Sequence[MachineRecord]) -> None:
    """Remove machines that serve nobody."""
    name = site.environment.name
    for one in machines:
        if one.role in site.pools and site.balancer.is_running():
            site.pools[one.role].deregister([one.address])
        site.provider.destroy([one.name], deadline_s=STOP_DEADLINE_S)
        held.ledger.forget_machines([one.name])
        held.ledger.append(
            "machine.retired", {"machine": one.name}, environment=name, role=one.role
        )


def _find_retired(site: Site) -> list[str]:
    if site.ledger.unfinished_rolls(site.environment.name):
        return []
    return [*(one.name for one in _find_expired(site)), *find_orphans(site)]


def _find_expired(site: Site) -> list[MachineRecord]:
    """Return the warm machines whose window has passed, or that have ended."""
    name = site.environment.name
    if site.ledger.unfinished_rolls(name):
        return []
    now = host_uptime()
    running = {
        one.name for one in site.provider.machines() if one.state is not MachineState.STOPPED
    }
    return [
        one
        for one in site.ledger.machines(name)
        if one.standing == "warm" and ((one.warm_until or 0.0) <= now or one.name not in running)
    ]


def images_in_use(site: Site) -> set[str]:
    """Return digests of images that run, are warm, or that a roll or rollback may need."""
    name = site.environment.name
    images = {one.image for one in site.ledger.machines(name)}
    images |= {one.image for one in site.provider.machines() if one.image}
    for roll in site.ledger.unfinished_rolls(name):
        images |= {image for image in (roll.image, roll.previous) if image}
    for role in site.environment.deployments:
        previous = previous_image(site, role)
        if previous:
            images.add(previous)
    return images
