"""Roll, resume, abort, roll back: the lease, the ledger and the outcome around a roll."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from toolkit import interrupt
from toolkit.clock import Instant
from toolkit.errors import (
    ConfigurationError,
    Interrupted,
    LeaseHeld,
    ToolkitError,
)
from toolkit.ledger.ledger import MachineRecord, RollRecord, operator
from toolkit.model import SmokeCheck
from toolkit.roll import past
from toolkit.roll.downtime import downtime_s
from toolkit.roll.effects import Crew, RollOrder, RollReport
from toolkit.roll.lease import Lease
from toolkit.roll.observe import need_settled
from toolkit.roll.past import Estimate
from toolkit.roll.plan import plan_from_data, plan_to_data
from toolkit.roll.prepare import (
    Wanted,
    choose,
    choose_previous,
    gather_inputs,
    is_current,
    make_order,
    need_role,
    prepare_return,
    prepare_roll,
)
from toolkit.roll.recover import remove_orphans
from toolkit.roll.restore import restore
from toolkit.roll.run import Roll
from toolkit.roll.site import Site

NOT_BEGUN = "the next one was not begun; run the same command again to go on"
"""For the operator who stopped between two rolls."""


@dataclass(frozen=True, slots=True)
class RollResult:
    """How a roll ended.

    Attributes:
        roll: Its name; empty when there was nothing to do.
        outcome: `rolled`, `discarded`, `rolled-back` or `unchanged`.
        role: Which role.
        image: Digest of the image rolled in.
        previous: Digest of the image that served before.
        machines: Machines that were started for it.
        report: What was observed.
        seconds: Wall time of the whole.
        error: Why it did not end as `rolled` or `unchanged`.
    """

    roll: str
    outcome: str
    role: str
    image: str
    previous: str | None
    machines: tuple[str, ...]
    report: RollReport
    seconds: float
    error: ToolkitError | None

    def as_data(self) -> dict[str, Any]:
        """Return the result in the form of the contract."""
        checks = [asdict(check) for check in self.report.smoke]
        steps = {name: round(value, 3) for name, value in self.report.seconds.items()}
        return {
            "roll": self.roll or None,
            "outcome": self.outcome,
            "role": self.role,
            "image": self.image,
            "previous": self.previous,
            "machines": list(self.machines),
            "smoke": {
                "passed": sum(check["is_passed"] for check in checks),
                "failed": sum(not check["is_passed"] for check in checks),
                "checks": checks,
            },
            "seconds": {**steps, "total": round(self.seconds, 3)},
            "downtime_s": self.report.downtime_s,
            "watched": {"requests": self.report.requests, "errors": self.report.errors},
            "error": self.error.message if self.error else None,
        }


def need_up(site: Site) -> None:
    """Refuse to go on with an environment that is not up.

    Raises:
        ConfigurationError: It is not up, or its network or balancer is gone.
    """
    name = site.environment.name
    is_up = site.ledger.is_up(name)
    if not is_up or not site.network.is_up() or not site.balancer.is_running():
        state = "is recorded as up but its network or balancer is gone" if is_up else "is not up"
        raise ConfigurationError(f"{name} {state}", hint=f"run 'toolkit up {name}'")


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
    return prepare_roll(site, role, wanted, inputs, roll_id="next")


def estimate(site: Site, role: str, order: RollOrder | None) -> Estimate | None:
    """Return about how long a roll will take, from earlier ones of its kind."""
    if order is None:
        return None
    return past.estimate(site.ledger.rolls(site.environment.name, role), order.plan)


def roll_role(site: Site, role: str, wanted: Wanted, *, wait_s: float = 0.0) -> RollResult:
    """Roll one role; an expected failure is part of the result, not raised.

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
        # It was chosen before the lease was held: `gc` may have removed it since.
        site.images.image(wanted.image.digest)
        remove_orphans(site, held.ledger)
        inputs = gather_inputs(site, role)
        if is_current(site, role, wanted, inputs):
            return _unchanged(role, wanted.image.digest, began)
        order = prepare_roll(site, role, wanted, inputs, roll_id=_new_id())
        return _begin(site, held, order, wanted, began, is_rollback=False)


def roll_back(site: Site, role: str, to: str | None, *, wait_s: float = 0.0) -> RollResult:
    """Return a role to an earlier image; to warm machines where there are any.

    Args:
        site: Where.
        role: Which role.
        to: Digest; the image that served before the present one when None, but none that an
            earlier rollback has left.
        wait_s: How long to queue for the lease.

    Raises:
        NotFound: There is no earlier image.
        Interrupted: The operator asked to stop.
    """
    began = time.monotonic()
    interrupt.check(NOT_BEGUN)
    with site.held(f"a rollback of {role}", wait_s=wait_s) as held:
        need_settled(site)
        wanted, order = plan_back(site, role, to, roll_id=_new_id())
        if order is None:
            return _unchanged(role, wanted.image.digest, began)
        return _begin(site, held, order, wanted, began, is_rollback=True)


