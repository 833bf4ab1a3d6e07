"""The way back of a roll, from wherever it has got to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from toolkit.roll.plan import RECOVERY_LIMIT_S, Effect, RollPlan, Step, leave_pool

UNDONE_WARM_S = 300.0
"""How long machines stay warm after going back to them was undone."""


@dataclass(frozen=True, slots=True)
class WayBack:
    """The way back of a roll, in the order of its parts; a stateful role's new machine goes first.

    Attributes:
        placed: Old machines that run, have a place and take no requests: the roll has drained them,
            or somebody has since.
        removed: Old machines that run and have left the pool.
        watched: Old machines that serve, and are relied on once the new ones go.
        ended: Old machines that do not run, or have not passed since they were started.
        departure: How the new machines go.
        is_volume_first: Whether the new machines must go before an old one starts.
    """

    placed: tuple[str, ...]
    removed: tuple[str, ...]
    watched: tuple[str, ...]
    ended: tuple[str, ...]
    departure: tuple[Step, ...]
    is_volume_first: bool

    @property
    def relied_on(self) -> tuple[str, ...]:
        """Old machines that run, and must pass the balancer's check before a new one goes."""
        return (*self.placed, *self.removed, *self.watched)

    @property
    def opening(self) -> tuple[Step, ...]:
        """How those with a place serve at once, and the others are checked by the balancer."""
        return (
            *((Step(Effect.ADMIT, self.placed),) if self.placed else ()),
            *((Step(Effect.REGISTER, self.removed),) if self.removed else ()),
        )

    @property
    def check(self) -> tuple[Step, ...]:
        """How it comes out whether one is ill."""
        limit = RECOVERY_LIMIT_S
        return (Step(Effect.AWAIT_HEALTHY, self.relied_on, limit),) if self.relied_on else ()

    def arrival(self, ill: Collection[str] = ()) -> tuple[Step, ...]:
        """Return how those without a place serve that are well."""
        well = tuple(name for name in self.removed if name not in ill)
        return (Step(Effect.ADMIT, well),) if well else ()


def plan_undo(
    plan: RollPlan,
    begun: Sequence[Step],
    *,
    untested: Collection[str] = (),
    held: Collection[str] = (),
    idle: Collection[str] = (),
    unfit: Collection[str] = (),
    in_service: Collection[str] = (),
) -> WayBack:
    """Plan the way back from wherever a roll has got to.

    Old machines serve again before a new one drains, so that capacity never falls; those that
    are gone start again from their image and pass their smoke tests. A machine that was never
    registered gets no balancer step here either. A stateful role's new machine must let go of
    the volume first. A warm machine that has left the pool to make room is no quick way back any
    more, and goes.

    Args:
        plan: The roll.
        begun: The steps that were at least begun, in order.
        untested: Old machines that do not run, or have not passed since they were started.
        held: Old machines that somebody has withdrawn by hand: they did not serve before.
        idle: Old machines that are told to take no requests, whoever has told them.
        unfit: New machines that have failed their tests: such as were warm are no quick way back.
        in_service: New machines that served before the roll: somebody had put warm ones back.
    """
    touched = Touched(begun)
    drained = {*touched.by(Effect.DRAIN, plan.old)}
    resting = drained | {*idle}
    # Where new machines serve already, their going must not leave the place of an ill one empty.
    is_relied_on = bool(touched.by(Effect.ADMIT, plan.new))
    old = [name for name in plan.old if name not in held and (name in resting or is_relied_on)]
    gone = {*untested, *touched.by(Effect.DESTROY, plan.old)}
    left = {*touched.by(Effect.DEREGISTER, plan.old)}
    run = [name for name in old if name not in gone]
    departure = _discard(touched, plan, unfit=unfit, in_service=in_service)
    if leaving := touched.by(Effect.DEREGISTER, plan.retired):
        departure = (*departure, Step(Effect.DEREGISTER, leaving), Step(Effect.DESTROY, leaving))
    return WayBack(
        placed=tuple(name for name in run if name in resting - left),
        removed=tuple(name for name in run if name in left),
        watched=tuple(name for name in run if name not in resting | left),
        ended=tuple(name for name in old if name in gone),
        departure=departure,
        is_volume_first=plan.strategy == "stateful",
    )


class Touched:
    """Which machines the steps that were begun have touched."""

    def __init__(self, begun: Sequence[Step]) -> None:
        self._pairs = {(step.effect, name) for step in begun for name in step.machines}

    def by(self, effect: Effect, among: Sequence[str]) -> tuple[str, ...]:
        """Return those of the machines that an effect has touched."""
        return tuple(name for name in among if (effect, name) in self._pairs)


def _discard(
    touched: Touched, plan: RollPlan, *, unfit: Collection[str], in_service: Collection[str]
) -> tuple[Step, ...]:
    """Return how new machines go again; those that were warm are so again, unless unfit."""
    launched = touched.by(Effect.LAUNCH, plan.new)
    registered = touched.by(Effect.REGISTER, plan.new)
    if plan.is_warm:
        failed = tuple(one for one in plan.new if one in unfit and one not in in_service)
        resting = tuple(one for one in registered if one not in {*failed, *in_service})
        rest = (Step(Effect.DRAIN, resting), Step(Effect.KEEP_WARM, resting, UNDONE_WARM_S))
        leave = (Step(Effect.DRAIN, failed), *leave_pool(failed), Step(Effect.DESTROY, failed))
        return (*(rest if resting else ()), *(leave if failed else ()))
    steps = [Step(Effect.DRAIN, registered), *leave_pool(registered)] if registered else []
    if launched:
        steps.append(Step(Effect.DESTROY, launched))
    return tuple(steps)
