"""Roll one role of an environment: the lease, the ledger and the outcome around it."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.ledger.ledger import RollRecord, operator
from toolkit.model import SmokeCheck
from toolkit.roll import lease
from toolkit.roll.prepare import Wanted, gather_inputs, is_current, need_role, prepare_roll
from toolkit.roll.recover import settle
from toolkit.roll.run import Crew, Roll, RollOrder, RollReport
from toolkit.roll.site import Site


@dataclass(frozen=True, slots=True)
class RollResult:
    """How a roll ended.

    Attributes:
        roll: Its name; empty when there was nothing to do.
        outcome: `rolled`, `discarded`, `rolled-back`, `unchanged` or `failed`.
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
    """Run the smoke tests against the machines that serve.

    Args:
        site: Where.
        role: Which role; all of them when None.

    Raises:
        NotFound: The environment has no such role.
    """
    if role is not None:
        need_role(site, role)
    checks: list[SmokeCheck] = []
    for name, deployment in site.environment.deployments.items():
        if role in {None, name}:
            machines = [one for one in site.provider.machines() if one.role == name]
            checks += site.smoke.test(machines, deadline_s=deployment.timeouts.smoke_s)
    return checks


def plan_only(site: Site, role: str, wanted: Wanted) -> RollOrder | None:
    """Return what a roll would do, or None when there is nothing to do."""
    inputs = gather_inputs(site, role)
    if is_current(site, role, wanted, inputs):
        return None
    return prepare_roll(site, role, wanted, inputs, roll_id="next")


def roll_role(site: Site, role: str, wanted: Wanted) -> RollResult:
    """Roll one role; an expected failure is part of the result, not raised.

    Raises:
        LeaseHeld: Another process is changing the environment.
        ConfigurationError: The environment is not up, or a setting or secret is wrong.
    """
    began = time.monotonic()
    with lease.held(site.ledger, site.environment.name, doing=f"a roll of {role}") as held:
        settle(site, held)
        inputs = gather_inputs(site, role)
        if is_current(site, role, wanted, inputs):
            digest = wanted.image.digest
            return RollResult(
                "", "unchanged", role, digest, digest, (), RollReport(),
                time.monotonic() - began, None,
            )  # fmt: skip
        order = prepare_roll(site, role, wanted, inputs, roll_id=f"roll-{secrets.token_hex(3)}")
        previous = next((order.records[name].image for name in order.plan.old), None)
        site.ledger.start_roll(
            RollRecord(
                id=order.id,
                environment=site.environment.name,
                role=role,
                image=wanted.image.digest,
                release=wanted.release.id if wanted.release else None,
                previous=previous,
                outcome="running",
                by=operator(),
                started=time.time(),
                ended=None,
            )
        )
        crew = Crew(site.provider, site.pools[role], site.smoke, site.ledger, held, site.progress)
        roll = Roll(order, crew)
        error: ToolkitError | None = None
        try:
            roll.run()
        except ToolkitError as caught:
            error = caught
        finally:
            report = roll.report
            if report.outcome == "running":
                report.outcome = "failed"
            result = RollResult(
                order.id,
                report.outcome,
                role,
                wanted.image.digest,
                previous,
                order.plan.new,
                report,
                time.monotonic() - began,
                error,
            )
            site.ledger.end_roll(order.id, report.outcome, result.as_data())
        return result
