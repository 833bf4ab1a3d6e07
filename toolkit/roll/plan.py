"""The steps of a roll. Pure: what `toolkit plan` prints is what `toolkit roll` does."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

WARM = "warm"
"""The strategy of going back to machines that were kept warm."""

WHOLE = 100
"""Percent of the share of an old machine that a new one gets in the end."""

RECOVERY_LIMIT_S = 5.0
"""How long a machine that is relied on has to pass the balancer's check again after a failed one;
on a busy host one check in many is late."""

ANEW = "anew"
"""Of a launch: what runs under these names is ended first."""


class Effect(StrEnum):
    """What a step does to the world outside.

    Every effect sets an absolute state under names that the plan fixes, so that doing one twice
    is harmless: a roll that was killed is resumed by doing its plan again from the start.
    """

    SNAPSHOT = "snapshot"
    LAUNCH = "launch"
    SMOKE = "smoke"
    HOOK = "hook"
    REGISTER = "register"
    AWAIT_HEALTHY = "await-healthy"
    WEIGH = "weigh"
    ADMIT = "admit"
    DRAIN = "drain"
    WATCH = "watch"
    AWAIT_DRAINED = "await-drained"
    KEEP_WARM = "keep-warm"
    DEREGISTER = "deregister"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Step:
    """One effect on some machines, all at once.

    Attributes:
        effect: What is done.
        machines: Names of the machines it is done to.
        argument: A weight in percent; seconds to watch, to keep warm, or to wait for the balancer's
            check; the name of a playbook; or `ANEW`.
    """

    effect: Effect
    machines: tuple[str, ...]
    argument: float | str | None = None


@dataclass(frozen=True, slots=True)
class RollPolicy:
    """How a role is rolled in an environment.

    Attributes:
        strategy: `rolling`, `blue-green`, `canary` or `stateful`.
        batch: For `rolling`: machines replaced at a time.
        canary_machines: For `canary`: how many go first.
        canary_percent: For `canary`: weight of each against an old machine.
        canary_watch_s: For `canary`: how long they are watched.
        soak_s: How long the new machines are watched after the switch; 0 for not at all.
        keep_warm_s: How long old machines are kept, drained, for a quick way back.
        has_snapshot: For `stateful`: whether the volume is copied first.
        before_hook: Playbook that is run before the first new machine gets traffic, or None.
        after_hook: Playbook that is run after the switch, or None.
    """

    strategy: str = "rolling"
    batch: int = 1
    canary_machines: int = 1
    canary_percent: int = 10
    canary_watch_s: float = 30.0
    soak_s: float = 0.0
    keep_warm_s: float = 0.0
    has_snapshot: bool = False
    before_hook: str | None = None
    after_hook: str | None = None


@dataclass(frozen=True, slots=True)
class RollPlan:
    """A roll of one role.

    Attributes:
        strategy: As in the policy.
        old: Machines that serve before.
        new: Machines that serve after.
        switch: Steps up to the moment when only new machines serve. Failing here is undone.
        finish: Steps that deal with the old machines. Failing here is finished later.
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

    @property
    def retired(self) -> tuple[str, ...]:
        """Machines kept warm by an earlier roll, which make room for this one."""
        known = {*self.old, *self.new}
        named = dict.fromkeys(name for step in self.switch for name in step.machines)
        return tuple(name for name in named if name not in known)

    @property
    def is_warm(self) -> bool:
        """Whether it goes back to machines that run already."""
        return self.strategy == WARM


def plan_roll(
    policy: RollPolicy, *, old: Sequence[str], new: Sequence[str], retired: Sequence[str] = ()
) -> RollPlan:
    """Plan the replacement of machines.

    No machine is registered before all of its batch have passed their smoke tests, and as many
    old machines drain as new ones were admitted before. Old machines stay, drained, until the
    switch has succeeded, so that the way back is two balancer commands.

    Args:
        policy: How.
        old: Machines that are meant to serve now, whether they do or have ended.
        new: Machines that are to serve: the configured capacity.
        retired: Machines kept warm by an earlier roll; they make room first.
    """
    old, new = tuple(old), tuple(new)
    # One that somebody has put back into service is drained first.
    prelude = (Step(Effect.DRAIN, tuple(retired)), *_remove(tuple(retired))) if retired else ()
    if policy.strategy == "stateful":
        return _plan_stateful(policy, old, new, prelude)
    if policy.strategy == "canary" and old:
        switch = _switch_canary(policy, old, new)
    else:
        batch = policy.batch if policy.strategy == "rolling" else len(new)
        switch = _switch_in_batches(policy, old, new, batch)
    return RollPlan(
        policy.strategy,
        old,
        new,
        (*prelude, *switch, *_soak(policy, old, new)),
        (*_hook(policy.after_hook, new), *_farewell(policy, old)),
    )


def plan_return(policy: RollPolicy, *, old: Sequence[str], warm: Sequence[str]) -> RollPlan:
    """Plan the way back to machines that were kept warm; they pass their smoke tests again.

    Args:
        policy: How.
        old: Machines that are meant to serve now, whether they do or have ended.
        warm: Machines that are to serve again; the balancer has them drained.
    """
    old, warm = tuple(old), tuple(warm)
    switch = (
        Step(Effect.SMOKE, warm),
        # A roll that was to make room and was undone may have taken their places.
        Step(Effect.REGISTER, warm),
        Step(Effect.AWAIT_HEALTHY, warm),
        Step(Effect.ADMIT, warm),
        *((Step(Effect.DRAIN, old),) if old else ()),
    )
    return RollPlan(WARM, old, warm, switch, _farewell(policy, old))


