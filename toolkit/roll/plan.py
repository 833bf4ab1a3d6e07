"""The steps of a roll. Pure: what `toolkit plan` prints is what `toolkit roll` does."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What a step does to the world outside. Every one sets an absolute state."""

    LAUNCH = "launch"
    SMOKE = "smoke"
    REGISTER = "register"
    AWAIT_HEALTHY = "await-healthy"
    ADMIT = "admit"
    DRAIN = "drain"
    AWAIT_DRAINED = "await-drained"
    DEREGISTER = "deregister"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Step:
    """One effect on some machines, all at once.

    Attributes:
        effect: What is done.
        machines: Names of the machines it is done to.
    """

    effect: Effect
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RollPlan:
    """A roll of one role.

    Attributes:
        strategy: `rolling` or `stateful`.
        old: Machines that serve before.
        new: Machines that serve after.
        switch: Steps up to the moment when only new machines serve. Failing here is undone.
        finish: Steps that remove the old machines. Failing here is finished later.
    """

    strategy: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    switch: tuple[Step, ...]
    finish: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order."""
        return (*self.switch, *self.finish)


def plan_roll(strategy: str, *, old: Sequence[str], new: Sequence[str], batch: int) -> RollPlan:
    """Plan the replacement of machines.

    `rolling`: no batch is registered before all of it has passed its smoke tests, and as many
    old machines drain as new ones were admitted before. Old machines stay, drained and warm,
    until the whole roll has succeeded. `stateful`: the one machine is stopped before its
    successor starts, since a volume has one owner; the pool serves nobody in between.

    Args:
        strategy: `rolling` or `stateful`.
        old: Machines that serve now.
        new: Machines that are to serve: the configured capacity.
        batch: Machines to replace at a time.
    """
    if strategy == "stateful":
        return _plan_stateful(tuple(old), tuple(new))
    switch: list[Step] = []
    for start in range(0, len(new), batch):
        arriving = tuple(new[start : start + batch])
        is_last = start + batch >= len(new)
        leaving = tuple(old[start:] if is_last else old[start : start + batch])
        switch += _introduce(arriving)
        if leaving:
            switch.append(Step(Effect.DRAIN, leaving))
    return RollPlan("rolling", tuple(old), tuple(new), tuple(switch), _remove(tuple(old)))


def plan_undo(plan: RollPlan, begun: Sequence[Step]) -> tuple[Step, ...]:
    """Plan the way back from within `plan.switch`.

    Old machines serve again before a new one drains, so that capacity never falls. A machine
    that was never registered gets no balancer step here either.

    Args:
        plan: The roll.
        begun: The steps that were at least begun, in order.
    """

    def touched(effect: Effect, among: Sequence[str]) -> tuple[str, ...]:
        names = {name for one in begun if one.effect is effect for name in one.machines}
        return tuple(name for name in among if name in names)

    launched = touched(Effect.LAUNCH, plan.new)
    registered = touched(Effect.REGISTER, plan.new)
    drained = touched(Effect.DRAIN, plan.old)
    steps: list[Step] = []
    if plan.strategy != "stateful" and drained:
        steps.append(Step(Effect.ADMIT, drained))
    if registered:
        steps += [
            Step(Effect.DRAIN, registered),
            Step(Effect.AWAIT_DRAINED, registered),
            Step(Effect.DEREGISTER, registered),
        ]
    if launched:
        steps.append(Step(Effect.DESTROY, launched))
    if plan.strategy == "stateful":
        steps += _bring_back(plan.old, touched, drained)
    return tuple(steps)


def _bring_back(
    old: tuple[str, ...],
    touched: Callable[[Effect, Sequence[str]], tuple[str, ...]],
    drained: tuple[str, ...],
) -> list[Step]:
    """Return how a stateful role's old machine serves again, from where it was left."""
    introduction = _introduce(old)
    if touched(Effect.DESTROY, old):
        return list(introduction)
    if touched(Effect.DEREGISTER, old):
        return [one for one in introduction if one.effect not in {Effect.LAUNCH, Effect.SMOKE}]
    return [Step(Effect.ADMIT, drained)] if drained else []


def allocate(
    network: ipaddress.IPv4Network, *, used: Collection[str], count: int
) -> tuple[str, ...]:
    """Return free addresses, lowest first; the network's first is the gateway.

    Raises:
        ValueError: There are not so many.
    """
    taken = set(used)
    hosts = network.hosts()
    next(hosts)
    free: list[str] = []
    for host in hosts:
        if len(free) == count:
            break
        if str(host) not in taken:
            free.append(str(host))
    if len(free) < count:
        raise ValueError(f"{network} has {len(free)} free addresses of {count}")
    return tuple(free)


def _plan_stateful(old: tuple[str, ...], new: tuple[str, ...]) -> RollPlan:
    stop = _remove(old) if old else ()
    drain = (Step(Effect.DRAIN, old),) if old else ()
    return RollPlan("stateful", old, new, (*drain, *stop, *_introduce(new)), ())


def _introduce(machines: tuple[str, ...]) -> tuple[Step, ...]:
    return (
        Step(Effect.LAUNCH, machines),
        Step(Effect.SMOKE, machines),
        Step(Effect.REGISTER, machines),
        Step(Effect.AWAIT_HEALTHY, machines),
        Step(Effect.ADMIT, machines),
    )


def _remove(machines: tuple[str, ...]) -> tuple[Step, ...]:
    if not machines:
        return ()
    return (
        Step(Effect.AWAIT_DRAINED, machines),
        Step(Effect.DEREGISTER, machines),
        Step(Effect.DESTROY, machines),
    )
