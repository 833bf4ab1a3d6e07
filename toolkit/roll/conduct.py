"""Carry a roll out and record its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
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
from toolkit.roll.downtime import downtime_s
from toolkit.roll.group import RollGroup
from toolkit.roll.lease import Lease
from toolkit.roll.order import Crew, RollOrder, RollReport
from toolkit.roll.plan import plan_from_data, plan_to_data
from toolkit.roll.prepare import gather_inputs, make_order
from toolkit.roll.run import Roll
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted


@dataclass(frozen=True, slots=True)
class RollResult:
    """How a roll ended.

    Attributes:
        roll: Its name; empty when there was nothing to do.
        outcome: `rolled`, `discarded`, `rolled-back`, `unchanged` or `left`.
        role: Which role.
        image: Digest of the image rolled in.
        previous: Digest of the image that served before.
        machines: Machines that were started for it; of one that was left, those that stay.
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


def begin(
    site: Site,
    held: Lease,
    order: RollOrder,
    wanted: Wanted,
    began: float,
    *,
    is_rollback: bool,
    group: RollGroup | None,
) -> RollResult:
    """Record a roll, and let it proceed.

    Args:
        site: Where.
        held: The lease.
        order: What to do.
        wanted: What is to run after it.
        began: When the operator asked, by the monotonic clock.
        is_rollback: Whether the operator goes back because of what serves now.
        group: Of which command's rolls it is one.
    """
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
            "absent": list(order.absent),
            "in_service": list(order.in_service),
            "group": asdict(group) if group else None,
        },
        is_rollback=is_rollback,
    )
    held.ledger.start_roll(record)
    return conclude(site, held, order, record, Roll.forward, began)


def conclude(
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
        with interrupt.at_safe_points(hint, tell=site.progress.urge):
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


def need_role_of(site: Site, record: RollRecord) -> None:
    """Refuse to take up a roll of a role that is gone.

    Raises:
        ConfigurationError: The environment has it no more.
    """
    environment = site.environment
    if record.role not in environment.deployments:
        raise ConfigurationError(
            f"{record.id} is a roll of {record.role}, which {environment.name} has no more",
            hint=f"bring it back in {environment.directory / 'toolkit.yml'} until the roll has "
            f"ended; 'toolkit down {environment.name}' ends the roll too, with everything else",
        )


def restore_order(site: Site, record: RollRecord) -> RollOrder:
    """Return the order of a roll that was cut short, with today's configuration and secrets.

    Raises:
        ConfigurationError: Its role is gone, or a setting or a secret is wrong.
    """
    need_role_of(site, record)
    data: Mapping[str, Any] = record.order
    return make_order(
        site,
        record.role,
        plan_from_data(data["plan"]),
        [MachineRecord(**one) for one in data["records"]],
        gather_inputs(site, record.role),
        roll_id=record.id,
        # A roll of before these were recorded had none.
        held=data.get("held", ()),
        absent=data.get("absent", ()),
        in_service=data.get("in_service", ()),
    )


def unchanged(role: str, digest: str, began: float) -> RollResult:
    """Return the result where the image serves already."""
    seconds = time.monotonic() - began
    return RollResult("", "unchanged", role, digest, digest, (), RollReport(), seconds, None)
