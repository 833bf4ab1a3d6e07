"""What runs and what serves, from live observation beside the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ToolkitError, UnfinishedRoll
from toolkit.ledger.ledger import MachineRecord, RollRecord
from toolkit.model import Machine, MachineState, Target, TargetState
from toolkit.roll.journal import DONE, INTENT
from toolkit.roll.plan import Effect, step_from_data
from toolkit.roll.recover import find_drift
from toolkit.roll.site import Site

SMOKE = {"new": "pending", "member": "passed", "warm": "passed"}
"""A machine's standing in the ledger to what that says about its smoke tests."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What an operator should know of an environment.

    Attributes:
        role: Whom it concerns; None for the whole environment.
        text: A sentence.
    """

    role: str | None
    text: str


def observe(site: Site, role: str, remarks: Sequence[Remark] = ()) -> dict[str, Any]:
    """Return the state of one role in the form of the contract.

    `serving` and `draining` are what the balancer reports; a machine's `state` is its
    provider's word, refined by the balancer's.

    Args:
        site: Where.
        role: Which role.
        remarks: On the environment, as `find_remarks` returns them.
    """
    environment = site.environment.name
    deployment = site.environment.deployments[role]
    live = {one.name: one for one in site.provider.machines() if one.role == role}
    records = {one.name: one for one in site.ledger.machines(environment, role)}
    targets = {}
    if site.balancer.is_running():
        targets = {target.address: target for target in site.pools[role].targets()}
    unfinished = [one for one in site.ledger.unfinished_rolls(environment) if one.role == role]
    passed = {name for one in unfinished for name in _passed(site, one)}
    machines = [
        _machine(name, live.get(name), records.get(name), targets, has_passed=name in passed)
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
        # Beyond the contract.
        "wanted": deployment.machines,
        "unfinished": unfinished[0].id if unfinished else None,
        "remarks": [one.text for one in remarks if one.role in {None, role}],
    }


def find_remarks(site: Site) -> list[Remark]:
    """Return what differs from the ledger or the definition, and rolls that were cut short."""
    name = site.environment.name
    records = site.ledger.machines(name)
    has_balancer = site.balancer.is_running()
    if not has_balancer and not records and not site.ledger.is_up(name):
        return [Remark(None, f"it is not up: 'toolkit up {name}' starts it")]
    remarks = []
    if not site.ledger.is_up(name):
        remarks.append(
            Remark(
                None,
                "it runs, and is not recorded as up, since an 'up' or a 'down' was cut short: "
                f"'toolkit up {name}' or 'toolkit down {name}' ends what was begun",
            )
        )
    elif not has_balancer:
        remarks.append(Remark(None, f"the balancer does not run: 'toolkit up {name}' starts it"))
    remarks += _drift(site, has_balancer=has_balancer)
    if has_balancer and not site.balancer.is_current():
        remarks.append(
            Remark(
                None,
                "the balancer serves an older certificate than its vault has: "
                f"'toolkit up {name}' takes the new one up",
            )
        )
    gone = [one.name for one in records if one.role not in site.environment.deployments]
    if gone:
        remarks.append(
            Remark(
                None,
                f"{', '.join(gone)} belong to roles that {name} has no more; they run on until "
                f"'toolkit down {name}'",
            )
        )
    return remarks + unfinished(site)


def _drift(site: Site, *, has_balancer: bool) -> Iterator[Remark]:
    name, live = site.environment.name, site.provider.machines()
    undecided = {roll.role for roll in site.ledger.unfinished_rolls(name)}
    is_for_up = False
    for role, pool in site.pools.items():
        found = find_drift(
            site.ledger.machines(name, role),
            [one for one in live if one.role == role],
            pool.targets() if has_balancer else None,
            is_rolling=role in undecided,
        )
        yield from (Remark(role, text) for text in found)
        # `up` leaves a role with an unfinished roll to resume or abort.
        is_for_up = is_for_up or (bool(found) and role not in undecided)
    if is_for_up and has_balancer:
        yield Remark(None, f"'toolkit up {name} --repair' puts this right")
    for role, deployment in site.environment.deployments.items():
        meant = [one for one in site.ledger.machines(name, role) if not one.is_warm]
        members, roll = [one for one in meant if one.is_member], f"'toolkit roll {name} {role}'"
        if role in undecided or not members:
            continue
        if len({one.image for one in members}) > 1:
            yield Remark(role, f"{role} has machines of several images: {roll} replaces them all")
        elif len({one.inputs for one in members}) > 1:
            yield Remark(
                role,
                f"{role} has machines that were told different settings or secrets: {roll} "
                "replaces them all",
            )
        if len(meant) != deployment.machines:
            yield Remark(
                role,
                f"{role} has {len(meant)} of the {deployment.machines} machines that are "
                f"configured: {roll} starts so many",
            )


def unfinished(site: Site) -> list[Remark]:
    """Return which rolls have no end yet, with what can be done about them."""
    name = site.environment.name
    return [
        Remark(
            roll.role if roll.role in site.environment.deployments else None,
            f"{roll.id} of {roll.role} is under way or was cut short: then 'toolkit resume {name}' "
            f"goes on with it, 'toolkit abort {name}' goes back",
        )
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


def _passed(site: Site, roll: RollRecord) -> set[str]:
    """Return the machines that have passed their smoke tests in a roll, and run since then."""
    passed: set[str] = set()
    for entry in site.ledger.roll_entries(roll.id):
        if entry["kind"] not in {INTENT, DONE}:
            continue
        step = step_from_data(entry["data"])
        if step.effect is Effect.LAUNCH and entry["kind"] == INTENT:
            passed.difference_update(step.machines)
        elif step.effect is Effect.SMOKE and entry["kind"] == DONE:
            passed.update(step.machines)
    return passed


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
    *,
    has_passed: bool,
) -> dict[str, Any]:
    address = live.address if live and live.address else record.address if record else ""
    since = record.since if record else live.since if live else None
    return {
        "name": name,
        "address": address,
        "state": _state(live, targets.get(address)),
        "smoke": "passed" if has_passed else SMOKE[record.standing] if record else "unknown",
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
