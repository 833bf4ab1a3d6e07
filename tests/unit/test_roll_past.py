"""Where a rollback goes, and how long a roll takes, from what earlier rolls tell."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from toolkit.ledger.ledger import RollRecord
from toolkit.roll.past import MOST_ROLLS, Estimate, estimate, rollback_target
from toolkit.roll.plan import RollPlan


def history(text: str) -> list[RollRecord]:
    """Return rolls, newest first, from words: `2` rolls to it, `<1` rolls back, `3!` fails."""
    rolls: list[RollRecord] = []
    serving: str | None = None
    for number, word in enumerate(text.split()):
        image = word.strip("<!")
        rolls.append(record(
            f"roll-{number}", image=image, previous=serving,
            outcome="rolled-back" if word.endswith("!") else "rolled",
            is_rollback=word.startswith("<"),
        ))  # fmt: skip
        serving = serving if word.endswith("!") else image
    return rolls[::-1]


def record(name: str, **values: object) -> RollRecord:
    fields = {
        "id": name, "environment": "test", "role": "app", "image": "2", "release": None,
        "previous": "1", "outcome": "rolled", "by": "me", "started": 100.0, "ended": 103.0,
        "order": {"plan": {"strategy": "rolling", "old": ["a"]}}, "is_rollback": False,
    }  # fmt: skip
    return RollRecord(**{**fields, **values})


@pytest.mark.parametrize(
    ("text", "current", "expected"),
    [
        pytest.param("", None, None, id="nothing was ever rolled"),
        pytest.param("1", "1", None, id="the first version"),
        pytest.param("1 2", "2", "1", id="the one before"),
        pytest.param("1 2 3", "3", "2", id="the one before of several"),
        pytest.param("1 2 3!", "2", "1", id="a failed roll never served"),
        pytest.param("1 2 2 2", "2", "1", id="the same image with other settings"),
        pytest.param("1 2 <1", "1", None, id="not forward again"),
        pytest.param("1 2 3 <2", "2", "1", id="twice goes further back"),
        pytest.param("1 2 3 <2 <1", "1", None, id="and three times ends"),
        pytest.param("1 2 3 <2 <1!", "2", "1", id="a rollback that failed left nothing"),
        pytest.param("1 2 3 <2 4", "4", "2", id="the version that was left is passed over"),
        pytest.param("1 2 3 <2 3", "3", "2", id="rolled again on purpose"),
        pytest.param("1 2 3 <2 3 4", "4", "3", id="and so a target again"),
        pytest.param("1 2 3 <1", "1", None, id="what came after a named target is out"),
        pytest.param("1 2 3 <1 4", "4", "1", id="and stays out"),
        pytest.param("1 2 3 <2 <3", "3", "1", id="the one that was left, named"),
        pytest.param("1 2 <9", "9", "1", id="to an image that never served here"),
        pytest.param("1 2 1 <2", "2", None, id="left here, though it served earlier too"),
        pytest.param("1 2 1 3 <1", "1", "2", id="a version that came twice"),
        pytest.param("1 2", "7", "2", id="another serves than was rolled last"),
    ],
)
def test_rollback_target(text: str, current: str | None, expected: str | None) -> None:
    found = rollback_target(history(text), current)
    assert (found.image if found else None) == expected


@given(st.lists(st.sampled_from(["1", "2", "3", "4", "back", "2!", "back!"]), max_size=25))
def test_rollbacks_end_and_never_return_to_what_they_left(words: list[str]) -> None:
    text: list[str] = []
    for word in words:
        rolls = history(" ".join(text))
        done = [one for one in rolls if one.outcome == "rolled"]
        current = done[0].image if done else None
        if word.startswith("back"):
            target = rollback_target(rolls, current)
            text += [f"<{target.image}{word[4:]}"] if target else []
        elif word.strip("!") != current:
            text.append(word)
    left: set[str] = set()
    for _ in range(6):
        rolls = history(" ".join(text))
        done = [one for one in rolls if one.outcome == "rolled"]
        current = done[0].image if done else None
        target = rollback_target(rolls, current)
        if target is None:
            return
        assert target.image != current
        assert target.image not in left
        left.add(str(current))
        text.append(f"<{target.image}")
    pytest.fail("four versions cannot be gone back over six times")


PLAN = RollPlan("rolling", ("a",), ("b",), (), ())
FIRST = RollPlan("rolling", (), ("b",), (), ())
WARM = RollPlan("warm", ("a",), ("b",), (), ())


def took(seconds: float, **values: object) -> RollRecord:
    return record("r", started=100.0, ended=100.0 + seconds, **values)


def kind(strategy: str, *old: str) -> dict:
    return {"plan": {"strategy": strategy, "old": list(old)}}


@pytest.mark.parametrize(
    ("rolls", "plan", "expected"),
    [
        pytest.param([], PLAN, None, id="no roll"),
        pytest.param([took(3.0)], PLAN, Estimate(3.0, 1), id="one roll"),
        pytest.param([took(9.0), took(2.0), took(3.0)], PLAN, Estimate(3.0, 3), id="the median"),
        pytest.param([took(2.0), took(4.0)], PLAN, Estimate(3.0, 2), id="of two, their middle"),
        pytest.param(
            [took(3.0), took(50.0, outcome="discarded"), took(60.0, outcome="rolled-back")],
            PLAN, Estimate(3.0, 1), id="only those that succeeded",
        ),
        pytest.param([record("r", ended=None, outcome="running")], PLAN, None, id="under way"),
        pytest.param([took(3.0), took(-5.0)], PLAN, Estimate(3.0, 1), id="clock set back"),
        pytest.param([took(3.0), took(1.0, order=kind("warm", "a"))], WARM, Estimate(1.0, 1),
                     id="warm by warm ones"),
        pytest.param([took(3.0)], WARM, None, id="no warm one yet"),
        pytest.param([took(1.0, order=kind("warm", "a"))], PLAN, None, id="only a warm one"),
        pytest.param([took(1.0, order=kind("rolling"))], PLAN, None, id="the first drained nobody"),
        pytest.param([took(1.0, order=kind("rolling")), took(9.0)], FIRST, Estimate(1.0, 1),
                     id="first by first"),
        pytest.param([took(3.0, order=kind("canary", "a"))], PLAN, None, id="another strategy"),
        pytest.param([took(1.0)] * MOST_ROLLS + [took(99.0)] * 50, PLAN,
                     Estimate(1.0, MOST_ROLLS), id="the newest"),
    ],
)  # fmt: skip
def test_estimate(rolls: list[RollRecord], plan: RollPlan, expected: Estimate | None) -> None:
    assert estimate(rolls, plan) == expected


def test_time_that_a_roll_lay_cut_short_is_no_estimate() -> None:
    rolls = [replace(took(36000.0), id="cut"), took(3.0)]
    assert estimate(rolls, PLAN, resumed={"cut"}) == Estimate(3.0, 1)
