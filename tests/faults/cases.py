"""Where each command is killed: the table that the tests of this directory are made from.

A case is named `SCENARIO-EFFECT[:COUNT].MOMENT-RECOVERY`, and can be run by that name.
`TOOLKIT_EXHAUSTIVE=1` runs all of them; without it, as many as show each effect and each
scenario once.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.faults import EFFECTS, MOMENTS

IS_EXHAUSTIVE = bool(os.environ.get("TOOLKIT_EXHAUSTIVE"))

RECOVERIES = ("resume", "abort")


@dataclass(frozen=True)
class Case:
    """Where one command is killed, and how its work is taken up.

    Attributes:
        scenario: Which command, on which ground.
        scope: First part of the failpoint.
        effect: Its name; at its COUNT-th time with `:COUNT`.
        moment: Before it acts, before that is recorded, or after.
        recovery: `resume` or `abort`, or what stands for it.
    """

    scenario: str
    scope: str
    effect: str
    moment: str
    recovery: str

    @property
    def point(self) -> str:
        """The failpoint as `TOOLKIT_FAILPOINT` takes it."""
        name, _, count = self.effect.partition(":")
        return f"{self.scope}.{name}.{self.moment}" + (f":{count}" if count else "")

    @property
    def name(self) -> str:
        """The failpoint's name, the same whatever time it is reached."""
        return self.point.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.scenario}-{self.effect}.{self.moment}-{self.recovery}"


_TO_POOL = ("launch", "smoke", "register", "await-healthy")
_AWAY = ("await-drained", "deregister", "destroy")

ROLLS = {
    "rolling": (
        *_TO_POOL, "admit", "drain", "launch:2", "smoke:2", "register:2", "await-healthy:2",
        "admit:2", "drain:2", *_AWAY,
    ),
    "blue-green": (*_TO_POOL, "admit", "drain", "watch", *_AWAY),
    "canary": (
        *_TO_POOL, "weigh", "admit", "watch", "launch:2", "smoke:2", "register:2",
        "await-healthy:2", "admit:2", "weigh:2", "drain", *_AWAY,
    ),
    "hooks": ("launch", "smoke", "hook", "register", "drain", "hook:2", *_AWAY),
    "keep-warm": (
        # The machines that are warm already make room first.
        "await-drained", "deregister", "destroy", *_TO_POOL, "admit", "drain", "await-drained:2",
        "keep-warm",
    ),
    "stateful": ("drain", *_AWAY, "snapshot", *_TO_POOL, "admit"),
    "does-not-start": ("launch", "smoke!", "destroy"),
    # The errors come after the switch, so that the way back has every step.
    "errors": (
        "drain", "watch!", "admit:2", "await-healthy:2", "drain:2", "await-drained", "deregister",
        "destroy",
    ),
    # An old machine hangs before, and is started anew on the way back.
    "ill": ("launch:2", "smoke:2", "register:2", "await-healthy:2", "admit:3"),
    "rollback-warm": (
        "smoke", "register", "await-healthy", "admit", "drain", "await-drained", "keep-warm",
    ),
    "rollback-cold": (*_TO_POOL, "admit", "drain", "destroy"),
}  # fmt: skip
"""Scenario to the effects that a roll has in it, in order. One with a `!` fails: it is only ever
intended."""

RESTORES = ("launch", "smoke", "register", "await-healthy", "admit")

OTHERS = {
    ("bake", "bake"): EFFECTS["bake"],
    ("up", "up"): EFFECTS["up"],
    ("down", "down"): EFFECTS["down"],
    ("rotate", "rotate"): ("renew", "revoke"),
    # A rotation that was begun goes back to the old value.
    ("rotate-back", "rotate"): ("renew", "revoke"),
    ("certificate", "rotate"): ("certificate",),
    # A machine has died, and `up` brings it back.
    ("restore", "roll"): RESTORES,
    # A roll that was cut short is ended as it stands.
    ("leave", "roll"): ("drain", "deregister", "destroy"),
    # A machine's warm window has passed, and another is known to nobody.
    ("gc", "gc"): EFFECTS["gc"],
    # Somebody has put a place into a pool by hand.
    ("repair", "repair"): EFFECTS["repair"],
}
"""Scenario and scope to effects."""


def _all() -> list[Case]:
    tables = [
        *((scenario, "roll", effects) for scenario, effects in ROLLS.items()),
        *((scenario, scope, effects) for (scenario, scope), effects in OTHERS.items()),
    ]
    return [
        Case(scenario, scope, effect.removesuffix("!"), moment, recovery)
        for scenario, scope, effects in tables
        for effect in effects
        for moment in (MOMENTS[:1] if effect.endswith("!") else MOMENTS)
        for recovery in RECOVERIES
    ]


CASES = tuple(_all())


def chosen() -> tuple[Case, ...]:
    """Return the cases of this run: all, or a share that has each effect and each scenario."""
    return CASES if IS_EXHAUSTIVE else _share()


def cases_of(*scenarios: str) -> list[Case]:
    """Return the cases of this run in some scenarios."""
    return [case for case in chosen() if case.scenario in scenarios]


def _share() -> tuple[Case, ...]:
    """Take turns: moments, recoveries, and scenarios that had few cases so far."""
    share: list[Case] = []
    had: Counter[str] = Counter()
    effects = [(scope, effect) for scope, names in EFFECTS.items() for effect in names]
    for number, (scope, effect) in enumerate(effects):
        wanted = MOMENTS[number % len(MOMENTS)], RECOVERIES[number // 2 % len(RECOVERIES)]
        found = [one for one in CASES if one.name.startswith(f"{scope}.{effect}.")]
        share.append(min(found, key=lambda one: _rank(one, wanted, had)))
        had[share[-1].scenario] += 1
    for number, scenario in enumerate([*ROLLS, *(name for name, _ in OTHERS)]):
        if not had[scenario]:
            found = [one for one in CASES if one.scenario == scenario]
            share.append(found[len(found) * (number + 1) // (len(ROLLS) + len(OTHERS) + 1)])
    return tuple(share)


def _rank(case: Case, wanted: tuple[str, str], had: Counter[str]) -> tuple[int, int, int]:
    matches: Sequence[bool] = (case.moment == wanted[0], case.recovery == wanted[1])
    return had[case.scenario], -sum(matches), -matches[0]
