"""Roll, resume, abort, roll back: the lease, the ledger and the outcome around a roll."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from toolkit import interrupt
from toolkit.errors import (
    ConfigurationError,
    LeaseHeld,
    OutsideError,
    ToolkitError,
)
from toolkit.model import SmokeCheck
from toolkit.roll import past
from toolkit.roll.conduct import (
    RollResult,
    begin,
    conclude,
    need_role_of,
    restore_order,
    unchanged,
)
from toolkit.roll.ending import end_left
from toolkit.roll.expire import remove_machines
from toolkit.roll.group import RollGroup, not_gone_back
from toolkit.roll.inputs import Inputs
from toolkit.roll.lease import Lease
from toolkit.roll.observe import need_settled
from toolkit.roll.order import RollOrder, RollReport
from toolkit.roll.past import Estimate
from toolkit.roll.prepare import gather_inputs, in_the_way, is_current, prepare_return, prepare_roll
from toolkit.roll.recover import remove_orphans, serving_orphans
from toolkit.roll.restore import restore
from toolkit.roll.run import Roll
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted, choose, choose_previous, need_role

NOT_BEGUN = "the next one was not begun; run the same command again to go on"
"""For the operator who stopped between two rolls."""

RESUMED = "roll.resumed"
"""Kind of the entry that says who took a roll up."""


def need_up(site: Site) -> None:
    """Refuse to go on with an environment that is not up.

    Raises:
        ConfigurationError: It is not up.
        OutsideError: Its network or its balancer is gone.
    """
    name = site.environment.name
    if not site.ledger.is_up(name):
        raise ConfigurationError(f"{name} is not up", hint=f"run 'toolkit up {name}'")
    if not site.network.is_up():
        raise OutsideError(
            f"{name} is recorded as up, and its network is gone or not as configured",
            hint=f"run 'toolkit up {name}'",
        )
    if not site.balancer.is_running():
        raise OutsideError(
            f"{name} is recorded as up, and its balancer does not run",
            hint=f"run 'toolkit up {name}'",
        )


def need_known(site: Site) -> None:
    """Refuse to go on while machines serve that the ledger does not know.

    Raises:
        ConfigurationError: Some do: a `down` was cut short.
    """
    strangers = [one.name for one in serving_orphans(site)]
    if strangers:
        name = site.environment.name
        raise ConfigurationError(
            f"{', '.join(strangers)} serve in {name}, and the ledger does not know them: a 'down' "
            "was cut short",
            hint=f"'toolkit up {name}' brings back what is meant to serve in their place, "
            f"'toolkit down {name}' removes everything",
        )


def test_live(site: Site, role: str | None) -> list[SmokeCheck]:
    """Run the smoke tests against the machines that run; one that is meant to and is gone fails.

    Args:
        site: Where.
        role: Which role; all of them when None.

    Raises:
        NotFound: The environment has no such role.
        ConfigurationError: Nothing runs there: that no test failed would say nothing.
    """
    if role is not None:
        need_role(site, role)
    checks: list[SmokeCheck] = []
    environment = site.environment.name
    for name, deployment in site.environment.deployments.items():
        if role in {None, name}:
            machines = [one for one in site.provider.machines() if one.role == name]
            checks += site.smoke.test(machines, deadline_s=deployment.timeouts.smoke_s)
            found = {one.name for one in machines}
            checks += [
                SmokeCheck(one.name, "machine", False, 0.0, "it is meant to run, and does not")
                for one in site.ledger.machines(environment, name)
                if one.name not in found
            ]
    if not checks:
        where = environment if role is None else f"{environment} {role}"
        raise ConfigurationError(
            f"nothing runs in {where}", hint=f"run 'toolkit roll {where}' first"
        )
    return checks


def plan_only(site: Site, role: str, wanted: Wanted) -> RollOrder | None:
    """Return what a roll would do, or None when there is nothing to do."""
    inputs = gather_inputs(site, role)
    if is_current(site, role, wanted, inputs):
        return None
    return _prepare(site, role, wanted, inputs, roll_id="next", held=None)


def estimate(site: Site, role: str, order: RollOrder | None) -> Estimate | None:
    """Return about how long a roll will take, from earlier ones of its kind."""
    if order is None:
        return None
    name = site.environment.name
    entries = site.ledger.entries(environment=name, role=role, kinds=[RESUMED])
    resumed = {entry["roll"] for entry in entries}
    return past.estimate(site.ledger.rolls(name, role), order.plan, resumed=resumed)


def roll_role(
    site: Site,
    role: str,
    wanted: Wanted,
    *,
    wait_s: float = 0.0,
    group: RollGroup | None = None,
) -> RollResult:
    """Roll one role; an expected failure is part of the result, not raised.

    Args:
        site: Where.
        role: Which role.
        wanted: What it is to run.
        wait_s: How long to queue for the lease.
        group: Of which command's rolls it is one.

    Raises:
        LeaseHeld: Another process is changing the environment.
        UnfinishedRoll: An earlier roll was cut short.
        ConfigurationError: A setting or secret is wrong.
        Interrupted: The operator asked to stop.
    """
    began = time.monotonic()
    interrupt.check(NOT_BEGUN)
    with site.held(f"a roll of {role}", wait_s=wait_s) as held:
        need_settled(site)
        need_known(site)
        # It was chosen before the lease was held: `gc` may have removed it since.
        site.images.image(wanted.image.digest)
        remove_orphans(site, held.ledger)
        inputs = gather_inputs(site, role)
        if is_current(site, role, wanted, inputs):
            return unchanged(role, wanted.image.digest, began)
        order = _prepare(site, role, wanted, inputs, roll_id=_new_id(), held=held)
        return begin(site, held, order, wanted, began, is_rollback=False, group=group)


def roll_back(
    site: Site,
    role: str,
    to: str | None,
    *,
    wait_s: float = 0.0,
    leaving: str | None = None,
    group: RollGroup | None = None,
) -> RollResult:
    """Return a role to an earlier image; to warm machines where there are any.

    Args:
        site: Where.
        role: Which role.
        to: Digest; the image that served before the present one when None, but none that an
            earlier rollback has left.
        wait_s: How long to queue for the lease.
        leaving: Digest that served when the operator asked; where somebody else has gone back from
            it by the time that the lease is had, nothing is done.
        group: Of which command's rolls it is one.

    Raises:
        NotFound: There is no earlier image.
        Interrupted: The operator asked to stop.
    """
    began = time.monotonic()
    interrupt.check(not_gone_back(site, role, group))
    with site.held(f"a rollback of {role}", wait_s=wait_s) as held:
        need_settled(site)
        need_known(site)
        remove_orphans(site, held.ledger)
        if to is None and leaving is not None and _has_left(site, role, leaving):
            site.progress.note(f"{role} has gone back meanwhile: somebody else was first")
            return unchanged(role, serving_image(site, role) or leaving, began)
        wanted, order = plan_back(site, role, to, roll_id=_new_id(), held=held)
        if order is None:
            return unchanged(role, wanted.image.digest, began)
        return begin(site, held, order, wanted, began, is_rollback=True, group=group)


def _has_left(site: Site, role: str, image: str) -> bool:
    """Whether the role has gone back from an image, and nothing was rolled since."""
    rolls = site.ledger.rolls(site.environment.name, role)
    last = next((one for one in rolls if one.outcome == "rolled"), None)
    return last is not None and last.is_rollback and last.previous == image


def serving_image(site: Site, role: str) -> str | None:
    """Return the digest of the image that a role is meant to serve with, the newest if several."""
    members = site.members(role)
    return members[-1].image if members else None


def plan_back(
    site: Site, role: str, to: str | None, *, roll_id: str = "next", held: Lease | None = None
) -> tuple[Wanted, RollOrder | None]:
    """Return what a rollback would do; None when the wanted image serves already.

    Args:
        site: Where.
        role: Which role.
        to: As for `roll_back`.
        roll_id: Name of the roll.
        held: The lease, where it is to be done; None to change nothing.
    """
    need_role(site, role)
    wanted = choose(site, [role], to, None)[role] if to is not None else choose_previous(site, role)
    inputs = gather_inputs(site, role)
    if is_current(site, role, wanted, inputs):
        return wanted, None
    order = prepare_return(site, role, wanted.image.digest, inputs, roll_id=roll_id)
    return wanted, order or _prepare(site, role, wanted, inputs, roll_id=roll_id, held=held)


def _prepare(
    site: Site, role: str, wanted: Wanted, inputs: Inputs, *, roll_id: str, held: Lease | None
) -> RollOrder:
    """Return the order of a roll; warm machines go before it whose addresses it needs.

    All but `held`, the lease, or None to change nothing, are as for `prepare_roll`.
    """
    gone = in_the_way(site, role)
    if gone and held is not None:
        site.smoke.need_tests(role)
        names = ", ".join(one.name for one in gone)
        site.progress.note(f"the network is full: {names}, which were warm, make room")
        remove_machines(site, held, gone)
    return prepare_roll(site, role, wanted, inputs, roll_id=roll_id, gone=gone)


def resume(site: Site, *, wait_s: float = 0.0) -> list[RollResult]:
    """Go on with whatever was cut short: forward, or back when it was on its way back."""
    return _take_up(site, Roll.resume, doing="resume", wait_s=wait_s)


def abort(site: Site, *, wait_s: float = 0.0) -> list[RollResult]:
    """Go back from whatever was cut short; nothing to do gives an empty list."""
    return _take_up(
        site, lambda roll: roll.back(reason="aborted by the operator"), doing="abort", wait_s=wait_s
    )


def leave(site: Site, *, wait_s: float = 0.0) -> list[RollResult]:
    """End whatever was cut short as it stands: machines that serve stay, of both versions.

    For when neither version can be had in full. All others go, and the next roll replaces those
    that stay.
    """
    name = site.environment.name
    results = []
    with site.held("abort --leave", wait_s=wait_s) as held:
        for record in site.ledger.unfinished_rolls(name):
            began = time.monotonic()
            need_role_of(site, record)
            site.progress.note(f"leave {record.id} of {record.role}")
            left = end_left(site, held.ledger, record)
            error = None
            if not left.serving:
                error = ToolkitError(
                    f"nothing of {record.role} serves",
                    hint=f"'toolkit up {name}' tries to have the machines of before serve",
                )
            results.append(
                RollResult(
                    record.id, "left", record.role, record.image, record.previous, left.kept,
                    RollReport("left"), time.monotonic() - began, error,
                )
            )  # fmt: skip
        remove_orphans(site, held.ledger)
    return results


def _take_up(
    site: Site, proceed: Callable[[Roll], RollReport], *, doing: str, wait_s: float
) -> list[RollResult]:
    name = site.environment.name
    results = []
    with site.held(doing, wait_s=wait_s) as held:
        for record in site.ledger.unfinished_rolls(name):
            interrupt.check(NOT_BEGUN)
            began = time.monotonic()
            order = restore_order(site, record)
            site.progress.note(f"{doing} {record.id} of {record.role}")
            if doing == "resume":
                # A way back has an entry of its own.
                place = {"environment": name, "role": record.role, "roll": record.id}
                held.ledger.append(RESUMED, {"started_by": record.by}, **place)
            results.append(conclude(site, held, order, record, proceed, began))
        remove_orphans(site, held.ledger)
        return [_complete(site, held, result) for result in results]


def _complete(site: Site, held: Lease, result: RollResult) -> RollResult:
    """Have every machine serve that is meant to after a roll was taken up.

    The roll knows those alone that it had touched. Where the host has restarted meanwhile, `up` has
    left the others for now.
    """
    try:
        restore(site, [result.role], held)
    except LeaseHeld:
        raise
    except ToolkitError as error:
        hint = f"the roll has ended; 'toolkit up {site.environment.name}' tries again"
        error.hint = f"{error.hint}; {hint}" if error.hint else hint
        return replace(result, error=result.error or error)
    return result


def _new_id() -> str:
    return f"roll-{secrets.token_hex(3)}"