def plan_restore(machines: Sequence[str], *, ill: Collection[str] = ()) -> tuple[Step, ...]:
    """Plan how machines that are meant to serve, and do not, come to serve again.

    Args:
        machines: Which.
        ill: Those of them that are started anew although they run: they hang, or have failed.
    """
    names = tuple(machines)
    if not names:
        return ()
    anew = tuple(name for name in names if name in ill)
    others = tuple(name for name in names if name not in ill)
    return (
        *((Step(Effect.LAUNCH, anew, ANEW),) if anew else ()),
        *((Step(Effect.LAUNCH, others),) if others else ()),
        Step(Effect.SMOKE, names),
        *_enter_pool(names),
    )


def leave_pool(machines: tuple[str, ...]) -> tuple[Step, ...]:
    """Return how machines give their places back once they carry nothing."""
    return (Step(Effect.AWAIT_DRAINED, machines), Step(Effect.DEREGISTER, machines))


def plan_to_data(plan: RollPlan) -> dict[str, Any]:
    """Return a plan as plain data, as the ledger keeps it."""
    return {
        "strategy": plan.strategy,
        "old": list(plan.old),
        "new": list(plan.new),
        "switch": [step_to_data(step) for step in plan.switch],
        "finish": [step_to_data(step) for step in plan.finish],
    }


def plan_from_data(data: Mapping[str, Any]) -> RollPlan:
    """Return the plan that `plan_to_data` described."""
    return RollPlan(
        data["strategy"],
        tuple(data["old"]),
        tuple(data["new"]),
        tuple(step_from_data(step) for step in data["switch"]),
        tuple(step_from_data(step) for step in data["finish"]),
    )


def step_to_data(step: Step) -> dict[str, Any]:
    """Return a step as plain data."""
    data: dict[str, Any] = {"effect": step.effect.value, "machines": list(step.machines)}
    return data if step.argument is None else data | {"argument": step.argument}


def step_from_data(data: Mapping[str, Any]) -> Step:
    """Return the step that `step_to_data` described."""
    return Step(Effect(data["effect"]), tuple(data["machines"]), data.get("argument"))


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


def _switch_in_batches(
    policy: RollPolicy, old: tuple[str, ...], new: tuple[str, ...], batch: int
) -> tuple[Step, ...]:
    steps: list[Step] = []
    for start in range(0, len(new), batch):
        is_last = start + batch >= len(new)
        leaving = old[start:] if is_last else old[start : start + batch]
        hook = policy.before_hook if start == 0 else None
        steps += _introduce(new[start : start + batch], before_hook=hook)
        steps += [Step(Effect.DRAIN, leaving)] if leaving else []
    return tuple(steps)


def _switch_canary(
    policy: RollPolicy, old: tuple[str, ...], new: tuple[str, ...]
) -> tuple[Step, ...]:
    canaries, rest = new[: policy.canary_machines], new[policy.canary_machines :]
    return (
        *_introduce(canaries, before_hook=policy.before_hook, percent=policy.canary_percent),
        Step(Effect.WATCH, (*canaries, *old), policy.canary_watch_s),
        *(_introduce(rest) if rest else ()),
        Step(Effect.WEIGH, canaries, WHOLE),
        Step(Effect.DRAIN, old),
    )


def _plan_stateful(
    policy: RollPolicy, old: tuple[str, ...], new: tuple[str, ...], prelude: tuple[Step, ...]
) -> RollPlan:
    """The one machine is stopped before its successor starts, since a volume has one owner."""
    stop = (Step(Effect.DRAIN, old), *_remove(old)) if old else ()
    snapshot = (Step(Effect.SNAPSHOT, new),) if policy.has_snapshot else ()
    switch = (
        *prelude, *stop, *snapshot, *_introduce(new, before_hook=policy.before_hook),
        *_soak(policy, old, new),
    )  # fmt: skip
    return RollPlan("stateful", old, new, switch, _hook(policy.after_hook, new))


def _introduce(
    machines: tuple[str, ...], *, before_hook: str | None = None, percent: float | None = None
) -> tuple[Step, ...]:
    return (
        Step(Effect.LAUNCH, machines),
        Step(Effect.SMOKE, machines),
        *_hook(before_hook, machines),
        *_enter_pool(machines, percent=percent),
    )


def _enter_pool(machines: tuple[str, ...], *, percent: float | None = None) -> tuple[Step, ...]:
    return (
        Step(Effect.REGISTER, machines),
        Step(Effect.AWAIT_HEALTHY, machines),
        *((Step(Effect.WEIGH, machines, percent),) if percent is not None else ()),
        Step(Effect.ADMIT, machines),
    )


def _hook(playbook: str | None, machines: tuple[str, ...]) -> tuple[Step, ...]:
    return (Step(Effect.HOOK, machines[:1], playbook),) if playbook else ()


def _soak(policy: RollPolicy, old: tuple[str, ...], new: tuple[str, ...]) -> tuple[Step, ...]:
    return (Step(Effect.WATCH, new, policy.soak_s),) if policy.soak_s and old else ()


def _farewell(policy: RollPolicy, old: tuple[str, ...]) -> tuple[Step, ...]:
    if not old:
        return ()
    if policy.keep_warm_s:
        return (
            Step(Effect.AWAIT_DRAINED, old),
            Step(Effect.KEEP_WARM, old, policy.keep_warm_s),
        )
    return _remove(old)


def _remove(machines: tuple[str, ...]) -> tuple[Step, ...]:
    return (*leave_pool(machines), Step(Effect.DESTROY, machines)) if machines else ()
