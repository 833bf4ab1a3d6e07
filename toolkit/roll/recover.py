"""Compare what runs with what the ledger says is meant to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import Machine, Target, TargetState, running_names, serving_addresses
from toolkit.roll.journal import Journal
from toolkit.roll.plan import WHOLE
from toolkit.roll.site import Site


def remove_orphans(
    site: Site, ledger: Ledger, *, is_serving_too: Callable[[Machine], bool] = lambda _one: False
) -> list[str]:
    """Destroy machines that are there but that the ledger does not know; return their names.

    Those that the balancer sends requests to are left alone: a `down` that was cut short may have
    forgotten the only machines that serve.

    Args:
        site: Where.
        ledger: The lease's, which refuses when that is lost.
        is_serving_too: Whether one that serves goes all the same, once it has drained.
    """
    serving = serving_orphans(site)
    draining = [one for one in serving if is_serving_too(one)]
    orphans = [one for one in find_orphans(site) if one not in serving or one in draining]
    names = [one.name for one in orphans]
    if orphans:
        site.progress.note(f"removing machines that nothing knows: {', '.join(names)}")
        journal = Journal(ledger, {"environment": site.environment.name}, scope="gc")
        with journal.effect("orphans", {"machines": names}):
            for role in sorted({one.role for one in draining}):
                withdraw(site, role, [one.address for one in draining if one.role == role])
            if site.balancer.is_running():
                for one in orphans:
                    if one.role in site.pools and one not in draining:
                        site.pools[one.role].deregister([one.address])
            # What writes to a volume gets the time to end well.
            keeping = {one.role for one in orphans if site.has_volumes(one.role)}
            deadline_s = site.environment.stop_s(*keeping) if keeping else 0.0
            site.provider.destroy(names, deadline_s=deadline_s)
    return names


def withdraw(site: Site, role: str, addresses: Sequence[str]) -> None:
    """Take machines out of a role's pool once they carry nothing."""
    pool = site.pools[role]
    pool.drain(addresses)
    pool.await_drained(addresses, deadline_s=site.environment.deployments[role].timeouts.drain_s)
    pool.deregister(addresses)


def serving_orphans(site: Site) -> list[Machine]:
    """Return machines that the balancer sends requests to and the ledger does not know."""
    orphans = [one for one in find_orphans(site) if one.role in site.pools]
    if not orphans or not site.balancer.is_running():
        return []
    serving = serving_addresses(target for pool in site.pools.values() for target in pool.targets())
    return [one for one in orphans if one.address in serving]


def find_orphans(site: Site) -> list[Machine]:
    """Return machines that are there but that the ledger does not know."""
    # In this order: a machine is recorded before it is launched.
    machines = site.provider.machines()
    known = {one.name for one in site.ledger.machines(site.environment.name)}
    return [one for one in machines if one.name not in known]


def is_whole(site: Site, role: str, targets: Sequence[Target]) -> bool:
    """Whether all machines of a role serve that are meant to."""
    serving = serving_addresses(targets)
    meant = [one for one in site.ledger.machines(site.environment.name, role) if not one.is_warm]
    return bool(meant) and all(one.address in serving for one in meant)


def find_drift(
    records: Sequence[MachineRecord],
    machines: Sequence[Machine],
    targets: Sequence[Target] | None,
    *,
    is_rolling: bool = False,
) -> list[str]:
    """Return how a pool differs from the ledger, a sentence for each difference. Pure.

    Args:
        records: What is meant to exist, of one role.
        machines: What the provider observes, of that role.
        targets: What the balancer reports of its pool; None when it does not run.
        is_rolling: Whether a roll has no end yet, and so may have drained a machine, or made its
            share small.
    """
    running = running_names(machines)
    placed = {target.address: target for target in targets or ()}
    sentences = []
    for record in records:
        target = placed.get(record.address)
        if record.name not in running:
            sentences.append(f"{record.name} is meant to run, and does not")
        elif record.standing == "new" and not is_rolling:
            sentences.append(f"{record.name} is meant to serve, and has not passed its tests yet")
        elif targets is None:
            continue
        elif record.is_member and target is None:
            sentences.append(f"{record.name} is meant to serve, and has no place in the pool")
        elif record.is_member and target and target.state is TargetState.MAINTENANCE:
            sentences.append(f"{record.name} is meant to serve, and is in maintenance")
        elif (
            record.is_member and target and target.state is not TargetState.READY and not is_rolling
        ):
            sentences.append(f"{record.name} is meant to serve, and the balancer has it drained")
        elif record.is_member and target and not target.is_healthy:
            sentences.append(f"{record.name} is meant to serve, and fails the balancer's check")
        elif record.is_member and target and target.percent != WHOLE and not is_rolling:
            sentences.append(
                f"{record.name} is meant to serve as much as others, and the balancer gives it "
                f"{target.percent:g} % of that"
            )
        elif record.is_warm and target and target.state is TargetState.READY:
            sentences.append(f"{record.name} is meant to be warm, and the balancer has it ready")
    known = {record.address for record in records}
    sentences += [
        f"{target.slot} has {target.address}, which is no machine of ours"
        for target in targets or ()
        if target.address not in known
    ]
    return sentences
