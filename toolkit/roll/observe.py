"""What runs and what serves, from live observation beside the ledger."""

from __future__ import annotations

import time
from typing import Any

from toolkit.errors import ToolkitError, UnfinishedRoll
from toolkit.ledger.ledger import MachineRecord
from toolkit.model import Machine, MachineState, Target, TargetState
from toolkit.roll.recover import find_drift
from toolkit.roll.site import Site

SMOKE = {"new": "pending", "member": "passed", "warm": "passed"}
"""A machine's standing in the ledger to what that says about its smoke tests."""


def observe(site: Site, role: str) -> dict[str, Any]:
    """Return the state of one role in the form of the contract.

    `serving` and `draining` are what the balancer reports; a machine's `state` is its
    provider's word, refined by the balancer's.
    """
    environment = site.environment.name
    deployment = site.environment.deployments[role]
    live = {one.name: one for one in site.provider.machines() if one.role == role}
    records = {one.name: one for one in site.ledger.machines(environment, role)}
    targets = {}
    if site.balancer.is_running():
        targets = {target.address: target for target in site.pools[role].targets()}
    machines = [
        _machine(name, live.get(name), records.get(name), targets)
        for name in sorted({*live, *records})
    ]
    members = [one for one in records.values() if one.is_member]
    # Of the image below: while a roll goes on there are members of both versions.
    release = members[-1].release if members else None
    roll = next(
        (one for one in site.ledger.rolls(environment, role) if one.outcome == "rolled"), None
    )
    return {
        "environment": environment,
        "role": role,
        "image": members[-1].image if members else None,
        "release": release,
        "commit": _commit(site, release) if release else None,
        "strategy": deployment.strategy,
        "machines": machines,
        "pool": {
            "name": role,
            "serving": [m["name"] for m in machines if m["state"] == "serving"],
            "draining": [m["name"] for m in machines if m["state"] == "draining"],
        },
        "since": _timestamp(min((one.since for one in members), default=None)),
        "by": roll.by if roll and members else None,
    }


def drift(site: Site) -> list[str]:
    """Return what differs from the ledger, and rolls that were cut short, as sentences."""
    name = site.environment.name
    live = site.provider.machines()
    has_balancer = site.balancer.is_running()
    undecided = {roll.role for roll in site.ledger.unfinished_rolls(name)}
    is_for_up = False
    sentences = [] if has_balancer else ["the balancer does not run: 'toolkit up' starts it"]
    for role, pool in site.pools.items():
        found = find_drift(
            site.ledger.machines(name, role),
            [one for one in live if one.role == role],
            pool.targets() if has_balancer else (),
            is_rolling=role in undecided,
        )
        sentences += found
        # `up` leaves a role with an unfinished roll to resume or abort.
        is_for_up = is_for_up or (bool(found) and role not in undecided)
    if is_for_up and has_balancer:
        sentences.append(f"'toolkit up {name} --repair' puts this right")
    sentences += [
        f"{role} has machines of several images: 'toolkit roll {name} {role}' replaces them all"
        for role in site.pools
        if role not in undecided and len({one.image for one in site.members(role)}) > 1
    ]
    if has_balancer and not site.balancer.is_current():
        sentences.append(
            "the balancer serves an older certificate than its vault has: "
            f"'toolkit up {name}' takes the new one up"
        )
    gone = [
        record.name
        for record in site.ledger.machines(name)
        if record.role not in site.environment.deployments
    ]
    if gone:
        sentences.append(
            f"{', '.join(gone)} belong to roles that {name} has no more; they run on until "
            f"'toolkit down {name}'"
        )
    return sentences + unfinished(site)


def unfinished(site: Site) -> list[str]:
    """Return which rolls have no end yet, with what can be done about them, as sentences."""
    name = site.environment.name
    return [
        f"{roll.id} of {roll.role} is under way or was cut short: then 'toolkit resume {name}' "
        f"goes on with it, 'toolkit abort {name}' goes back"
        for roll in site.ledger.unfinished_rolls(name)
    ]


def need_settled(site: Site) -> None:
    """Refuse to go on while a roll is unfinished.

    Raises:
        UnfinishedRoll: One is; the hint names the choices.
    """
    name = site.environment.name
    for roll in site.ledger.unfinished_rolls(name):
        raise UnfinishedRoll(
            f"{roll.id} of {name} {roll.role}, started by {roll.by} "
            f"{max(time.time() - roll.started, 0):.0f} s ago, was cut short",
            hint=f"'toolkit resume {name}' goes on with it, 'toolkit abort {name}' goes back",
        )


def _commit(site: Site, release: str) -> str | None:
    """Return a release's commit: from the store, or else from the ledger, which forgets nothing."""
    try:
        return site.images.release(release).commit
    except ToolkitError:
        baked = site.ledger.entries(kinds=("release.baked",))
        return next((e["data"]["commit"] for e in baked if e["data"]["release"] == release), None)


def _machine(
    name: str,
    live: Machine | None,
    record: MachineRecord | None,
    targets: dict[str, Target],
) -> dict[str, Any]:
    address = live.address if live and live.address else record.address if record else ""
    since = record.since if record else live.since if live else None
    return {
        "name": name,
        "address": address,
        "state": _state(live, targets.get(address)),
        "smoke": SMOKE[record.standing] if record else "unknown",
        "since": _timestamp(since),
    }


def _state(live: Machine | None, target: Target | None) -> str:
    if live is None or live.state is MachineState.STOPPED:
        return "stopped"
    if target is None:
        return live.state.value
    if target.state is not TargetState.READY:
        return target.state.value
    return "serving" if target.is_serving else "unhealthy"


def _timestamp(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
