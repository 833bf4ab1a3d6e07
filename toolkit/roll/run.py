"""Carry out a roll, and leave the pool in order however it ends."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toolkit.errors import OutsideError, RolledBack, SmokeTestsFailed, ToolkitError
from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import LaunchOrder, SmokeCheck
from toolkit.ports import MachineProvider, Pool, SmokeRunner
from toolkit.progress import Progress, step
from toolkit.project.model import Timeouts
from toolkit.roll.lease import Lease
from toolkit.roll.plan import Effect, RollPlan, Step, plan_undo

LINE_LIMIT = 240
"""Characters of a failed test's message in an error; the ledger has the whole."""


@dataclass(frozen=True, slots=True)
class Crew:
    """The collaborators of a roll."""

    provider: MachineProvider
    pool: Pool
    smoke: SmokeRunner
    ledger: Ledger
    lease: Lease
    progress: Progress


@dataclass(frozen=True, slots=True)
class RollOrder:
    """One roll of one role.

    Attributes:
        id: Name of the roll.
        environment: Where.
        role: Which role.
        plan: What to do.
        launches: Machine name to launch order: of the new machines, and of the old ones where
            undoing may have to start them again.
        records: Machine name to what the ledger holds of it, of old and new machines.
        timeouts: Deadlines of the steps.
    """

    id: str
    environment: str
    role: str
    plan: RollPlan
    launches: Mapping[str, LaunchOrder]
    records: Mapping[str, MachineRecord]
    timeouts: Timeouts


@dataclass(slots=True)
class RollReport:
    """What was observed during a roll.

    Attributes:
        outcome: `rolled`, `discarded` or `rolled-back`.
        smoke: Every smoke test's outcome.
        seconds: Effect to seconds spent on it.
        downtime_s: For a stateful role, how long its pool served nobody.
    """

    outcome: str = "running"
    smoke: list[SmokeCheck] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    downtime_s: float | None = None


