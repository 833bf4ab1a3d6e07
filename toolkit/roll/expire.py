"""What of an environment has had its time, and what must be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.clock import host_uptime
from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import Snapshot, running_names, serving_addresses
from toolkit.roll.journal import Journal
from toolkit.roll.lease import Lease
from toolkit.roll.past import rollback_target
from toolkit.roll.recover import find_orphans, remove_orphans, serving_orphans, withdraw
from toolkit.roll.site import Site
from toolkit.roll.wanted import previous_roll


def retire(site: Site, *, is_dry_run: bool, wait_s: float = 0.0) -> list[str]:
    """Remove machines past their warm window and machines that nothing knows.

    An environment with an unfinished roll is left alone: resuming may need what it has.

    Args:
        site: Where.
        is_dry_run: Only say which.
        wait_s: How long to queue for the lease.

    Raises:
        LeaseHeld: Another process is changing the environment.
    """
    name = site.environment.name
    if is_dry_run or not _find_retired(site):
        return _find_retired(site)
    with site.held("gc", wait_s=wait_s) as held:
        # Looked at again: a rollback may have taken a warm machine back into service meanwhile.
        expired = _find_expired(site)
        remove_machines(site, held, expired)
        is_settled = not site.ledger.unfinished_rolls(name)
        orphans = remove_orphans(site, held.ledger) if is_settled else []
        return [*(one.name for one in expired), *orphans]


def trim_snapshots(site: Site, *, keep: int, is_dry_run: bool, wait_s: float = 0.0) -> list[str]:
    """Remove older copies of volumes; return their names.

    An environment with an unfinished roll is left alone: it must not copy what it has changed.

    Args:
        site: Where.
        keep: How many of each volume stay, the newest.
        is_dry_run: Only say which.
        wait_s: How long to queue for the lease.

    Raises:
        LeaseHeld: Another process is changing the environment.
    """
    surplus = _find_surplus(site, keep)
    if surplus and not is_dry_run:
        with site.held("gc", wait_s=wait_s) as held:
            surplus = _find_surplus(site, keep)
            journal = Journal(held.ledger, {"environment": site.environment.name}, scope="gc")
            names = [one.name for one in surplus]
            with journal.effect("snapshots", {"snapshots": names}):
                site.provider.remove_snapshots(surplus)
    return [one.name for one in surplus]


def find_surplus(
    snapshots: Iterable[Snapshot], rolls: Sequence[str], *, keep: int
) -> list[Snapshot]:
    """Return which copies of volumes are older than the newest ones of each. Pure.

    Args:
        snapshots: All there are; such as no roll has made are left alone.
        rolls: Names of the rolls, newest first: the order of the copies, whatever the clock said.
        keep: How many of each volume stay.
    """
    age = {roll: number for number, roll in enumerate(rolls)}
    seen: Counter[str] = Counter()
    surplus = []
    ours = [one for one in snapshots if one.roll in age]
    for one in sorted(ours, key=lambda one: (age[one.roll], one.volume)):
        seen[one.volume] += 1
        if seen[one.volume] > keep:
            surplus.append(one)
    return surplus


def _find_surplus(site: Site, keep: int) -> list[Snapshot]:
    name = site.environment.name
    if site.ledger.unfinished_rolls(name):
        return []
    rolls = [roll.id for roll in site.ledger.rolls(name)]
    return find_surplus(site.provider.snapshots(), rolls, keep=keep)


def remove_machines(site: Site, held: Lease, machines: Sequence[MachineRecord]) -> None:
    """Remove machines that are not meant to serve; one that does all the same drains first."""
    name = site.environment.name
    for one in machines:
        place = {"environment": name, "role": one.role}
        journal = Journal(held.ledger, place, scope="gc")
        with journal.effect("retire", {"machine": one.name}):
            if one.role in site.pools and site.balancer.is_running():
                withdraw(site, one.role, [one.address])
            site.provider.destroy([one.name], deadline_s=site.environment.stop_s(one.role))
            held.ledger.forget_machines([one.name])
        held.ledger.append("machine.retired", {"machine": one.name}, **place)


def _find_retired(site: Site) -> list[str]:
    if site.ledger.unfinished_rolls(site.environment.name):
        return []
    serving = serving_orphans(site)
    orphans = [one for one in find_orphans(site) if one not in serving]
    return [*(one.name for one in _find_expired(site)), *(one.name for one in orphans)]


def _find_expired(site: Site) -> list[MachineRecord]:
    """Return the warm machines whose window has passed, or that have ended.

    One that serves, since somebody has put it back, is for `up --repair` or the next roll.
    """
    name = site.environment.name
    if site.ledger.unfinished_rolls(name):
        return []
    now = host_uptime()
    running = running_names(site.provider.machines())
    pools = site.pools.values() if site.balancer.is_running() else ()
    serving = {address for pool in pools for address in serving_addresses(pool.targets())}
    return [
        one
        for one in site.ledger.machines(name)
        if one.is_warm
        and one.address not in serving
        and ((one.warm_until or 0.0) <= now or one.name not in running)
    ]


@dataclass(frozen=True, slots=True)
class InUse:
    """What must be kept whatever its age.

    Attributes:
        images: Digests.
        releases: Release ids.
    """

    images: frozenset[str]
    releases: frozenset[str]


def find_in_use(ledger: Ledger) -> InUse:
    """Return what runs, is warm, or is what a roll or rollback may need, in every environment.

    Also in those that the project has no more, but whose machines run.
    """
    images: set[str | None] = set()
    releases: set[str | None] = set()
    for name in ledger.environments():
        machines = ledger.machines(name)
        unfinished = ledger.unfinished_rolls(name)
        needed = [
            *unfinished,
            *(previous_roll(ledger, name, role) for role in {one.role for one in machines}),
            # Where a rollback goes once such a roll is aborted.
            *(rollback_target(ledger.rolls(name, one.role), one.previous) for one in unfinished),
        ]
        # Those that an unfinished roll has removed may have to start again.
        recorded = [one for roll in unfinished for one in roll.order.get("records", ())]
        images |= {one.image for one in machines} | {one["image"] for one in recorded}
        releases |= {one.release for one in machines} | {one["release"] for one in recorded}
        for roll in needed:
            if roll is not None:
                images |= {roll.image} if roll.outcome != "running" else {roll.image, roll.previous}
                releases.add(roll.release)
    return InUse(frozenset(filter(None, images)), frozenset(filter(None, releases)))