def plan_back(
    site: Site, role: str, to: str | None, *, roll_id: str = "next"
) -> tuple[Wanted, RollOrder | None]:
    """Return what a rollback would do; None when the wanted image serves already."""
    need_role(site, role)
    wanted = choose(site, [role], to, None)[role] if to is not None else choose_previous(site, role)
    inputs = gather_inputs(site, role)
    if is_current(site, role, wanted, inputs):
        return wanted, None
    order = prepare_return(site, role, wanted.image.digest, inputs, roll_id=roll_id)
    return wanted, order or prepare_roll(site, role, wanted, inputs, roll_id=roll_id)


def resume(site: Site, *, wait_s: float = 0.0) -> list[RollResult]:
    """Go on with whatever was cut short: forward, or back when it was on its way back."""
    return _take_up(site, Roll.resume, doing="resume", wait_s=wait_s)


def abort(site: Site, *, wait_s: float = 0.0) -> list[RollResult]:
    """Go back from whatever was cut short; nothing to do gives an empty list."""
    return _take_up(
        site, lambda roll: roll.back(reason="aborted by the operator"), doing="abort", wait_s=wait_s
    )


def _take_up(
    site: Site, proceed: Callable[[Roll], RollReport], *, doing: str, wait_s: float
) -> list[RollResult]:
    name = site.environment.name
    results = []
    with site.held(doing, wait_s=wait_s) as held:
        for record in site.ledger.unfinished_rolls(name):
            interrupt.check(NOT_BEGUN)
            began = time.monotonic()
            order = _restore_order(site, record)
            site.progress.note(f"{doing} {record.id} of {record.role}")
            results.append(_conclude(site, held, order, record, proceed, began))
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


def _begin(
    site: Site, held: Lease, order: RollOrder, wanted: Wanted, began: float, *, is_rollback: bool
) -> RollResult:
    record = RollRecord(
        id=order.id,
        environment=order.environment,
        role=order.role,
        image=wanted.image.digest,
        release=wanted.release.id if wanted.release else None,
        previous=next((order.records[name].image for name in order.plan.old), None),
        outcome="running",
        by=operator(),
        started=time.time(),
        ended=None,
        order={
            "plan": plan_to_data(order.plan),
            "records": [asdict(one) for one in order.records.values()],
            "held": list(order.held),
        },
        is_rollback=is_rollback,
    )
    held.ledger.start_roll(record)
    return _conclude(site, held, order, record, Roll.forward, began)


def _conclude(
    site: Site,
    held: Lease,
    order: RollOrder,
    record: RollRecord,
    proceed: Callable[[Roll], RollReport],
    began: float,
) -> RollResult:
    """Let a roll proceed and record its end; one that has none stays unfinished."""
    crew = Crew(
        site.provider, site.pools[order.role], site.smoke, site.hooks, held.ledger, site.progress
    )
    roll = Roll(order, crew)
    error: ToolkitError | None = None
    hint = f"'toolkit resume {order.environment}' or 'toolkit abort {order.environment}' goes on"
    try:
        with interrupt.at_safe_points(hint):
            proceed(roll)
    except ToolkitError as caught:
        if roll.report.outcome == "running":
            if not isinstance(caught, (Interrupted, LeaseHeld)):
                caught.hint = f"{caught.hint}; {hint}" if caught.hint else hint
            raise
        error = caught
    if order.plan.strategy == "stateful":
        # From the ledger: what went before may have been seen by a process that was killed.
        entries = held.ledger.roll_entries(order.id)
        roll.report.downtime_s = downtime_s(entries, now=Instant.now())
    result = RollResult(
        order.id,
        roll.report.outcome,
        order.role,
        record.image,
        record.previous,
        order.plan.new,
        roll.report,
        time.monotonic() - began,
        error,
    )
    held.ledger.end_roll(order.id, result.outcome, result.as_data())
    return result


def _restore_order(site: Site, record: RollRecord) -> RollOrder:
    environment = site.environment
    if record.role not in environment.deployments:
        raise ConfigurationError(
            f"{record.id} is a roll of {record.role}, which {environment.name} has no more",
            hint=f"bring it back in {environment.directory / 'toolkit.yml'} until the roll has "
            f"ended; 'toolkit down {environment.name}' ends the roll too, with everything else",
        )
    data: Mapping[str, Any] = record.order
    return make_order(
        site,
        record.role,
        plan_from_data(data["plan"]),
        [MachineRecord(**one) for one in data["records"]],
        gather_inputs(site, record.role),
        roll_id=record.id,
        # A roll of before this was recorded had none.
        held=data.get("held", ()),
    )


def _unchanged(role: str, digest: str, began: float) -> RollResult:
    seconds = time.monotonic() - began
    return RollResult("", "unchanged", role, digest, digest, (), RollReport(), seconds, None)


def _new_id() -> str:
    return f"roll-{secrets.token_hex(3)}"
