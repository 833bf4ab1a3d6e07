"""Carry out a roll: go forward, and back when a step fails."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from toolkit import interrupt
from toolkit.errors import (
    Interrupted,
    LeaseHeld,
    OutsideError,
    RolledBack,
    SmokeTestsFailed,
    ToolkitError,
)
from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import LaunchOrder, MachineState, SmokeCheck
from toolkit.ports import HookRunner, MachineProvider, Pool, SmokeRunner
from toolkit.progress import Progress, step
from toolkit.project.model import Timeouts
from toolkit.roll.journal import DONE, INTENT, Journal
from toolkit.roll.plan import (
    Effect,
    RollPlan,
    Step,
    plan_restore,
    plan_undo,
    step_from_data,
    step_to_data,
)
from toolkit.roll.watch import Thresholds, difference, judge

LINE_LIMIT = 240
"""Characters of a failed test's message in an error; the ledger has the whole."""

WATCH_POLL_S = 0.25
WATCH_RENEW_S = 60.0
UNHEALTHY_LIMIT_S = 2.0
"""How long a machine that is watched, or relied on, may fail the balancer's own check."""

SWITCHED, UNDOING = "roll.switched", "roll.undoing"


@dataclass(frozen=True, slots=True)
class Crew:
    """The collaborators of a roll. The ledger refuses when the lease is lost."""

    provider: MachineProvider
    pool: Pool
    smoke: SmokeRunner
    hooks: HookRunner
    ledger: Ledger
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
        records: Machine name to what the ledger holds of it, of all machines in the plan.
        timeouts: Deadlines of the steps.
        thresholds: By which new machines are judged while they are watched.
    """

    id: str
    environment: str
    role: str
    plan: RollPlan
    launches: Mapping[str, LaunchOrder]
    records: Mapping[str, MachineRecord]
    timeouts: Timeouts
    thresholds: Thresholds


@dataclass(slots=True)
class RollReport:
    """What was observed during a roll.

    Attributes:
        outcome: `running`, then `rolled`, `discarded` or `rolled-back`.
        smoke: Every smoke test's outcome.
        seconds: Effect to seconds spent on it.
        downtime_s: For a stateful role, how long its pool served nobody.
        requests: That the new machines got while they were watched.
        errors: Of these: how many failed.
    """

    outcome: str = "running"
    smoke: list[SmokeCheck] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    downtime_s: float | None = None
    requests: int = 0
    errors: int = 0


class Roll:
    """One roll in progress, new or taken up again.

    What was begun is known from the ledger alone, so that a roll that was killed is taken up by
    another process. Going on means doing the plan again from the start: every effect sets an
    absolute state.

    Args:
        order: What to do.
        crew: With whom.
    """

    def __init__(self, order: RollOrder, crew: Crew) -> None:
        self._order = order
        self._crew = crew
        self._place = {"environment": order.environment, "role": order.role, "roll": order.id}
        self._journal = Journal(crew.ledger, self._place, scope="roll")
        self._drained_at: float | None = None
        self._admitted: list[str] = []
        self.report = RollReport()

    def forward(self) -> RollReport:
        """Do all steps; when one fails before the switch, go back.

        Raises:
            SmokeTestsFailed: New machines failed and were discarded; nothing was registered.
            RolledBack: A later step failed; the old machines serve again.
            Interrupted: The operator asked to stop; the roll can be resumed or aborted.
            ToolkitError: Going back failed too, or a step after the switch failed.
        """
        if self._has_entry(SWITCHED):
            self._restore_serving()
        else:
            try:
                for one in self._order.plan.switch:
                    interrupt.check(self._hint)
                    self._do(one)
                self._need_serving(self._order.plan.new)
            except (Interrupted, LeaseHeld):
                raise
            except ToolkitError as error:
                self.back(reason=error.message)
                raise self._verdict(error) from error
            self._note(SWITCHED, {"machines": list(self._order.plan.new)})
        for one in self._order.plan.finish:
            interrupt.check(self._hint)
            self._do(one)
        self.report.outcome = "rolled"
        return self.report

    def back(self, *, reason: str) -> RollReport:
        """Return to the machines that served before, from wherever the roll has got to.

        Args:
            reason: Why, for the ledger.

        Raises:
            ToolkitError: A step back failed; resuming tries again.
        """
        self._crew.progress.note(f"going back: {reason.splitlines()[0]}")
        # What was begun going forward is fixed by the first entry of its kind.
        begun = self._begun()
        if not self._has_entry(UNDOING):
            self._note(UNDOING, {"reason": reason})
        for one in plan_undo(self._order.plan, begun, untested=self._untested()):
            self._do(one)
        self.report.outcome = "rolled-back" if self._has_touched_pool(begun) else "discarded"
        return self.report

    def restore(self) -> None:
        """Do the steps of the switch and undo nothing: the machines are meant to exist."""
        for one in self._order.plan.switch:
            self._do(one)

    @property
    def is_undoing(self) -> bool:
        """Whether the roll was already on its way back."""
        return self._has_entry(UNDOING)

    def _restore_serving(self) -> None:
        """Have new machines serve that did when the roll was cut short; old ones go only then."""
        serving = self._serving()
        new = self._order.plan.new
        for one in plan_restore([n for n in new if self._address(n) not in serving]):
            self._do(one)

    def _need_serving(self, machines: Sequence[str]) -> None:
        """Make sure that machines which were admitted have not failed since.

        Raises:
            DeadlineExceeded: One fails the balancer's check.
        """
        self._crew.pool.await_healthy(self._addresses(machines), deadline_s=UNHEALTHY_LIMIT_S)

    def _untested(self) -> set[str]:
        """Return the old machines that do not run, or have not passed since they were started."""
        running = self._running()
        records = {one.name: one for one in self._crew.ledger.machines(self._order.environment)}
        return {
            name
            for name in self._order.plan.old
            if name not in running or name not in records or records[name].standing == "new"
        }

    def _running(self) -> set[str]:
        machines = self._crew.provider.machines()
        return {one.name for one in machines if one.state is not MachineState.STOPPED}

    def _serving(self) -> set[str]:
        return {target.address for target in self._crew.pool.targets() if target.is_serving}

    @property
    def _hint(self) -> str:
        where = self._order.environment
        return f"'toolkit resume {where}' goes on, 'toolkit abort {where}' goes back"

    def _begun(self) -> tuple[Step, ...]:
        """Return the forward steps that were at least begun, as the ledger knows them."""
        steps: list[Step] = []
        for entry in self._crew.ledger.roll_entries(self._order.id):
            if entry["kind"] == UNDOING:
                break
            if entry["kind"] == INTENT:
                steps.append(step_from_data(entry["data"]))
        return tuple(steps)

    def _has_touched_pool(self, begun: Sequence[Step]) -> bool:
        """Whether the balancer was told of a new machine."""
        new = set(self._order.plan.new)
        effects = {Effect.REGISTER, Effect.ADMIT}
        return any(one.effect in effects and new.intersection(one.machines) for one in begun)

    def _verdict(self, cause: ToolkitError) -> ToolkitError:
        if self.report.outcome == "rolled-back":
            return RolledBack(f"rolled back: {cause.message}", hint=cause.hint)
        if isinstance(cause, SmokeTestsFailed):
            return cause
        # A machine that does not even start has failed before its first test.
        return SmokeTestsFailed(
            f"new machines did not come up and were discarded: {cause.message}", hint=cause.hint
        )

    def _do(self, one: Step) -> None:
        data = step_to_data(one)
        data.pop("effect")
        began = time.monotonic()
        with (
            step(self._crew.progress, _describe(one)),
            self._journal.effect(one.effect.value, data) as observed,
        ):
            ACTIONS[one.effect](self, one, observed)
        self.report.seconds[one.effect.value] += time.monotonic() - began

    def _snapshot(self, one: Step, observed: dict[str, Any]) -> None:
        observed["copies"] = list(self._crew.provider.snapshot(self._order.role, self._order.id))

    def _launch(self, one: Step, _observed: dict[str, Any]) -> None:
        orders = [self._order.launches[name] for name in one.machines]
        ledger, provider, records = self._crew.ledger, self._crew.provider, self._order.records
        known = {record.name for record in ledger.machines(self._order.environment)}
        ledger.add_machines(
            [replace(records[n], standing="new") for n in one.machines if n not in known]
        )
        running = self._running()
        dead = [order for order in orders if order.name not in running]
        # One that died has passed no test since, and keeps its place in the pool: it would serve
        # again as soon as it answers.
        ledger.set_standing([order.name for order in dead if order.name in known], "new")
        placed = {target.address for target in self._crew.pool.targets()}
        self._crew.pool.deregister([order.address for order in dead if order.address in placed])
        provider.publish({order.image for order in orders})
        provider.launch(orders)
        provider.await_running(one.machines, deadline_s=self._order.timeouts.boot_s)

    def _smoke(self, one: Step, observed: dict[str, Any]) -> None:
        live = [
            machine for machine in self._crew.provider.machines() if machine.name in one.machines
        ]
        missing = set(one.machines) - {machine.name for machine in live}
        if missing:
            raise OutsideError(f"{', '.join(sorted(missing))} disappeared before being tested")
        checks = list(self._crew.smoke.test(live, deadline_s=self._order.timeouts.smoke_s))
        self.report.smoke.extend(checks)
        failed = [check for check in checks if not check.is_passed]
        observed.update(passed=len(checks) - len(failed), failed=len(failed))
        if failed:
            self._note("roll.smoke-failed", {"checks": [asdict(check) for check in failed]})
            shown = "\n".join(
                f"  {check.machine}: {check.name}: {_last_line(check.message)}" for check in failed
            )
            raise SmokeTestsFailed(
                f"{len(failed)} of {len(checks)} smoke tests failed:\n{shown}",
                hint="the pool is as it was; the messages in full are in 'toolkit history --json'",
            )

    def _hook(self, one: Step, observed: dict[str, Any]) -> None:
        observed["skipped"] = self._was_done(one)
        if not observed["skipped"]:
            self._crew.hooks.run(str(one.argument), one.machines[0])

    def _was_done(self, one: Step) -> bool:
        """Whether a step was done already, on the same side of the switch."""
        is_switched, done = False, set()
        for entry in self._crew.ledger.roll_entries(self._order.id):
            if entry["kind"] == SWITCHED:
                is_switched = True
            elif entry["kind"] == DONE and step_from_data(entry["data"]) == one:
                done.add(is_switched)
        return is_switched in done

    def _register(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.pool.register(self._addresses(one.machines))

    def _await_healthy(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.pool.await_healthy(
            self._addresses(one.machines), deadline_s=self._order.timeouts.healthy_s
        )

    def _weigh(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.pool.weigh(self._addresses(one.machines), float(one.argument or 100))

    def _admit(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.pool.admit(self._addresses(one.machines))
        self._crew.ledger.set_standing(list(one.machines), "member")
        self._admitted += one.machines
        if self._drained_at is not None and self._order.plan.strategy == "stateful":
            self.report.downtime_s = time.monotonic() - self._drained_at

    def _drain(self, one: Step, _observed: dict[str, Any]) -> None:
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        if self._order.plan.strategy != "stateful":
            # What takes over was admitted some time ago, and may have failed since.
            self._need_serving([name for name in self._admitted if name not in one.machines])
        self._crew.pool.drain(self._addresses(one.machines))

    def _watch(self, one: Step, observed: dict[str, Any]) -> None:
        """Compare the new machines among `one.machines` with the old ones among them."""
        new = self._addresses([name for name in one.machines if name in self._order.plan.new])
        old = self._addresses([name for name in one.machines if name in self._order.plan.old])
        pool = self._crew.pool
        start, began = pool.counters(), time.monotonic()
        healthy_at, renewed_at = began, began
        while (now := time.monotonic()) - began < float(one.argument or 0):
            interrupt.check(self._hint)
            serving = self._serving()
            if serving.issuperset(new):
                healthy_at = now
            counters = pool.counters()
            requests, errors = difference(start, counters, new)
            observed.update(requests=requests, errors=errors)
            reason = judge(start, counters, new=new, old=old, thresholds=self._order.thresholds)
            if reason is None and now - healthy_at > UNHEALTHY_LIMIT_S:
                gone = sorted(set(new) - serving)
                reason = f"{', '.join(gone)} failed the balancer's health check"
            if reason:
                self._count_watched(observed)
                raise ToolkitError(f"the new machines do badly: {reason}")
            if now - renewed_at > WATCH_RENEW_S:
                self._note("roll.watching", {})
                renewed_at = now
            time.sleep(WATCH_POLL_S)
        self._count_watched(observed)

    def _count_watched(self, observed: Mapping[str, Any]) -> None:
        self.report.requests += observed.get("requests", 0)
        self.report.errors += observed.get("errors", 0)

    def _await_drained(self, one: Step, observed: dict[str, Any]) -> None:
        observed["drained"] = self._crew.pool.await_drained(
            self._addresses(one.machines), deadline_s=self._order.timeouts.drain_s
        )
        if not observed["drained"]:
            self._crew.progress.note(
                f"{', '.join(one.machines)} still carried requests after "
                f"{self._order.timeouts.drain_s:g} s; going on all the same"
            )

    def _keep_warm(self, one: Step, _observed: dict[str, Any]) -> None:
        until = time.time() + float(one.argument or 0)
        self._crew.ledger.set_standing(list(one.machines), "warm", warm_until=until)

    def _deregister(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.pool.deregister(self._addresses(one.machines))

    def _destroy(self, one: Step, _observed: dict[str, Any]) -> None:
        self._crew.provider.destroy(one.machines, deadline_s=self._order.timeouts.stop_s)
        self._crew.ledger.forget_machines(list(one.machines))

    def _addresses(self, machines: Sequence[str]) -> list[str]:
        return [self._address(name) for name in machines]

    def _address(self, machine: str) -> str:
        return self._order.records[machine].address

    def _has_entry(self, kind: str) -> bool:
        entries = self._crew.ledger.roll_entries(self._order.id)
        return any(entry["kind"] == kind for entry in entries)

    def _note(self, kind: str, data: dict[str, Any]) -> None:
        self._crew.ledger.append(kind, data, **self._place)


ACTIONS: Mapping[Effect, Callable[[Roll, Step, dict[str, Any]], None]] = {
    Effect.SNAPSHOT: Roll._snapshot,
    Effect.LAUNCH: Roll._launch,
    Effect.SMOKE: Roll._smoke,
    Effect.HOOK: Roll._hook,
    Effect.REGISTER: Roll._register,
    Effect.AWAIT_HEALTHY: Roll._await_healthy,
    Effect.WEIGH: Roll._weigh,
    Effect.ADMIT: Roll._admit,
    Effect.DRAIN: Roll._drain,
    Effect.WATCH: Roll._watch,
    Effect.AWAIT_DRAINED: Roll._await_drained,
    Effect.KEEP_WARM: Roll._keep_warm,
    Effect.DEREGISTER: Roll._deregister,
    Effect.DESTROY: Roll._destroy,
}
"""Every effect has its action; a test makes sure of it."""


def _describe(one: Step) -> str:
    argument = "" if one.argument is None else f" ({one.argument})"
    return f"{one.effect.value} {', '.join(one.machines)}{argument}"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    line = (errors or lines or ["it gave no message"])[0].removeprefix("E").strip()
    return line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}…"
