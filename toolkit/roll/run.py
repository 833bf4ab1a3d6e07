"""Carry out a roll: go forward, and back when a step fails."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from toolkit import errors, interrupt
from toolkit.errors import (
    DidNotStart,
    DoesBadly,
    Interrupted,
    LeaseHeld,
    RolledBack,
    SmokeTestsFailed,
    ToolkitError,
    Unhealthy,
)
from toolkit.progress import step
from toolkit.roll.effects import Effects
from toolkit.roll.journal import INTENT, SMOKE_FAILED, SWITCHED, UNDOING, Journal
from toolkit.roll.order import Crew, RollOrder, RollReport
from toolkit.roll.plan import (
    Effect,
    Step,
    plan_restore,
    step_from_data,
    step_to_data,
)
from toolkit.roll.undo import Touched, WayBack, plan_undo


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
        self.report = RollReport()
        self._effects = Effects(order, crew, self.report)
        self._journal = Journal(crew.ledger, self._effects.place, scope="roll")
        self._lost: dict[str, ToolkitError] = {}

    def forward(self) -> RollReport:
        """Do all steps; when one fails before the switch, go back.

        Raises:
            SmokeTestsFailed: New machines failed and were discarded; nothing was registered.
            RolledBack: A later step failed; the old machines serve again.
            ToolkitError: The hook, the disk or an outside system failed before anything was
                registered; going back failed too; or a step after the switch failed.
            Interrupted: The operator asked to stop; the roll can be resumed or aborted.
        """
        if self._has_entry(SWITCHED):
            self._restore_serving()
            # An operator, or an `abort --leave` that was cut short, may have had them serve again.
            if back := sorted(self._named(self._effects.ready())):
                self._do(Step(Effect.DRAIN, tuple(back)))
        else:
            try:
                for one in self._order.plan.switch:
                    interrupt.check(self._effects.hint)
                    self._do(one)
                self._effects.need_serving(self._order.plan.new)
            except (Interrupted, LeaseHeld):
                raise
            except ToolkitError as error:
                self.back(reason=error.message, cause=error)
                raise self._verdict(error) from error
            self._effects.note(SWITCHED, {"machines": list(self._order.plan.new)})
        for one in self._order.plan.finish:
            interrupt.check(self._effects.hint)
            self._do(one)
        self.report.outcome = "rolled"
        return self.report

    def resume(self) -> RollReport:
        """Go on: forward, or back when the roll was on its way back; it ends as it would have.

        Raises:
            ToolkitError: As `forward` does.
        """
        undoing = self._entry(UNDOING)
        if undoing is None:
            return self.forward()
        self.back(reason="resumed")
        # An operator's abort has no cause and is no failure.
        name = undoing.get("cause")
        if name is None:
            return self.report
        cause: type[ToolkitError] = getattr(errors, name)
        raise self._verdict(cause(undoing["reason"]))

    def back(self, *, reason: str, cause: ToolkitError | None = None) -> RollReport:
        """Return to the machines that served before, from wherever the roll has got to.

        Args:
            reason: Why, for the ledger.
            cause: What failed, if anything did.

        Raises:
            ToolkitError: A step back failed; resuming tries again.
        """
        self._crew.progress.note(f"going back: {reason.splitlines()[0]}")
        # What was begun going forward is fixed by the first entry of its kind.
        begun = self._begun()
        undoing = self._entry(UNDOING)
        if undoing is None:
            name = type(cause).__name__ if cause else None
            undoing = {"reason": reason, "cause": name, "held": sorted(self._held())}
            self._effects.note(UNDOING, undoing)
        # Decided once: a place that the way back itself has drained is nobody's wish. An earlier
        # toolkit did not write it down.
        held = undoing["held"] if "held" in undoing else self._held()
        untested = self._untested() | self._displaced(begun)
        idle = self._named(self._effects.withdrawn())
        way = plan_undo(
            self._order.plan,
            begun,
            untested=untested,
            held=held,
            idle=idle,
            unfit=self._unfit(),
            in_service=self._order.in_service,
        )
        with self._smoke_failure_is(f"{self._order.role} could not go back"):
            if way.is_volume_first:
                self._do_all(way.departure)
            self._lost = self._arrive(way)
            self._need_no_fewer(undoing)
            self._effects.restore_standings(held)
            if not way.is_volume_first:
                self._do_all(way.departure)
        self.report.outcome = "rolled-back" if self._has_touched_pool(begun) else "discarded"
        return self.report

    def restore(self, *, ill: Collection[str] = ()) -> dict[str, ToolkitError]:
        """Have all new machines of the plan serve, and undo nothing; one holds up no other.

        Args:
            ill: Those that are started anew although they run.

        Returns:
            Machine name to what went wrong with it, of those that do not serve.
        """
        return self._serve_again(self._order.plan.new, ill=ill)

    def _arrive(self, way: WayBack) -> dict[str, ToolkitError]:
        """Have the old machines serve that did: the well ones at once, the ill ones started anew.

        Returns:
            Machine name to what went wrong with it, of those that do not serve.
        """
        ill: set[str] = set()
        self._do_all(way.opening)
        try:
            self._do_all(way.check)
        except Unhealthy as error:
            ill = self._named(error.addresses)
            self._crew.progress.note(f"unhealthy, so started anew: {', '.join(sorted(ill))}")
        self._do_all(way.arrival(ill))
        lost = self._serve_again((*way.ended, *sorted(ill)), ill=ill)
        # Starting machines takes its time: one that was well may be so no more.
        well = [name for name in way.relied_on if name not in ill]
        try:
            self._effects.need_serving(well)
        except Unhealthy as error:
            late = sorted(self._named(error.addresses))
            lost |= self._serve_again(late, ill=late)
        return lost

    def _need_no_fewer(self, undoing: Mapping[str, Any]) -> None:
        """Make sure that the new machines may go: no fewer serve then than before the roll.

        New ones that have failed under traffic are nothing to rely on, as long as an old one
        serves.

        Raises:
            ToolkitError: An old machine that is needed does not come back.
        """
        if not self._lost:
            return
        before = {*self._order.plan.old} - {*self._order.absent}
        is_volume_first = self._order.plan.strategy == "stateful"
        if is_volume_first and not before:
            # The new machine is gone, and the pool as it was: nobody served.
            return
        serving = self._named(self._effects.serving())
        is_bad = undoing.get("cause") == DoesBadly.__name__
        if serving and (is_bad or len(serving) >= len(before)):
            return
        error = self._lost[min(self._lost.keys() & before or self._lost)]
        stay = "" if is_volume_first else "the new machines stay until it serves; "
        hint = f"{stay}'toolkit abort {self._order.environment} --leave' ends the roll as it stands"
        error.hint = f"{error.hint}; {hint}" if error.hint else hint
        raise error

    def _named(self, addresses: Collection[str]) -> set[str]:
        """Return the old machines that have some of the addresses."""
        return {name for name in self._order.plan.old if self._effects.address(name) in addresses}

    def _serve_again(
        self, machines: Sequence[str], *, ill: Collection[str] = ()
    ) -> dict[str, ToolkitError]:
        """Have machines serve, all at once; where that fails, each by itself.

        One that ran before, serves nobody and fails by itself too is started anew then, once.

        Args:
            machines: Which.
            ill: Those that are started anew at once.

        Returns:
            Machine name to what went wrong with it, of those that do not serve.
        """
        ran = self._effects.running().intersection(machines) - {*ill}
        error = self._try(plan_restore(machines, ill=ill))
        if error is None:
            return {}
        failures: dict[str, ToolkitError] = {}
        for name in machines:
            alone = error if len(machines) == 1 else self._try(plan_restore([name]))
            if alone and name in ran and self._effects.address(name) not in self._effects.serving():
                alone = self._try(plan_restore([name], ill=[name]))
            if alone:
                failures[name] = alone
        return failures

    def _try(self, steps: Sequence[Step]) -> ToolkitError | None:
        """Do steps; return the error of machines that fail.

        Raises:
            ToolkitError: The balancer itself is away, and nobody is at fault; the operator asked to
                stop; or the lease is lost.
        """
        try:
            self._do_all(steps)
        except (Interrupted, LeaseHeld):
            raise
        except ToolkitError as error:
            self._effects.serving()
            return error
        return None

    def _restore_serving(self) -> None:
        """Have new machines serve that did when the roll was cut short; old ones go only then."""
        new, address = self._order.plan.new, self._effects.address
        ill: set[str] = set()
        ready = self._effects.ready()
        try:
            self._effects.need_serving([name for name in new if address(name) in ready])
        except Unhealthy as error:
            ill = {name for name in new if address(name) in error.addresses}
        absent = [name for name in new if name in ill or address(name) not in ready]
        with self._smoke_failure_is(f"{self._order.role} does not serve again"):
            for failure in self._serve_again(absent, ill=ill).values():
                raise failure

    @contextmanager
    def _smoke_failure_is(self, what: str) -> Iterator[None]:
        """Say that smoke tests failed where the pool is not as it was: no harmless failure."""
        try:
            yield
        except SmokeTestsFailed as error:
            raise ToolkitError(f"{what}: {error.message}", hint=error.hint) from error

    def _untested(self) -> set[str]:
        """Return the old machines that do not run, or have not passed since they were started."""
        running = self._effects.running()
        records = {one.name: one for one in self._crew.ledger.machines(self._order.environment)}
        return {
            name
            for name in self._order.plan.old
            if name not in running or name not in records or records[name].standing == "new"
        }

    def _unfit(self) -> set[str]:
        """Return the machines that have failed a smoke test in this roll."""
        return {
            check["machine"]
            for entry in self._crew.ledger.roll_entries(self._order.id)
            if entry["kind"] == SMOKE_FAILED
            for check in entry["data"]["checks"]
        }

    def _displaced(self, begun: Sequence[Step]) -> set[str]:
        """Return old machines whose places somebody else has taken from them meanwhile."""
        old = self._order.plan.old
        suspects = {*old} - {*Touched(begun).by(Effect.DEREGISTER, old)}
        placed = self._effects.placed() if suspects else set()
        return {name for name in suspects if self._effects.address(name) not in placed}

    def _held(self) -> set[str]:
        """Return the old machines that were withdrawn before the roll, and still are."""
        addresses = self._effects.withdrawn() if self._order.held else set()
        return {name for name in self._order.held if self._effects.address(name) in addresses}

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
            words = [f"rolled back: {cause.message}"]
            words += [
                f"{name} does not serve again: {error.message}"
                for name, error in self._lost.items()
            ]
            hint = f"'toolkit up {self._order.environment}' tries again" if self._lost else None
            return RolledBack("\n".join(words), hint=cause.hint or hint)
        if isinstance(cause, SmokeTestsFailed):
            hint = f"the pool is as it was; {cause.hint}" if cause.hint else "the pool is as it was"
            return SmokeTestsFailed(cause.message, hint=hint)
        if isinstance(cause, DidNotStart):
            # It has failed before its first test.
            return SmokeTestsFailed(
                f"new machines did not come up and were discarded: {cause.message}", hint=cause.hint
            )
        return type(cause)(f"discarded: {cause.message}", hint=cause.hint)

    def _do_all(self, steps: Sequence[Step]) -> None:
        for one in steps:
            self._do(one)

    def _do(self, one: Step) -> None:
        data = step_to_data(one)
        data.pop("effect")
        began = time.monotonic()
        try:
            with (
                step(self._crew.progress, _describe(one)),
                self._journal.effect(one.effect.value, data) as observed,
            ):
                self._effects.do(one, observed)
        finally:
            self.report.seconds[one.effect.value] += time.monotonic() - began

    def _has_entry(self, kind: str) -> bool:
        return self._entry(kind) is not None

    def _entry(self, kind: str) -> Mapping[str, Any] | None:
        """Return the data of the roll's first entry of a kind, or None."""
        entries = self._crew.ledger.roll_entries(self._order.id)
        return next((entry["data"] for entry in entries if entry["kind"] == kind), None)


def _describe(one: Step) -> str:
    argument = "" if one.argument is None else f" ({one.argument})"
    return f"{one.effect.value} {', '.join(one.machines)}{argument}"
