"""What each effect of a roll does to machines and balancer, and what it observes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from toolkit import interrupt
from toolkit.clock import host_uptime
from toolkit.errors import DidNotStart, OutsideError, SmokeTestsFailed, ToolkitError
from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import (
    LaunchOrder,
    SmokeCheck,
    held_addresses,
    running_names,
    withdrawn_addresses,
)
from toolkit.ports import HookRunner, MachineProvider, Pool, SmokeRunner
from toolkit.progress import Progress
from toolkit.project.model import Timeouts
from toolkit.roll.journal import DONE, SWITCHED
from toolkit.roll.plan import WHOLE, Effect, RollPlan, Step, step_from_data
from toolkit.roll.watch import Thresholds, difference, judge, response_ms

LINE_LIMIT = 240
"""Characters of a failed test's message in an error; the ledger has the whole."""

WATCH_POLL_S = 0.25
WATCH_RENEW_S = 60.0
UNHEALTHY_LIMIT_S = 2.0
"""How long the balancer may have taken a machine that is watched for unhealthy."""

RECOVERY_LIMIT_S = 5.0
"""How long a machine that is relied on has to pass the balancer's check again after a failed one;
on a busy host one check in many is late."""


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
        inputs: Digest over the configuration and secrets that the launch orders carry.
        records: Machine name to what the ledger holds of it, of all machines in the plan.
        timeouts: Deadlines of the steps.
        thresholds: By which new machines are judged while they are watched.
        held: Old machines that were drained or in maintenance when the roll began.
    """

    id: str
    environment: str
    role: str
    plan: RollPlan
    launches: Mapping[str, LaunchOrder]
    inputs: str
    records: Mapping[str, MachineRecord]
    timeouts: Timeouts
    thresholds: Thresholds
    held: Collection[str] = ()


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


class Effects:
    """The effects of one roll.

    Args:
        order: The roll.
        crew: With whom.
        report: Takes what is observed.
    """

    def __init__(self, order: RollOrder, crew: Crew, report: RollReport) -> None:
        self._order = order
        self._crew = crew
        self.report = report
        self.place = {"environment": order.environment, "role": order.role, "roll": order.id}
        self._admitted: list[str] = []

    def do(self, one: Step, observed: dict[str, Any]) -> None:
        """Act on a step and note what was observed.

        Raises:
            ToolkitError: The effect could not be had.
        """
        ACTIONS[one.effect](self, one, observed)

    def snapshot(self, one: Step, observed: dict[str, Any]) -> None:
        """Copy the role's volumes."""
        observed["copies"] = list(self._crew.provider.snapshot(self._order.role, self._order.id))

    def launch(self, one: Step, _observed: dict[str, Any]) -> None:
        """Start machines; what died is out of its pool first."""
        orders = [self._order.launches[name] for name in one.machines]
        ledger, provider, records = self._crew.ledger, self._crew.provider, self._order.records
        # Configuration and secrets may have changed since the plan was made.
        told = self._order.inputs
        known = {record.name for record in ledger.machines(self._order.environment)}
        ledger.add_machines(
            [
                replace(records[name], standing="new", inputs=told)
                for name in one.machines
                if name not in known
            ]
        )
        running = self.running()
        dead = [order for order in orders if order.name not in running]
        # One that died has passed no test since, and keeps its place in the pool: it would serve
        # again as soon as it answers.
        ledger.set_standing(
            [order.name for order in dead if order.name in known], "new", inputs=told
        )
        placed = {target.address for target in self._crew.pool.targets()}
        self._crew.pool.deregister([order.address for order in dead if order.address in placed])
        provider.publish({order.image for order in orders})
        provider.launch(orders)
        try:
            provider.await_running(one.machines, deadline_s=self._order.timeouts.boot_s)
        except OutsideError as error:
            raise DidNotStart(error.message, hint=error.hint) from error

    def smoke(self, one: Step, observed: dict[str, Any]) -> None:
        """Run the smoke tests."""
        live = [
            machine for machine in self._crew.provider.machines() if machine.name in one.machines
        ]
        missing = set(one.machines) - {machine.name for machine in live}
        if missing:
            raise DidNotStart(f"{', '.join(sorted(missing))} disappeared before being tested")
        checks = list(self._crew.smoke.test(live, deadline_s=self._order.timeouts.smoke_s))
        self.report.smoke.extend(checks)
        failed = [check for check in checks if not check.is_passed]
        observed.update(passed=len(checks) - len(failed), failed=len(failed))
        if failed:
            self.note("roll.smoke-failed", {"checks": [asdict(check) for check in failed]})
            shown = "\n".join(
                f"  {check.machine}: {check.name}: {_last_line(check.message)}" for check in failed
            )
            raise SmokeTestsFailed(
                f"{len(failed)} of {len(checks)} smoke tests failed:\n{shown}",
                hint="the messages in full are in 'toolkit history --json'",
            )

    def hook(self, one: Step, observed: dict[str, Any]) -> None:
        """Run a playbook, once on each side of the switch."""
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

    def register(self, one: Step, _observed: dict[str, Any]) -> None:
        """Give the machines places in the pool."""
        self._crew.pool.register(self._addresses(one.machines))

    def await_healthy(self, one: Step, _observed: dict[str, Any]) -> None:
        """Wait for the balancer's own check."""
        self._crew.pool.await_healthy(
            self._addresses(one.machines), deadline_s=self._order.timeouts.healthy_s
        )

    def weigh(self, one: Step, observed: dict[str, Any]) -> None:
        """Set the machines' share of the traffic; one that was larger before is not taken back."""
        observed["skipped"] = self._is_past_canary(one)
        if observed["skipped"]:
            return
        self._crew.pool.weigh(self._addresses(one.machines), float(one.argument or WHOLE))

    def _is_past_canary(self, one: Step) -> bool:
        """Whether a step of a canary is done again after that was watched to its end."""
        old = set(self._order.plan.old)
        is_small = one.effect is Effect.WEIGH and float(one.argument or WHOLE) < WHOLE
        if not is_small and not old.intersection(one.machines):
            return False
        return any(
            entry["kind"] == DONE
            and entry["data"]["effect"] == Effect.WATCH
            and old.intersection(entry["data"]["machines"])
            for entry in self._crew.ledger.roll_entries(self._order.id)
        )

    def admit(self, one: Step, _observed: dict[str, Any]) -> None:
        """Let requests reach the machines."""
        self._crew.pool.admit(self._addresses(one.machines))
        self._crew.ledger.set_standing(list(one.machines), "member")
        self._admitted += one.machines

    def drain(self, one: Step, _observed: dict[str, Any]) -> None:
        """Let no new request reach the machines."""
        if self._order.plan.strategy != "stateful":
            # What takes over was admitted some time ago, and may have failed since.
            self.need_serving([name for name in self._admitted if name not in one.machines])
        self._crew.pool.drain(self._addresses(one.machines))

    def watch(self, one: Step, observed: dict[str, Any]) -> None:
        """Compare the new machines among `one.machines` with the old ones among them.

        A canary that has passed is not watched again: the old ones may serve nobody any more.
        """
        observed["skipped"] = self._is_past_canary(one)
        if observed["skipped"]:
            return
        new = self._addresses([name for name in one.machines if name in self._order.plan.new])
        old = self._addresses([name for name in one.machines if name in self._order.plan.old])
        pool = self._crew.pool
        # In a soak the old ones serve no more: what they were like is known from before.
        served = self._addresses(self._order.plan.old)
        reference_ms = 0.0 if old else response_ms(pool.counters(), served)
        # The response times of a place are those of whoever had it before, too.
        pool.count_anew()
        start, began = pool.counters(), time.monotonic()
        healthy_at, renewed_at = began, began
        while (now := time.monotonic()) - began < float(one.argument or 0):
            interrupt.check(self.hint)
            serving = self.serving()
            if serving.issuperset(new):
                healthy_at = now
            counters = pool.counters()
            requests, errors = difference(start, counters, new)
            observed.update(requests=requests, errors=errors)
            reason = judge(
                start,
                counters,
                new=new,
                old=old,
                thresholds=self._order.thresholds,
                reference_ms=reference_ms,
            )
            if reason is None and now - healthy_at > UNHEALTHY_LIMIT_S:
                gone = sorted(set(new) - serving)
                reason = f"{', '.join(gone)} failed the balancer's health check"
            if reason:
                self._count_watched(observed)
                raise ToolkitError(f"the new machines do badly: {reason}")
            if now - renewed_at > WATCH_RENEW_S:
                self.note("roll.watching", {})
                renewed_at = now
            time.sleep(WATCH_POLL_S)
        self._count_watched(observed)

    def _count_watched(self, observed: Mapping[str, Any]) -> None:
        self.report.requests += observed.get("requests", 0)
        self.report.errors += observed.get("errors", 0)

    def await_drained(self, one: Step, observed: dict[str, Any]) -> None:
        """Wait until the balancer carries nothing for the machines."""
        observed["drained"] = self._crew.pool.await_drained(
            self._addresses(one.machines), deadline_s=self._order.timeouts.drain_s
        )
        if not observed["drained"]:
            self._crew.progress.note(
                f"{', '.join(one.machines)} still carried requests after "
                f"{self._order.timeouts.drain_s:g} s; going on all the same"
            )

    def keep_warm(self, one: Step, _observed: dict[str, Any]) -> None:
        """Keep the machines, drained, for a quick way back."""
        until = host_uptime() + float(one.argument or 0)
        self._crew.ledger.set_standing(list(one.machines), "warm", warm_until=until)

    def deregister(self, one: Step, _observed: dict[str, Any]) -> None:
        """Free the machines' places."""
        self._crew.pool.deregister(self._addresses(one.machines))

    def destroy(self, one: Step, _observed: dict[str, Any]) -> None:
        """Remove the machines."""
        self._crew.provider.destroy(one.machines, deadline_s=self._order.timeouts.stop_s)
        self._crew.ledger.forget_machines(list(one.machines))

    def need_serving(self, machines: Sequence[str]) -> None:
        """Make sure that machines which were admitted have not failed since.

        Raises:
            DeadlineExceeded: One fails the balancer's check.
        """
        self._crew.pool.await_healthy(self._addresses(machines), deadline_s=RECOVERY_LIMIT_S)

    def running(self) -> set[str]:
        """Return the names of the machines that run, of all roles."""
        return running_names(self._crew.provider.machines())

    def serving(self) -> set[str]:
        """Return the addresses that the balancer sends requests to."""
        return {target.address for target in self._crew.pool.targets() if target.is_serving}

    def placed(self) -> set[str]:
        """Return the addresses that have a place in the pool to admit them to."""
        targets = self._crew.pool.targets()
        return {target.address for target in targets} - held_addresses(targets)

    def withdrawn(self) -> set[str]:
        """Return the addresses with a place that take no new requests."""
        return withdrawn_addresses(self._crew.pool.targets())

    def _addresses(self, machines: Sequence[str]) -> list[str]:
        return [self.address(name) for name in machines]

    def address(self, machine: str) -> str:
        """Return the address of a machine of the plan."""
        return self._order.records[machine].address

    @property
    def hint(self) -> str:
        """How the operator goes on after the roll was cut short."""
        where = self._order.environment
        return f"'toolkit resume {where}' goes on, 'toolkit abort {where}' goes back"

    def note(self, kind: str, data: dict[str, Any]) -> None:
        """Write an entry of this roll into the ledger."""
        self._crew.ledger.append(kind, data, **self.place)


ACTIONS: Mapping[Effect, Callable[[Effects, Step, dict[str, Any]], None]] = {
    Effect.SNAPSHOT: Effects.snapshot,
    Effect.LAUNCH: Effects.launch,
    Effect.SMOKE: Effects.smoke,
    Effect.HOOK: Effects.hook,
    Effect.REGISTER: Effects.register,
    Effect.AWAIT_HEALTHY: Effects.await_healthy,
    Effect.WEIGH: Effects.weigh,
    Effect.ADMIT: Effects.admit,
    Effect.DRAIN: Effects.drain,
    Effect.WATCH: Effects.watch,
    Effect.AWAIT_DRAINED: Effects.await_drained,
    Effect.KEEP_WARM: Effects.keep_warm,
    Effect.DEREGISTER: Effects.deregister,
    Effect.DESTROY: Effects.destroy,
}
"""Every effect has its action; a test makes sure of it."""


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    line = (errors or lines or ["it gave no message"])[0].removeprefix("E").strip()
    return line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}…"
