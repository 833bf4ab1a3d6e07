"""Plans of rolls: tables for each strategy, and what holds at every step of every plan."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from toolkit import faults
from toolkit.roll.effects import ACTIONS
from toolkit.roll.plan import (
    Effect,
    RollPlan,
    RollPolicy,
    Step,
    allocate,
    plan_from_data,
    plan_restore,
    plan_return,
    plan_roll,
    plan_to_data,
)
from toolkit.roll.undo import WayBack, plan_undo

E = Effect
POOL_EFFECTS = {
    E.REGISTER, E.AWAIT_HEALTHY, E.WEIGH, E.ADMIT, E.DRAIN, E.AWAIT_DRAINED, E.DEREGISTER,
}  # fmt: skip

LEAVING = {E.DRAIN, E.AWAIT_DRAINED, E.DEREGISTER}
"""Harmless for a machine that has gone already."""


def words(steps) -> list[str]:
    """Write steps as `effect machine,machine argument`."""
    return [
        f"{one.effect.value} {','.join(one.machines)}"
        + ("" if one.argument is None else f" {one.argument:g}" if not isinstance(one.argument, str)
           else f" {one.argument}")
        for one in steps
    ]  # fmt: skip


def introduced(names: str) -> list[str]:
    return [f"{e} {names}" for e in ("launch", "smoke", "register", "await-healthy", "admit")]


def way_back(way: WayBack, ill: str = "") -> list[Step]:
    """Return the steps of a way back in their order, with some found ill on it."""
    arrival = [
        *way.opening, *way.check, *way.arrival(ill), *plan_restore([*way.ended, *ill], ill=ill),
    ]  # fmt: skip
    if way.is_volume_first:
        return [*way.departure, *arrival]
    return [*arrival, *way.departure]


def removed(names: str) -> list[str]:
    return [f"{effect} {names}" for effect in ("await-drained", "deregister", "destroy")]


@pytest.mark.parametrize(
    ("policy", "old", "new", "expected"),
    [
        pytest.param(RollPolicy(), "", "cd", [*introduced("c"), *introduced("d")], id="first"),
        pytest.param(
            RollPolicy(batch=1), "ab", "cd",
            [*introduced("c"), "drain a", *introduced("d"), "drain b", *removed("a,b")],
            id="one at a time",
        ),
        pytest.param(
            RollPolicy(batch=2), "abc", "def",
            [*introduced("d,e"), "drain a,b", *introduced("f"), "drain c", *removed("a,b,c")],
            id="last batch smaller",
        ),
        pytest.param(
            RollPolicy(batch=1), "abcd", "ef",
            [*introduced("e"), "drain a", *introduced("f"), "drain b,c,d", *removed("a,b,c,d")],
            id="fewer",
        ),
        pytest.param(
            RollPolicy(batch=1), "a", "bc",
            [*introduced("b"), "drain a", *introduced("c"), *removed("a")],
            id="more",
        ),
        pytest.param(
            RollPolicy("blue-green", batch=1, soak_s=9, keep_warm_s=60), "ab", "cd",
            [*introduced("c,d"), "drain a,b", "watch c,d 9", "await-drained a,b",
             "keep-warm a,b 60"],
            id="blue-green, soak, warm",
        ),
        pytest.param(
            RollPolicy("canary", canary_percent=5, canary_watch_s=30), "abc", "def",
            ["launch d", "smoke d", "register d", "await-healthy d", "weigh d 5", "admit d",
             "watch d,a,b,c 30", *introduced("e,f"), "weigh d 100", "drain a,b,c",
             *removed("a,b,c")],
            id="canary",
        ),
        pytest.param(
            RollPolicy("canary", canary_machines=2), "ab", "cd",
            ["launch c,d", "smoke c,d", "register c,d", "await-healthy c,d", "weigh c,d 10",
             "admit c,d", "watch c,d,a,b 30", "weigh c,d 100", "drain a,b", *removed("a,b")],
            id="all are canaries",
        ),
        pytest.param(
            RollPolicy("canary"), "", "ab", introduced("a,b"), id="nothing to compare with"
        ),
        pytest.param(
            RollPolicy("stateful", has_snapshot=True), "a", "b",
            ["drain a", *removed("a"), "snapshot b", *introduced("b")],
            id="stateful",
        ),
        pytest.param(
            RollPolicy(before_hook="migrate.yml", after_hook="tell.yml", batch=1), "ab", "cd",
            ["launch c", "smoke c", "hook c migrate.yml", "register c", "await-healthy c",
             "admit c", "drain a", *introduced("d"), "drain b", "hook c tell.yml",
             *removed("a,b")],
            id="hooks once",
        ),
    ],
)  # fmt: skip
def test_plan(policy: RollPolicy, old: str, new: str, expected: list[str]) -> None:
    assert words(plan_roll(policy, old=old, new=new).steps) == expected


def test_retired_machines_make_room_first() -> None:
    plan = plan_roll(RollPolicy("blue-green"), old="a", new="b", retired="wx")
    assert words(plan.switch)[:4] == ["drain w,x", *removed("w,x")]


@pytest.mark.parametrize(("begun", "expected"), [(2, []), (3, ["deregister w,x", "destroy w,x"])])
def test_retired_machines_that_have_left_the_pool_go(begun: int, expected: list[str]) -> None:
    plan = plan_roll(RollPolicy("blue-green"), old="a", new="b", retired="wx")
    assert words(way_back(plan_undo(plan, plan.steps[:begun]))) == expected


def test_way_back_to_warm_machines_is_tested_too() -> None:
    plan = plan_return(RollPolicy(), old="ab", warm="wx")
    assert words(plan.steps) == [
        "smoke w,x", "register w,x", "await-healthy w,x", "admit w,x", "drain a,b",
        *removed("a,b"),
    ]  # fmt: skip


BLUE_GREEN = plan_roll(RollPolicy("blue-green"), old="ab", new="cd")
STATEFUL = plan_roll(RollPolicy("stateful"), old="a", new="b")
WARM = plan_return(RollPolicy(keep_warm_s=9), old="a", warm="w")
LEFT = ["await-drained c,d", "deregister c,d", "destroy c,d"]


@pytest.mark.parametrize(
    ("plan", "begun", "untested", "expected"),
    [
        (BLUE_GREEN, 0, "", []),
        (BLUE_GREEN, 1, "", ["destroy c,d"]),
        (BLUE_GREEN, 2, "", ["destroy c,d"]),
        (BLUE_GREEN, 3, "", ["drain c,d", *LEFT]),
        (BLUE_GREEN, 4, "b", ["drain c,d", *LEFT]),
        (BLUE_GREEN, 5, "", ["await-healthy a,b 5", "drain c,d", *LEFT]),
        (BLUE_GREEN, 5, "b", ["await-healthy a 5", *introduced("b"), "drain c,d", *LEFT]),
        (BLUE_GREEN, 6, "", ["admit a,b", "await-healthy a,b 5", "drain c,d", *LEFT]),
        (
            BLUE_GREEN, 6, "b",
            ["admit a", "await-healthy a 5", *introduced("b"), "drain c,d", *LEFT],
        ),
        (
            BLUE_GREEN, 8, "",
            ["register a,b", "await-healthy a,b 5", "admit a,b", "drain c,d", *LEFT],
        ),
        (BLUE_GREEN, 9, "ab", [*introduced("a,b"), "drain c,d", *LEFT]),
        (STATEFUL, 1, "", ["admit a", "await-healthy a 5"]),
        (STATEFUL, 3, "", ["register a", "await-healthy a 5", "admit a"]),
        (STATEFUL, 4, "a", introduced("a")),
        (
            STATEFUL, 9, "a",
            ["drain b", *removed("b"), *introduced("a")],
        ),
        (WARM, 1, "", []),
        (WARM, 4, "", ["await-healthy a 5", "drain w", "keep-warm w 300"]),
        (WARM, 5, "", ["admit a", "await-healthy a 5", "drain w", "keep-warm w 300"]),
    ],
)  # fmt: skip
def test_undo(plan: RollPlan, begun: int, untested: str, expected: list[str]) -> None:
    way = plan_undo(plan, plan.steps[:begun], untested=untested)
    assert words(way_back(way)) == expected


@pytest.mark.parametrize(
    ("plan", "begun", "ill", "expected"),
    [
        (
            BLUE_GREEN, 5, "a",
            ["await-healthy a,b 5", "launch a anew", *introduced("a")[1:], "drain c,d", *LEFT],
        ),
        (
            BLUE_GREEN, 6, "b",
            ["admit a,b", "await-healthy a,b 5", "launch b anew", *introduced("b")[1:],
             "drain c,d", *LEFT],
        ),
        (
            BLUE_GREEN, 8, "b",
            ["register a,b", "await-healthy a,b 5", "admit a", "launch b anew",
             *introduced("b")[1:], "drain c,d", *LEFT],
        ),
        (
            STATEFUL, 3, "a",
            ["register a", "await-healthy a 5", "launch a anew", *introduced("a")[1:]],
        ),
    ],
)  # fmt: skip
def test_undo_starts_anew_what_hangs(
    plan: RollPlan, begun: int, ill: str, expected: list[str]
) -> None:
    assert words(way_back(plan_undo(plan, plan.steps[:begun]), ill)) == expected


def test_ended_and_ill_machines_are_restored_together() -> None:
    assert words(plan_restore("abc", ill="b")) == [
        "launch b anew", "launch a,c", *introduced("a,b,c")[1:],
    ]  # fmt: skip


def test_restoring_nobody_is_nothing() -> None:
    assert plan_restore([]) == ()


# What holds at every step of every plan.

policies = st.builds(
    RollPolicy,
    strategy=st.sampled_from(["rolling", "blue-green", "canary"]),
    batch=st.integers(1, 4),
    canary_machines=st.integers(1, 3),
    soak_s=st.sampled_from([0.0, 5.0]),
    keep_warm_s=st.sampled_from([0.0, 5.0]),
    has_snapshot=st.booleans(),
    before_hook=st.sampled_from([None, "x.yml"]),
    after_hook=st.sampled_from([None, "x.yml"]),
)
sizes = st.integers(0, 5)


@st.composite
def plans(draw) -> RollPlan:
    policy = draw(policies)
    new = [f"n{number}" for number in range(draw(st.integers(1, 5)))]
    policy = RollPolicy(
        **{
            **{name: getattr(policy, name) for name in RollPolicy.__slots__},
            "canary_machines": min(policy.canary_machines, len(new)),
        }
    )
    old = [f"o{number}" for number in range(draw(sizes))]
    retired = [f"r{number}" for number in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        return plan_roll(policy, old=old, new=new, retired=retired)
    return plan_return(policy, old=old, warm=new)


class Follower:
    """What a pool would be like after some steps, and what must not have happened on the way."""

    def __init__(self, plan: RollPlan) -> None:
        is_warm = plan.strategy == "warm"
        self.plan = plan
        self.running = {*plan.old, *(plan.new if is_warm else ())}
        self.tested = {*plan.old, *(plan.new if is_warm else ())}
        self.ever_tested = set(self.tested)
        self.placed = set(self.running)
        self.serving = set(plan.old)
        self.floor = min(len(plan.old), len(plan.new))

    def follow(self, steps) -> None:
        for one in steps:
            names = set(one.machines)
            if one.effect in POOL_EFFECTS and names & {*self.plan.new, *self.plan.old}:
                passed = self.ever_tested if one.effect in LEAVING else self.tested
                assert names <= passed, f"{words([one])} before its tests"
            match one.effect:
                case E.LAUNCH:
                    self.running |= names
                case E.SMOKE:
                    assert names <= self.running
                    self.tested |= names
                    self.ever_tested |= names
                case E.REGISTER:
                    self.placed |= names
                case E.ADMIT:
                    assert names <= self.placed
                    self.serving |= names
                case E.DRAIN:
                    self.serving -= names
                case E.DEREGISTER:
                    assert not names & self.serving
                    self.placed -= names
                case E.DESTROY:
                    assert not names & self.placed - self._strangers()
                    self.running -= names
                    self.tested -= names
            assert len(self.serving) >= self.floor, f"capacity fell at {words([one])}"

    def _strangers(self) -> set[str]:
        return self.placed - {*self.plan.old, *self.plan.new}


@given(plans())
def test_capacity_never_falls_going_forward(plan: RollPlan) -> None:
    pool = Follower(plan)
    pool.follow(plan.switch)
    assert pool.serving == set(plan.new)
    pool.follow(plan.finish)
    assert pool.serving == set(plan.new)


@given(plans(), st.data())
def test_capacity_never_falls_going_back_from_anywhere(plan: RollPlan, data) -> None:
    pool = Follower(plan)
    begun = plan.steps[: data.draw(st.integers(0, len(plan.steps)))]
    pool.follow(begun)
    pool.follow(way_back(plan_undo(plan, begun, untested=set(plan.old) - pool.running)))
    assert pool.serving == set(plan.old)
    if plan.strategy != "warm":
        assert not pool.running & set(plan.new)
        assert not pool.placed & set(plan.new)


@given(plans(), st.data())
def test_going_back_may_be_cut_short_and_begun_again(plan: RollPlan, data) -> None:
    pool = Follower(plan)
    begun = plan.steps[: data.draw(st.integers(0, len(plan.steps)))]
    pool.follow(begun)
    for _ in range(2):
        untested = set(plan.old) - (pool.running & pool.tested)
        undo = way_back(plan_undo(plan, begun, untested=untested))
        pool.follow(undo[: data.draw(st.integers(0, len(undo)))])
    untested = set(plan.old) - (pool.running & pool.tested)
    pool.follow(way_back(plan_undo(plan, begun, untested=untested)))
    assert pool.serving == set(plan.old)


@given(plans(), st.data())
def test_going_on_is_doing_the_plan_again(plan: RollPlan, data) -> None:
    pool = Follower(plan)
    pool.follow(plan.switch[: data.draw(st.integers(0, len(plan.switch)))])
    pool.follow(plan.switch)
    assert pool.serving == set(plan.new)


@given(plans())
def test_plan_survives_the_ledger(plan: RollPlan) -> None:
    assert plan_from_data(plan_to_data(plan)) == plan


def test_every_effect_has_an_action_and_failpoints() -> None:
    assert set(ACTIONS) == set(Effect)
    assert set(faults.EFFECTS["roll"]) == {effect.value for effect in Effect}
    assert len(faults.names()) >= 40


def test_an_effect_that_is_not_listed_is_noticed() -> None:
    with pytest.raises(KeyError):
        faults.reach("roll", "no-such-effect", "acted")


def test_addresses_are_the_lowest_free_ones() -> None:
    from ipaddress import IPv4Network

    network = IPv4Network("10.0.0.0/29")
    assert allocate(network, used={"10.0.0.3"}, count=3) == ("10.0.0.2", "10.0.0.4", "10.0.0.5")
    with pytest.raises(ValueError, match="5 free"):
        allocate(network, used=(), count=6)


def test_step_without_an_argument_says_none() -> None:
    plan = RollPlan("rolling", (), ("a",), (Step(E.LAUNCH, ("a",)),), ())
    assert "argument" not in plan_to_data(plan)["switch"][0]