class Roll:
    """One roll in progress.

    Args:
        order: What to do.
        crew: With whom.
    """

    def __init__(self, order: RollOrder, crew: Crew) -> None:
        self._order = order
        self._crew = crew
        self._begun: list[Step] = []
        self._drained_at: float | None = None
        self.report = RollReport()

    def run(self) -> RollReport:
        """Do all steps.

        Raises:
            SmokeTestsFailed: New machines failed and were discarded; nothing was registered.
            RolledBack: A later step failed; the old machines serve again.
            ToolkitError: Undoing failed too, or old machines could not be removed.
        """
        plan = self._order.plan
        try:
            for one in plan.switch:
                self._do(one)
        except BaseException as error:
            self._undo(error)
            raise self._verdict(error) from error
        self._crew.ledger.append("roll.switched", {"machines": list(plan.new)}, **self._place())
        for one in plan.finish:
            self._do(one)
        self.report.outcome = "rolled"
        return self.report

    def restore(self) -> None:
        """Do the steps up to the switch and undo nothing: the machines are meant to exist."""
        for one in self._order.plan.switch:
            self._do(one)

    def _undo(self, cause: BaseException) -> None:
        self._crew.progress.note(f"undoing: {_first_line(cause)}")
        for one in plan_undo(self._order.plan, tuple(self._begun)):
            self._do(one)
        self.report.outcome = "rolled-back" if self._has_registered else "discarded"

    def _verdict(self, cause: BaseException) -> BaseException:
        if not isinstance(cause, ToolkitError):
            return cause
        if self._has_registered:
            return RolledBack(f"rolled back: {cause.message}", hint=cause.hint)
        if isinstance(cause, SmokeTestsFailed):
            return cause
        # A machine that does not even start has failed before its first test.
        return SmokeTestsFailed(
            f"new machines did not come up and were discarded: {cause.message}", hint=cause.hint
        )

    @property
    def _has_registered(self) -> bool:
        """Whether the balancer was told of a new machine."""
        return any(
            one.effect is Effect.REGISTER and set(one.machines) & set(self._order.plan.new)
            for one in self._begun
        )

    def _do(self, one: Step) -> None:
        """Intent, act, observe, commit."""
        self._begun.append(one)
        crew, what = self._crew, f"{one.effect} {', '.join(one.machines)}"
        crew.lease.renew()
        record = {"effect": one.effect.value, "machines": list(one.machines)}
        crew.ledger.append("effect.intent", record, **self._place())
        began = time.monotonic()
        with step(crew.progress, what):
            _ACTIONS[one.effect](self, one.machines)
        seconds = time.monotonic() - began
        self.report.seconds[one.effect.value] += seconds
        crew.ledger.append("effect.done", {**record, "seconds": round(seconds, 3)}, **self._place())

    def _launch(self, machines: Sequence[str]) -> None:
        orders = [self._order.launches[name] for name in machines]
        ledger, provider = self._crew.ledger, self._crew.provider
        known = {record.name for record in ledger.machines(self._order.environment)}
        records = self._order.records
        ledger.add_machines(
            [replace(records[n], standing="new") for n in machines if n not in known]
        )
        provider.publish({order.image for order in orders})
        provider.launch(orders)
        provider.await_running(machines, deadline_s=self._order.timeouts.boot_s)

    def _smoke(self, machines: Sequence[str]) -> None:
        live = [one for one in self._crew.provider.machines() if one.name in machines]
        missing = set(machines) - {one.name for one in live}
        if missing:
            raise OutsideError(f"{', '.join(sorted(missing))} disappeared before being tested")
        checks = list(self._crew.smoke.test(live, deadline_s=self._order.timeouts.smoke_s))
        self.report.smoke.extend(checks)
        failed = [check for check in checks if not check.is_passed]
        if failed:
            shown = "\n".join(
                f"  {check.machine}: {check.name}: {_last_line(check.message)}" for check in failed
            )
            raise SmokeTestsFailed(
                f"{len(failed)} of {len(checks)} smoke tests failed:\n{shown}",
                hint="the pool is as it was; the messages in full are in 'toolkit history --json'",
            )

    def _register(self, machines: Sequence[str]) -> None:
        self._crew.pool.register(self._addresses(machines))

    def _await_healthy(self, machines: Sequence[str]) -> None:
        self._crew.pool.await_healthy(
            self._addresses(machines), deadline_s=self._order.timeouts.healthy_s
        )

    def _admit(self, machines: Sequence[str]) -> None:
        self._crew.pool.admit(self._addresses(machines))
        self._crew.ledger.set_standing(list(machines), "member")
        if self._drained_at is not None and self._order.plan.strategy == "stateful":
            self.report.downtime_s = time.monotonic() - self._drained_at

    def _drain(self, machines: Sequence[str]) -> None:
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        self._crew.pool.drain(self._addresses(machines))

    def _await_drained(self, machines: Sequence[str]) -> None:
        is_drained = self._crew.pool.await_drained(
            self._addresses(machines), deadline_s=self._order.timeouts.drain_s
        )
        if not is_drained:
            self._crew.progress.note(
                f"{', '.join(machines)} still carried requests after "
                f"{self._order.timeouts.drain_s:g} s; removed all the same"
            )

    def _deregister(self, machines: Sequence[str]) -> None:
        self._crew.pool.deregister(self._addresses(machines))

    def _destroy(self, machines: Sequence[str]) -> None:
        self._crew.provider.destroy(machines, deadline_s=self._order.timeouts.stop_s)
        self._crew.ledger.forget_machines(list(machines))

    def _addresses(self, machines: Sequence[str]) -> list[str]:
        return [self._order.records[name].address for name in machines]

    def _place(self) -> dict[str, Any]:
        return {
            "environment": self._order.environment,
            "role": self._order.role,
            "roll": self._order.id,
        }


_ACTIONS: Mapping[Effect, Callable[[Roll, Sequence[str]], None]] = {
    Effect.LAUNCH: Roll._launch,
    Effect.SMOKE: Roll._smoke,
    Effect.REGISTER: Roll._register,
    Effect.AWAIT_HEALTHY: Roll._await_healthy,
    Effect.ADMIT: Roll._admit,
    Effect.DRAIN: Roll._drain,
    Effect.AWAIT_DRAINED: Roll._await_drained,
    Effect.DEREGISTER: Roll._deregister,
    Effect.DESTROY: Roll._destroy,
}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    line = (errors or lines or ["it gave no message"])[0].removeprefix("E").strip()
    return line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}…"
