"""How a plan is shown: warm or cold, and about how long."""

from typing import cast

import pytest

from toolkit.cli.roll import PlanView
from toolkit.roll.order import RollOrder
from toolkit.roll.past import Estimate
from toolkit.roll.plan import RollPlan, RollPolicy, plan_return, plan_roll

IMAGE = "sha256:" + "ab" * 32
COLD = plan_roll(RollPolicy(), old=["app-1"], new=["app-2"])
WARM = plan_return(RollPolicy(), old=["app-2"], warm=["app-1"])


class Order:
    """As much of an order as is shown."""

    def __init__(self, plan: RollPlan) -> None:
        self.plan = plan


def view(plan: RollPlan | None, estimate: Estimate | None = None) -> PlanView:
    return PlanView("app", IMAGE, cast("RollOrder", Order(plan)) if plan else None, estimate)


@pytest.mark.parametrize(
    ("plan", "estimate", "line"),
    [
        (COLD, None, "  cold: machines start from it; no earlier roll to go by"),
        (COLD, Estimate(3.04, 1), "  cold: machines start from it; about 3.0 s, by 1 earlier roll"),
        (WARM, Estimate(0.5, 4), "  warm: its machines run; about 0.5 s, by 4 earlier rolls"),
    ],
)
def test_text_says_warm_or_cold_and_about_how_long(
    plan: RollPlan, estimate: Estimate | None, line: str
) -> None:
    lines = view(plan, estimate).as_text().splitlines()
    assert lines[0] == f"app: {plan.strategy}, to image abababababab"
    assert lines[1] == line
    assert len(lines) == 2 + len(plan.steps)


def test_data_says_the_same() -> None:
    data = view(WARM, Estimate(0.5, 4)).as_data()
    assert (data["is_warm"], data["estimate"]) == (True, {"seconds": 0.5, "rolls": 4})
    data = view(COLD).as_data()
    assert (data["is_warm"], data["estimate"]) == (False, None)
    assert [step["effect"] for step in data["steps"]] == [str(step.effect) for step in COLD.steps]


def test_nothing_to_do() -> None:
    assert view(None).as_text() == "app: nothing to do, abababababab serves already"
    assert view(None).as_data()["outcome"] == "unchanged"
