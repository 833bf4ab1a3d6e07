"""What each effect of a roll does to machines and balancer, and what it observes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from toolkit import interrupt
from toolkit.clock import host_uptime
from toolkit.errors import DidNotStart, DoesBadly, OutsideError, SmokeTestsFailed
from toolkit.model import (
    held_addresses,
    ready_addresses,
    running_names,
    serving_addresses,
    withdrawn_addresses,
)
from toolkit.roll.journal import DONE, SMOKE_FAILED, SWITCHED
from toolkit.roll.order import Crew, RollOrder, RollReport
from toolkit.roll.plan import (
    ANEW,
    RECOVERY_LIMIT_S,
    WHOLE,
    Effect,
    Step,
    step_from_data,
)
from toolkit.roll.watch import difference, judge, response_ms

LINE_LIMIT = 240
"""Characters of a failed test's message in an error; the ledger has the whole."""

WATCH_POLL_S = 0.25
WATCH_RENEW_S = 60.0
UNHEALTHY_LIMIT_S = 2.0
"""How long the balancer may have taken a machine that is watched for unhealthy."""


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
        """Start machines; what died, or has ended for it, is out of its pool first.

        One that runs is left alone, unless it is to be started anew, or serves nobody, has passed
        no test yet and was told other configuration and secrets than there are now.
        """
        orders = [self._order.launches[name] for name in one.machines]
        ledger, provider, records = self._crew.ledger, self._crew.provider, self._order.records
        # Configuration and secrets may have changed since the plan was made.
        told = self._order.inputs
        known = {record.name: record for record in ledger.machines(self._order.environment)}
        ledger.add_machines(
            [
                replace(records[name], standing="new", inputs=told)
                for name in one.machines
                if name not in known
            ]
        )
        targets = self._crew.pool.targets()
        serving = serving_addresses(targets)
        outdated = {
            name
            for name, record in known.items()
            if record.standing == "new" and record.inputs != told and record.address not in serving
        }
        running = self.running()
        ending = [
            name
            for name in one.machines
            if name in running and (one.argument == ANEW or name in outdated)
        ]
        absent = [order for order in orders if order.name not in running or order.name in ending]
        # One that died has passed no test since, and keeps its place in the pool: it would serve
        # again as soon as it answers.
        ledger.set_standing(
            [order.name for order in absent if order.name in known], "new", inputs=told
        )
        self._admitted = [name for name in self._admitted if name not in one.machines]
        placed = {target.address for target in targets}
        self._crew.pool.deregister([order.address for order in absent if order.address in placed])
        provider.destroy(ending, deadline_s=self._order.timeouts.stop_s)
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
            self.note(SMOKE_FAILED, {"checks": [asdict(check) for check in failed]})
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
        deadline_s = self._order.timeouts.healthy_s if one.argument is None else float(one.argument)
        self._crew.pool.await_healthy(self._addresses(one.machines), deadline_s=deadline_s)

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
                raise DoesBadly(f"the new machines do badly: {reason}")
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

    def restore_standings(self, held: Collection[str]) -> None:
        """Have old machines be members or warm as they were before the roll.

        Args:
            held: Those that no step of the way back has touched.
        """
        ledger = self._crew.ledger
        known = {one.name: one for one in ledger.machines(self._order.environment)}
        for name in self._order.plan.old:
            before, now = self._order.records[name], known.get(name)
            if now and before.is_warm and not now.is_warm:
                ledger.set_standing([name], "warm", warm_until=before.warm_until)
            elif now and now.is_warm and not before.is_warm and name in held:
                ledger.set_standing([name], "member")

    def need_serving(self, machines: Sequence[str]) -> None:
        """Make sure that machines which were admitted have not failed since.

        Raises:
            Unhealthy: One fails the balancer's check.
        """
        self._crew.pool.await_healthy(self._addresses(machines), deadline_s=RECOVERY_LIMIT_S)

    def running(self) -> set[str]:
        """Return the names of the machines that run, of all roles."""
        return running_names(self._crew.provider.machines())

    def serving(self) -> set[str]:
        """Return the addresses that the balancer sends requests to."""
        return serving_addresses(self._crew.pool.targets())

    def ready(self) -> set[str]:
        """Return the addresses that get requests while their check passes."""
        return ready_addresses(self._crew.pool.targets())

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
