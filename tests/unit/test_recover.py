"""What became of rolls that went wrong, with everything but the machines real."""

import errno
import ipaddress
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.fakes import FakePool, FakeSite, make_deployment, make_role
from tests.support.rolls import (
    Stop,
    cut_short,
    drift,
    hang,
    image,
    kill,
    machines,
    roll,
    roll_with_errors,
    serving,
    stop_at,
)
from toolkit import clock as clock_module
from toolkit import faults, interrupt
from toolkit.cli.context import Context
from toolkit.cli.roll import in_turn
from toolkit.errors import (
    ConfigurationError,
    Interrupted,
    LeaseHeld,
    NotFound,
    OutsideError,
    RolledBack,
    SmokeTestsFailed,
    ToolkitError,
    UnfinishedRoll,
)
from toolkit.ledger import tables
from toolkit.ledger.ledger import MachineRecord
from toolkit.model import Machine, MachineState, SmokeCheck, Target, TargetState
from toolkit.project.model import Canary, Soak, Timeouts
from toolkit.roll import command, effects, journal, prepare, rotate
from toolkit.roll.conduct import RollResult
from toolkit.roll.downtime import downtime_s
from toolkit.roll.expire import retire
from toolkit.roll.group import new_group, rest_of_group
from toolkit.roll.lifecycle import bring_up, take_down
from toolkit.roll.observe import find_remarks, observe
from toolkit.roll.recover import find_drift, find_orphans, remove_orphans
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted


def test_version_that_fails_its_tests_is_discarded_unheard_of(fake: FakeSite) -> None:
    roll(fake, 1)
    before = list(fake.pool.places)
    fake.smoke.bad_images = {image(fake, 2)}
    result = roll(fake, 2)
    assert result.outcome == "discarded"
    assert isinstance(result.error, SmokeTestsFailed)
    assert list(fake.pool.places) == before
    assert len(fake.provider.found) == 2


def test_first_roll_that_fails_leaves_nothing(fake: FakeSite) -> None:
    fake.smoke.bad_images = {image(fake, 1)}
    assert roll(fake, 1).outcome == "discarded"
    assert fake.provider.found == {}
    assert fake.site.ledger.machines("test") == []


def test_later_batch_that_fails_brings_everything_back(fake: FakeSite) -> None:
    roll(fake, 1)
    tested = []

    def test_twice(machines, *, deadline_s):
        tested.append(machines)
        fake.smoke.bad_images = {image(fake, 2)} if len(tested) > 1 else set()
        return type(fake.smoke).test(fake.smoke, machines, deadline_s=deadline_s)

    fake.smoke.test = test_twice
    result = roll(fake, 2)
    assert result.outcome == "rolled-back"
    assert isinstance(result.error, RolledBack)
    assert serving(fake) == [image(fake, 1)] * 2
    assert len(fake.provider.found) == 2


@pytest.mark.parametrize(
    ("settings", "share", "outcome"),
    [
        ({"soak": Soak(10.0, 1.0, 50, 0.0)}, 0.05, "rolled-back"),
        ({"soak": Soak(10.0, 10.0, 50, 0.0)}, 0.05, "rolled"),
        ({"strategy": "canary", "canary": Canary(1, 50, 10.0)}, 0.05, "rolled-back"),
        ({"strategy": "canary", "canary": Canary(1, 50, 10.0)}, 0.0, "rolled"),
    ],
)
def test_version_that_fails_under_load_is_taken_out(
    make, settings: dict, share: float, outcome: str
) -> None:
    fake = make(**settings)
    roll(fake, 1)
    result = roll_with_errors(fake, 2, share)
    assert result.outcome == outcome
    assert serving(fake) == [image(fake, 2 if outcome == "rolled" else 1)] * 2
    watched = result.as_data()["watched"]
    assert watched["requests"] > 0
    assert (watched["errors"] > 0) == (share > 0)


@pytest.mark.parametrize("strategy", ["blue-green", "canary"])
def test_version_that_answers_slowly_is_taken_out(make, strategy: str) -> None:
    """In a soak too, where the old machines serve no more."""
    fake = make(strategy=strategy, soak=Soak(10.0, 1.0, 50, 2.0), canary=Canary(1, 50, 10.0))
    roll(fake, 1)
    for _ in range(100):
        fake.pool.send()
    known = set(fake.world.answering)

    def spoil(name: str) -> None:
        for address in fake.world.answering - known:
            fake.world.response_ms[address] = 50.0

    fake.world.at = spoil
    result = roll(fake, 2)
    assert result.outcome == "rolled-back"
    assert "5.0 times as long as the old ones'" in result.error.message
    assert serving(fake) == [image(fake, 1)] * 2


def test_canary_that_has_passed_is_not_made_small_again(make) -> None:
    """Killed in the soak, when the old machines are drained already, and taken up."""
    fake = make(strategy="canary", canary=Canary(1, 10, 10.0), soak=Soak(10.0, 1.0, 50, 0.0))
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    weights = []

    def watch(_name: str) -> None:
        weights.append(min(place.weight for place in fake.pool.places if place))

    fake.world.at = watch
    [result] = command.resume(fake.site)
    assert result.outcome == "rolled"
    assert min(weights) == 100


@pytest.mark.parametrize("by_hand", ["deregister", "hold"])
@pytest.mark.parametrize("act", [command.abort, command.resume])
def test_place_that_was_changed_by_hand_does_not_keep_a_roll_from_its_end(
    make, act: Callable[..., list[RollResult]], by_hand: str
) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0, soak=Soak(10.0, 1.0, 50, 0.0))
    roll(fake, 1)
    old = [one.address for one in fake.site.ledger.machines("test")]
    cut_short(fake, 2, at="drain after", times=2)
    getattr(fake.pool, by_hand)(old[:1])
    [result] = act(fake.site)
    wanted = {command.abort: 1, command.resume: 2}[act]
    assert result.outcome == {1: "rolled-back", 2: "rolled"}[wanted]
    assert serving(fake) == [image(fake, wanted)] * 2
    assert fake.world.breaches == []


def test_way_back_that_fails_is_no_harmless_failure(make) -> None:
    """Exit code 4 says that nothing was registered, and that the old version serves."""
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    fake.smoke.bad_images = {image(fake, 1), image(fake, 2)}
    with pytest.raises(ToolkitError, match="app could not go back: 1 of 1 smoke tests") as caught:
        roll(fake, 2)
    assert caught.value.exit_code == 1
    assert "as it was" not in (caught.value.hint or "")
    assert "toolkit abort test" in (caught.value.hint or "")
    fake.smoke.bad_images = {image(fake, 2)}
    [result] = command.abort(fake.site)
    assert result.error is None
    assert serving(fake) == [image(fake, 1)]


def test_new_version_that_does_not_come_back_is_no_harmless_failure(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="deregister after")
    for name, machine in list(fake.provider.found.items()):
        if machine.image == image(fake, 2):
            fake.provider.end(name)
    fake.smoke.bad_images = {image(fake, 2)}
    with pytest.raises(ToolkitError, match="app does not serve again") as caught:
        command.resume(fake.site)
    assert caught.value.exit_code == 1


def test_status_shows_image_and_release_of_one_version(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="admit after", times=2)
    seen = observe(fake.site, "app")
    assert (seen["image"], seen["release"]) == (image(fake, 2), "r2")


def test_downtime_is_told_by_who_only_ends_the_roll(make) -> None:
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.admit.committed"))
        roll(fake, 2)
    fake.site.ledger.append(
        journal.SWITCHED, {"machines": []}, environment="test", role="app",
        roll=fake.site.ledger.rolls("test")[0].id,
    )  # fmt: skip
    [result] = command.resume(fake.site)
    assert result.report.downtime_s is not None


def test_machine_that_dies_while_watched_is_taken_out(make) -> None:
    fake = make(soak=Soak(10.0, 1.0, 50, 0.0))
    roll(fake, 1)
    clock = effects.time

    def sleep_and_end(seconds: float) -> None:
        type(clock).sleep(clock, seconds)
        new = [name for name, one in fake.provider.found.items() if one.image == image(fake, 2)]
        fake.provider.end(new[0])

    clock.sleep = sleep_and_end
    result = roll(fake, 2)
    assert result.outcome == "rolled-back"
    assert "health check" in result.error.message
    assert serving(fake) == [image(fake, 1)] * 2


def test_old_machine_does_not_drain_when_the_new_one_has_died(fake: FakeSite) -> None:
    """The new one of the first batch is gone when the second batch is about to drain."""
    roll(fake, 1)
    drained = []

    def watch(name: str) -> None:
        drained.append(name == "drain after")
        if name == "register after" and sum(drained) == 1:
            new = [n for n, one in fake.provider.found.items() if one.image == image(fake, 2)]
            fake.provider.end(sorted(new)[0])

    fake.world.at = watch
    assert roll(fake, 2).outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)] * 2


def test_unfinished_roll_must_be_decided_first(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="admit after")
    with pytest.raises(UnfinishedRoll) as caught:
        roll(fake, 3)
    assert "toolkit resume test" in (caught.value.hint or "")
    assert "toolkit abort test" in (caught.value.hint or "")
    with pytest.raises(UnfinishedRoll):
        command.roll_back(fake.site, "app", None)


MOMENTS = [
    "launch before", "launch after", "register after", "admit before", "admit after",
    "drain before", "drain after", "deregister after", "destroy before", "destroy after",
]  # fmt: skip


@pytest.mark.parametrize("at", MOMENTS)
@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "canary", "stateful"])
@pytest.mark.parametrize("is_abort", [False, True])
def test_cut_short_anywhere(make, strategy: str, at: str, is_abort: bool) -> None:
    fake = make(strategy=strategy, machines=1 if strategy == "stateful" else 2)
    roll(fake, 1)
    cut_short(fake, 2, at=at)
    results = (command.abort if is_abort else command.resume)(fake.site)
    assert [one.outcome for one in results] in (
        [["discarded"], ["rolled-back"]] if is_abort else [["rolled"]]
    )
    count = 1 if strategy == "stateful" else 2
    assert serving(fake) == [image(fake, 1 if is_abort else 2)] * count
    assert len(fake.provider.found) == count
    assert fake.world.breaches == []
    assert fake.site.ledger.first_break() is None
    assert command.resume(fake.site) == []
    assert command.abort(fake.site) == []


def test_abort_after_the_switch_starts_what_was_removed(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="destroy after", times=2)
    assert [one.outcome for one in command.abort(fake.site)] == ["rolled-back"]
    assert serving(fake) == [image(fake, 1)] * 2


def test_resume_restarts_what_died_meanwhile_before_the_old_go(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="deregister before")
    for name, one in list(fake.provider.found.items()):
        if one.image == image(fake, 2):
            fake.provider.end(name)
    assert [one.outcome for one in command.resume(fake.site)] == ["rolled"]
    assert serving(fake) == [image(fake, 2)] * 2
    assert fake.world.breaches == []


def test_abort_restarts_an_old_machine_that_died_and_tests_it(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    old = [name for name, one in fake.provider.found.items() if one.image == image(fake, 1)]
    for name in old:
        fake.provider.end(name)
    assert [one.outcome for one in command.abort(fake.site)] == ["rolled-back"]
    assert serving(fake) == [image(fake, 1)] * 2
    assert fake.world.breaches == []


def test_balancer_that_is_away_leaves_a_roll_that_can_be_taken_up(fake: FakeSite) -> None:
    roll(fake, 1)

    def vanish(name: str) -> None:
        if name == "admit after":
            fake.pool.is_reachable = False

    fake.world.at = vanish
    with pytest.raises(OutsideError) as caught:
        roll(fake, 2)
    assert "toolkit resume test" in (caught.value.hint or "")
    fake.world.at = lambda _name: None
    fake.pool.is_reachable = True
    assert [one.outcome for one in command.resume(fake.site)] == ["rolled-back"]
    assert serving(fake) == [image(fake, 1)] * 2


def test_dead_machine_is_replaced_and_forgotten(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.provider.end(sorted(fake.provider.found)[0])
    assert roll(fake, 2).outcome == "rolled"
    assert serving(fake) == [image(fake, 2)] * 2
    assert len(fake.site.ledger.machines("test")) == 2
    assert bring_up(fake.site) == []


def test_hooks_run_once_in_each_roll_however_often_it_is_resumed(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.hooks.ran.clear()
    cut_short(fake, 2, at="drain after")
    command.resume(fake.site)
    assert [playbook for playbook, _ in fake.hooks.ran] == ["before.yml", "after.yml"]


def test_same_playbook_before_and_after_runs_twice(make) -> None:
    fake = make()
    role = replace(fake.site.project.roles["app"], before_hook="x.yml", after_hook="x.yml")
    project = replace(fake.site.project, roles={"app": role})
    fake = replace(fake, site=replace(fake.site, project=project))
    roll(fake, 1)
    assert [playbook for playbook, _ in fake.hooks.ran] == ["x.yml", "x.yml"]


def test_hook_that_fails_before_the_switch_is_a_discarded_roll(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.hooks.is_failing = True
    assert roll(fake, 2).outcome == "discarded"
    assert serving(fake) == [image(fake, 1)] * 2


def test_hook_that_fails_after_the_switch_leaves_the_choice(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    run = fake.hooks.run

    def fail_after(playbook: str, machine: str) -> None:
        if playbook == "after.yml":
            raise ToolkitError("no")
        run(playbook, machine)

    fake.hooks.run = fail_after
    with pytest.raises(ToolkitError, match="no"):
        roll(fake, 2)
    assert [one.outcome for one in command.abort(fake.site)] == ["rolled-back"]
    assert serving(fake) == [image(fake, 1)] * 2


def test_rollback_goes_to_warm_machines_and_tests_them(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    first = set(fake.provider.found)
    roll(fake, 2)
    result = command.roll_back(fake.site, "app", None)
    assert result.outcome == "rolled"
    assert len(result.report.smoke) == 2
    assert "launch" not in result.report.seconds
    assert serving(fake) == [image(fake, 1)] * 2
    assert set(result.machines) == first


def test_rollback_starts_machines_where_none_are_warm(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    assert command.roll_back(fake.site, "app", None).outcome == "rolled"
    assert serving(fake) == [image(fake, 1)] * 2
    assert command.roll_back(fake.site, "app", image(fake, 3)).outcome == "rolled"
    assert serving(fake) == [image(fake, 3)] * 2


def test_second_rollback_goes_further_back_and_a_third_has_nowhere_to_go(fake: FakeSite) -> None:
    for version in (1, 2, 3):
        roll(fake, version)
    for version in (2, 1):
        assert command.roll_back(fake.site, "app", None).outcome == "rolled"
        assert serving(fake) == [image(fake, version)] * 2
    with pytest.raises(NotFound):
        command.roll_back(fake.site, "app", None)
    newest = fake.site.ledger.rolls("test")
    assert [one.is_rollback for one in newest] == [True, True, False, False, False]
    told = fake.site.ledger.entries(kinds=["roll.started", "roll.rolled"], limit=4)
    assert [one["data"]["is_rollback"] for one in told] == [True] * 4


def test_rollback_that_was_cut_short_and_resumed_is_one(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    kill(fake, lambda: command.roll_back(fake.site, "app", None), at="drain after")
    assert [one.outcome for one in command.resume(fake.site)] == ["rolled"]
    with pytest.raises(NotFound, match="no earlier image"):
        command.roll_back(fake.site, "app", None)


def test_rollback_to_an_image_that_is_gone_says_which(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    gone, present = image(fake, 1), image(fake, 2)
    fake.site.images.forget(gone)
    with pytest.raises(NotFound, match=gone) as caught:
        command.roll_back(fake.site, "app", None)
    assert "--to" in (caught.value.hint or "")
    assert serving(fake) == [present] * 2


def test_status_needs_no_release_in_the_store(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    assert observe(fake.site, "app")["commit"] == "c" * 40
    fake.site.images.forget(image(fake, 2))
    state = observe(fake.site, "app")
    assert (state["release"], state["commit"]) == ("r2", None)
    fake.site.ledger.append("release.baked", {"release": "r1", "commit": "a" * 40})
    fake.site.ledger.append("release.baked", {"release": "r2", "commit": "b" * 40})
    assert observe(fake.site, "app")["commit"] == "b" * 40


def test_plan_says_about_how_long_by_earlier_rolls(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    _, order = command.plan_back(fake.site, "app", image(fake, 2))
    assert order is not None
    assert not order.plan.is_warm
    assert command.estimate(fake.site, "app", order) is None
    roll(fake, 2)
    _, order = command.plan_back(fake.site, "app", image(fake, 3))
    found = command.estimate(fake.site, "app", order)
    assert found is not None
    assert found.rolls == 1
    _, order = command.plan_back(fake.site, "app", None)
    assert order is not None
    assert order.plan.is_warm
    assert command.estimate(fake.site, "app", order) is None
    assert command.estimate(fake.site, "app", None) is None


def test_rollback_of_the_first_version_has_nowhere_to_go(fake: FakeSite) -> None:
    roll(fake, 1)
    with pytest.raises(NotFound):
        command.roll_back(fake.site, "app", None)


def test_up_leaves_an_unfinished_roll_alone(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="deregister after")
    before = fake.pool.serving()
    with pytest.raises(UnfinishedRoll, match="was cut short"):
        bring_up(fake.site)
    assert fake.pool.serving() == before


# Of the second, the address of one machine is the one for all.
@pytest.mark.parametrize("network", ["10.8.0.0/24", "10.9.0.0/30"])
def test_up_does_not_move_the_network_away_from_under_machines(
    fake: FakeSite, network: str
) -> None:
    roll(fake, 1)
    name = sorted(fake.provider.found)[-1]
    moved = with_network(fake, network)
    fake.balancer.stop()
    with pytest.raises(ConfigurationError, match=rf"network: .*{name} \(10\.") as caught:
        bring_up(moved)
    assert "'toolkit down test' first" in (caught.value.hint or "")
    assert not fake.balancer.is_running()
    command.abort(fake.site)
    take_down(moved)
    assert bring_up(moved) == []


def with_network(fake: FakeSite, network: str) -> Site:
    wanted = ipaddress.IPv4Network(network)
    return replace(fake.site, environment=replace(fake.site.environment, network=wanted))


def test_up_leaves_room_for_machines_that_a_way_back_must_start_again(make) -> None:
    """The old machine is removed and forgotten; a roll that was cut short has its address."""
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    [name] = fake.provider.found
    cut_short(fake, 2, at="destroy after")
    fake.site.ledger.forget_machines([name])
    with pytest.raises(ConfigurationError, match=rf"{name} \(10\."):
        bring_up(with_network(fake, "10.8.0.0/24"))


def test_up_that_was_cut_short_is_done_by_the_next(fake: FakeSite) -> None:
    roll(fake, 1)
    dead = sorted(fake.provider.found)[0]
    fake.provider.end(dead)
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(SmokeTestsFailed):
        bring_up(fake.site)
    fake.smoke.bad_images = set()
    assert bring_up(fake.site) == [dead]
    assert serving(fake) == [image(fake, 1)] * 2


def fail_tests_of(fake: FakeSite, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have machines fail their smoke tests, and others of the same image pass."""
    test = fake.smoke.test

    def test_some(machines, *, deadline_s):
        failed = [SmokeCheck(one.name, "test_it", False, 0.0, "E   it answers 500")
                  for one in machines if one.name in names]  # fmt: skip
        passed = [one for one in machines if one.name not in names]
        return [*test(passed, deadline_s=deadline_s), *failed]

    monkeypatch.setattr(fake.smoke, "test", test_some)


def restart_host(fake: FakeSite) -> None:
    """Let every machine end and the balancer forget its places."""
    for name in fake.provider.found:
        fake.provider.end(name)
    fake.balancer.stop()


def test_machine_that_fails_holds_up_no_other_after_a_restart(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make(machines=3)
    roll(fake, 1)
    first, second, third = sorted(fake.provider.found)
    restart_host(fake)
    with monkeypatch.context() as patched:
        fail_tests_of(fake, patched, second)
        with pytest.raises(SmokeTestsFailed, match=second) as caught:
            bring_up(fake.site)
        assert first not in caught.value.message
        assert serving(fake) == [image(fake, 1)] * 2
        assert fake.provider.found[second].address not in fake.pool.serving()
    assert fake.world.breaches == []
    assert bring_up(fake.site) == [second]
    assert len(fake.pool.serving()) == 3
    assert third in fake.provider.found


def test_role_that_fails_holds_up_no_other_after_a_restart(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll(fake, 1)
    names = sorted(fake.provider.found)
    other = replace(record("w"), role="web", address="10.9.0.40")
    fake.site.ledger.add_machines([other])
    web = FakePool(fake.world, places=2)
    environment = replace(
        fake.site.environment,
        deployments={**fake.site.environment.deployments, "web": make_deployment("web")},
    )
    project = replace(fake.site.project, roles={**fake.site.project.roles, "web": make_role("web")})
    pools = {**fake.site.pools, "web": web}
    site = replace(fake.site, environment=environment, project=project, pools=pools)
    restart_host(fake)
    fail_tests_of(fake, monkeypatch, *names)
    with pytest.raises(SmokeTestsFailed) as caught:
        bring_up(site)
    assert all(name in caught.value.message for name in names)
    assert web.serving() == {other.address}
    assert fake.pool.serving() == set()


@pytest.mark.parametrize("at", ["launch before", "launch after", "register after", "admit before"])
@pytest.mark.parametrize("strategy", ["rolling", "stateful"])
@pytest.mark.parametrize("is_abort", [False, True])
def test_taking_up_after_a_restart_has_everything_serve(
    make, strategy: str, at: str, is_abort: bool
) -> None:
    count = 1 if strategy == "stateful" else 2
    fake = make(strategy=strategy, machines=count)
    roll(fake, 1)
    cut_short(fake, 2, at=at)
    restart_host(fake)
    with pytest.raises(UnfinishedRoll):
        bring_up(fake.site)
    [result] = (command.abort if is_abort else command.resume)(fake.site)
    assert result.error is None
    assert serving(fake) == [image(fake, 1 if is_abort else 2)] * count
    assert drift(fake.site) == []
    assert fake.world.breaches == []


def test_abort_after_a_restart_tells_of_what_does_not_come_back(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll(fake, 1)
    old = sorted(fake.provider.found)
    cut_short(fake, 2, at="launch after")
    restart_host(fake)
    with pytest.raises(UnfinishedRoll):
        bring_up(fake.site)
    fail_tests_of(fake, monkeypatch, old[0])
    [result] = command.abort(fake.site)
    assert result.outcome == "discarded"
    assert isinstance(result.error, SmokeTestsFailed)
    assert old[0] in result.error.message
    assert "toolkit up test" in (result.error.hint or "")
    assert serving(fake) == [image(fake, 1)]
    assert fake.site.ledger.unfinished_rolls("test") == []


def test_down_ends_an_unfinished_roll(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="admit after")
    take_down(fake.site)
    assert fake.site.ledger.unfinished_rolls("test") == []
    assert fake.provider.found == {}
    assert fake.site.ledger.machines("test") == []


@pytest.mark.parametrize("until", ["reload before", "reload after"])
@pytest.mark.parametrize("at", ["launch after", "admit after", "drain after", "destroy before"])
@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "stateful"])
def test_up_after_a_down_that_was_cut_short_brings_one_version_back(
    make, strategy: str, at: str, until: str
) -> None:
    count = 1 if strategy == "stateful" else 2
    fake = make(strategy=strategy, machines=count)
    roll(fake, 1)
    cut_short(fake, 2, at=at)
    switched = [one for one in fake.site.ledger.entries() if one["kind"] == journal.SWITCHED]
    kill(fake, lambda: take_down(fake.site), at=until)
    bring_up(fake.site)
    # Each of the two rolls may have switched.
    assert serving(fake) == [image(fake, len(switched))] * count
    assert len(fake.provider.found) == count
    assert drift(fake.site) == []
    assert fake.world.breaches == []
    assert roll(fake, 3).outcome == "rolled"


def test_up_after_a_balancer_that_did_not_end_leaves_it_where_the_undoing_went(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="deregister after")
    kill(fake, lambda: command.abort(fake.site), at="admit before")

    def hang() -> None:
        raise OutsideError("haproxy does not end")

    with monkeypatch.context() as patched:
        patched.setattr(fake.balancer, "stop", hang)
        with pytest.raises(OutsideError):
            take_down(fake.site)
    bring_up(fake.site)
    assert serving(fake) == [image(fake, 1)] * 2
    assert drift(fake.site) == []


def test_down_removes_files_before_anybody_else_may_make_them(
    fake: FakeSite, tmp_path: Path
) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    removed = []

    def remove() -> None:
        with pytest.raises(LeaseHeld), fake.site.held("up"):
            pass
        removed.append(not volumes.exists())

    site = replace(fake.site, remove_runtime=remove)
    take_down(site, data=[volumes])
    assert removed == [True]


def test_first_up_that_fails_removes_its_files_before_anybody_else_may_make_them(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []

    def refuse() -> None:
        raise OutsideError("no")

    def remove() -> None:
        with pytest.raises(LeaseHeld), fake.site.held("up"):
            pass
        removed.append(fake.balancer.is_on)

    monkeypatch.setattr(fake.balancer, "ensure", refuse)
    site = replace(fake.site, remove_runtime=remove)
    with pytest.raises(OutsideError):
        bring_up(site)
    assert removed == []
    site.ledger.set_up("test", is_up=False)
    with pytest.raises(OutsideError):
        bring_up(site)
    assert removed == [False]


def test_environment_with_a_name_that_no_host_can_have_is_not_brought_up(fake: FakeSite) -> None:
    environment = replace(fake.site.environment, name="My env")
    with pytest.raises(ConfigurationError, match="the name of an environment"):
        bring_up(replace(fake.site, environment=environment))
    assert not fake.site.ledger.is_up("My env")
    assert take_down(replace(fake.site, environment=environment)) == []


def test_orphans_are_found_and_removed(fake: FakeSite) -> None:
    roll(fake, 1)
    known = next(iter(fake.provider.found.values()))
    fake.provider.found["stray"] = replace(known, name="stray", address="10.9.0.50")
    assert [one.name for one in find_orphans(fake.site)] == ["stray"]
    assert remove_orphans(fake.site, fake.site.ledger) == ["stray"]
    assert find_orphans(fake.site) == []


def record(name: str, standing: str = "member") -> MachineRecord:
    address = f"10.0.0.{ord(name) - 96}"
    return MachineRecord(name, "test", "app", "i", None, address, standing, "x", 1.0)


def machine(name: str, state: MachineState = MachineState.RUNNING) -> Machine:
    return Machine(name, "test", "app", "i", f"10.0.0.{ord(name) - 96}", state, 1.0)


def target(name: str, state: TargetState = TargetState.READY) -> Target:
    return Target(f"slot-{name}", f"10.0.0.{ord(name) - 96}", state, True, 0)


@pytest.mark.parametrize(
    ("records", "machines", "targets", "expected"),
    [
        ([record("a")], [machine("a")], [target("a")], []),
        ([record("a")], [], [target("a")], ["does not"]),
        ([record("a")], [machine("a", MachineState.STOPPED)], [target("a")], ["does not"]),
        ([record("a")], [machine("a")], [], ["no place"]),
        ([record("a")], [machine("a")], [target("a", TargetState.DRAINING)], ["drained"]),
        ([record("a")], [machine("a")], [target("a", TargetState.MAINTENANCE)], ["maintenance"]),
        ([record("a", "warm")], [machine("a")], [target("a")], ["has it ready"]),
        ([record("a", "warm")], [machine("a")], [target("a", TargetState.DRAINING)], []),
        ([record("a", "warm")], [machine("a")], [], []),
        ([], [], [target("b")], ["no machine of ours"]),
        ([record("a")], [machine("a")], [replace(target("a"), percent=0.0)], ["gives it 0 % of"]),
    ],
)
def test_drift(records: list, machines: list, targets: list, expected: list[str]) -> None:
    found = find_drift(records, machines, targets)
    assert len(found) == len(expected)
    assert all(words in sentence for words, sentence in zip(expected, found, strict=True))


def test_share_that_was_changed_by_hand_is_told_and_put_right_when_asked(fake: FakeSite) -> None:
    roll(fake, 1)
    [first, _] = fake.pool.targets()
    fake.pool.weigh([first.address], 0)
    assert any("gives it 0 %" in one for one in drift(fake.site))
    bring_up(fake.site)
    assert any("gives it 0 %" in one for one in drift(fake.site))
    bring_up(fake.site, is_repair=True)
    assert drift(fake.site) == []


def test_machine_in_maintenance_is_left_there_until_somebody_asks(fake: FakeSite) -> None:
    roll(fake, 1)
    held, _ = fake.pool.targets()
    fake.pool.weigh([held.address], 10)
    fake.pool.hold([held.address])
    told = drift(fake.site)
    assert bring_up(fake.site) == []
    assert fake.pool.serving() != {held.address} and len(fake.pool.serving()) == 1
    assert drift(fake.site) == told
    assert any("meant to serve, and is in maintenance" in one for one in told)
    assert {one["state"] for one in observe(fake.site, "app")["machines"]} == {
        "maintenance",
        "serving",
    }
    assert len(bring_up(fake.site, is_repair=True)) == 1
    assert drift(fake.site) == []
    assert len(fake.pool.serving()) == 2


def test_machines_may_take_as_long_to_end_as_their_role_says(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make(keep_warm_s=1e-9, timeouts=Timeouts(60.0, 60.0, 60.0, 60.0, 123.0))
    roll(fake, 1)
    roll(fake, 2)
    given: list[float] = []
    destroy = fake.provider.destroy

    def watched(names: Sequence[str], *, deadline_s: float) -> None:
        given.append(deadline_s)
        destroy(names, deadline_s=deadline_s)

    monkeypatch.setattr(fake.provider, "destroy", watched)
    assert len(retire(fake.site, is_dry_run=False)) == 2
    assert len(take_down(fake.site)) == 2
    assert given == [123.0, 123.0, 123.0]
    assert fake.site.environment.stop_s("gone") == 20.0


@pytest.mark.parametrize("take_up", [command.resume, command.abort])
def test_a_roll_of_a_role_that_is_gone_says_what_can_be_done(fake: FakeSite, take_up) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="register after")
    machines = dict(fake.provider.found)
    environment = replace(fake.site.environment, deployments={})
    site = replace(fake.site, environment=environment, pools={})
    with pytest.raises(ConfigurationError, match="a roll of app, which test has no more") as caught:
        take_up(site)
    assert "toolkit.yml" in (caught.value.hint or "")
    assert retire(site, is_dry_run=False) == []
    assert fake.provider.found == machines
    [result] = take_up(fake.site)
    assert result.error is None or take_up is command.abort
    assert fake.site.ledger.unfinished_rolls("test") == []


def test_machines_of_a_role_that_is_gone_are_told_of(fake: FakeSite) -> None:
    roll(fake, 1)
    names = sorted(fake.provider.found)
    environment = replace(fake.site.environment, deployments={})
    site = replace(fake.site, environment=environment, pools={})
    [told] = drift(site)
    assert f"{', '.join(names)} belong to roles that test has no more" in told
    assert sorted(take_down(site)) == names
    assert drift(site) == ["it is not up: 'toolkit up test' starts it"]


def test_a_warm_machine_that_hangs_is_no_quick_way_back(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    ill = fake.site.ledger.machines("test")[0]
    roll(fake, 2)
    fake.world.answering.discard(ill.address)
    fake.pool.targets()
    result = command.roll_back(fake.site, "app", None)
    assert result.outcome == "rolled"
    assert ill.name not in result.machines
    assert serving(fake) == [image(fake, 1)] * 2


def test_no_more_warm_machines_return_than_are_configured(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    roll(fake, 2)
    app = replace(fake.site.environment.deployments["app"], machines=1)
    environment = replace(fake.site.environment, deployments={"app": app})
    site = replace(fake.site, environment=environment)
    result = command.roll_back(site, "app", None)
    assert result.outcome == "rolled"
    assert len(fake.pool.serving()) == 1


@pytest.mark.parametrize("strategy", ["rolling", "stateful"])
@pytest.mark.parametrize("effect", ["launch", "register", "admit"])
def test_an_error_of_the_system_is_undone_like_any_other(
    make, monkeypatch: pytest.MonkeyPatch, strategy: str, effect: str
) -> None:
    fake = make(strategy=strategy, machines=1)
    roll(fake, 1)
    target = fake.provider if effect == "launch" else fake.pool
    act, calls = getattr(target, effect), []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return act(*arguments)

    monkeypatch.setattr(target, effect, fails_once)
    result = roll(fake, 2)
    assert isinstance(result.error, ToolkitError)
    assert f"{effect}: No space left on device" in result.error.message
    assert serving(fake) == [image(fake, 1)]
    assert fake.site.ledger.unfinished_rolls("test") == []


def test_machine_in_maintenance_that_ends_stays_out_too(fake: FakeSite) -> None:
    roll(fake, 1)
    held = fake.site.ledger.machines("test")[0]
    fake.pool.hold([held.address])
    fake.provider.end(held.name)
    assert bring_up(fake.site) == []
    assert held.address not in fake.pool.serving()
    assert bring_up(fake.site, is_repair=True) == [held.name]
    assert drift(fake.site) == []


def test_roll_that_an_earlier_toolkit_began_can_be_ended(fake: FakeSite) -> None:
    """Before it was recorded what was in maintenance."""
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    [record] = fake.site.ledger.unfinished_rolls("test")
    order = {key: value for key, value in record.order.items() if key != "held"}
    with fake.site.ledger.transaction() as connection:
        only = tables.rolls.c.id == record.id
        connection.execute(update(tables.rolls).where(only).values(order=order))
    assert command.abort(fake.site)[0].outcome == "rolled-back"


@pytest.mark.parametrize("strategy", ["blue-green", "rolling"])
def test_roll_that_goes_back_leaves_in_maintenance_what_was(make, strategy: str) -> None:
    """It may be there because it is broken; the roll must not hang on that."""
    fake = make(strategy=strategy)
    roll(fake, 1)
    held, other = (one.address for one in fake.site.ledger.machines("test"))
    fake.pool.hold([held])
    fake.world.answering.discard(held)
    cut_short(fake, 2, at="drain after")
    [result] = command.abort(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)
    assert fake.pool.serving() == {other}
    assert {one.address: one.state for one in fake.pool.targets()} == {
        held: TargetState.MAINTENANCE,
        other: TargetState.READY,
    }


@pytest.mark.parametrize("strategy", ["blue-green", "rolling"])
def test_roll_that_goes_back_leaves_drained_what_was(make, strategy: str) -> None:
    fake = make(strategy=strategy)
    roll(fake, 1)
    drained, other = (one.address for one in fake.site.ledger.machines("test"))
    fake.pool.drain([drained])
    cut_short(fake, 2, at="drain after")
    [result] = command.abort(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)
    assert {one.address: one.state for one in fake.pool.targets()} == {
        drained: TargetState.DRAINING,
        other: TargetState.READY,
    }
    assert bring_up(fake.site, is_repair=True) != []
    assert fake.pool.serving() == {drained, other}


def test_old_machine_that_was_still_coming_back_serves_after_a_roll_that_failed(make) -> None:
    """It drains since `up` was cut short, not since somebody wanted that."""
    fake = make(soak=Soak(10.0, 1.0, 50, 0.0))
    roll(fake, 1)
    restart_host(fake)
    kill(fake, lambda: bring_up(fake.site), at="admit before")
    assert {one.state for one in fake.pool.targets()} == {TargetState.DRAINING}
    assert roll_with_errors(fake, 2, 0.05).outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)] * 2


def test_way_back_that_was_cut_short_does_not_take_its_own_drain_for_somebodys(make) -> None:
    fake = make(strategy="blue-green", machines=1)
    roll(fake, 1)
    [old] = fake.site.ledger.machines("test")
    fake.pool.drain([old.address])
    cut_short(fake, 2, at="deregister after")
    kill(fake, lambda: command.abort(fake.site), at="register after")
    [result] = command.abort(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)
    assert serving(fake) == [image(fake, 1)]


def test_role_without_tests_of_its_own_is_refused_before_anything_starts(fake: FakeSite) -> None:
    fake.smoke.has_tests = False
    with pytest.raises(ConfigurationError, match="no smoke tests"):
        roll(fake, 1)
    assert fake.provider.found == {}
    assert fake.site.ledger.rolls("test") == []
    assert fake.site.ledger.machines("test") == []


def test_smoke_of_live_machines_misses_one_that_is_gone(fake: FakeSite) -> None:
    with pytest.raises(ConfigurationError, match="nothing runs in test"):
        command.test_live(fake.site, None)
    roll(fake, 1)
    assert [one.is_passed for one in command.test_live(fake.site, "app")] == [True, True]
    gone = sorted(fake.provider.found)[0]
    del fake.provider.found[gone]
    failed = [one for one in command.test_live(fake.site, None) if not one.is_passed]
    assert [(one.machine, one.message) for one in failed] == [
        (gone, "it is meant to run, and does not")
    ]


def test_interrupt_in_the_last_step_of_a_roll_keeps_the_next_from_beginning(
    fake: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what the first came to is printed all the same."""
    roll(fake, 1)

    def interrupt(name: str) -> None:
        if name == "destroy after":
            os.kill(os.getpid(), signal.SIGINT)
            fake.world.at = lambda _name: None

    fake.world.at = interrupt
    context = Context(Path("/nowhere"), Path("/nowhere"), is_quiet=True)
    context.as_json = True
    with pytest.raises(Interrupted):
        in_turn(context, ["2", "3"], lambda one: roll(fake, int(one)), is_single=False)
    assert [one["outcome"] for one in json.loads(capsys.readouterr().out)] == ["rolled"]
    assert serving(fake) == [image(fake, 2)] * 2
    assert fake.site.ledger.unfinished_rolls("test") == []
    # It was answered: the next command is not held up by it.
    assert roll(fake, 3).outcome == "rolled"


def test_machines_started_again_are_recorded_with_what_they_were_told(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is changed, a machine dies, and `up` starts it with the new one."""
    roll(fake, 1)
    before = {one.name: one.inputs for one in fake.site.ledger.machines("test")}
    changed = {"colour": "blue"}
    monkeypatch.setattr(prepare, "role_settings", lambda *_: changed)
    dead = sorted(before)[0]
    fake.provider.end(dead)
    bring_up(fake.site)
    after = {one.name: one.inputs for one in fake.site.ledger.machines("test")}
    assert {name for name in before if before[name] != after[name]} == {dead}
    assert after[dead] == prepare.gather_inputs(fake.site, "app").digest
    # One pool under two configurations is not what is wanted, whichever of them that is.
    assert roll(fake, 1).outcome == "rolled"


def test_machines_of_a_resumed_roll_are_recorded_with_what_they_were_told(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="launch before")
    monkeypatch.setattr(prepare, "role_settings", lambda *_: {"colour": "blue"})
    [result] = command.resume(fake.site)
    assert result.outcome == "rolled"
    told = prepare.gather_inputs(fake.site, "app").digest
    assert {one.inputs for one in fake.site.ledger.machines("test")} == {told}


@pytest.mark.parametrize("is_abort", [False, True])
def test_downtime_counts_what_passed_before_a_roll_was_taken_up(
    make, is_abort: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make(strategy="stateful", machines=1)
    clock = itertools.count(1_000_000.0)
    monkeypatch.setattr(clock_module, "host_uptime", lambda: next(clock))
    roll(fake, 1)
    cut_short(fake, 2, at="launch before")
    for _ in range(5000):
        next(clock)
    [result] = (command.abort if is_abort else command.resume)(fake.site)
    assert result.outcome == ("discarded" if is_abort else "rolled")
    assert 5000 < result.report.downtime_s < 5200


def test_downtime_ends_with_the_first_admission(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll that is cut short after it and taken up much later has served meanwhile."""
    fake = make(strategy="stateful", machines=1)
    clock = itertools.count(1_000_000.0)
    monkeypatch.setattr(clock_module, "host_uptime", lambda: next(clock))
    roll(fake, 1)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.admit.committed"))
        roll(fake, 2)
    for _ in range(5000):
        next(clock)
    [result] = command.resume(fake.site)
    assert result.outcome == "rolled"
    assert 0 < result.report.downtime_s < 200


@pytest.mark.parametrize("years", [-10, 10])
def test_downtime_knows_nothing_of_a_clock_that_jumps(
    make, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)

    def jump(name: str) -> None:
        if name == "launch before":
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + years * 365 * 86400.0)

    fake.world.at = jump
    assert 0 < roll(fake, 2).report.downtime_s < 60


def test_downtime_of_a_roll_that_an_earlier_toolkit_began() -> None:
    """Its entries have the wall clock's time alone."""

    def entry(number: int, kind: str, effect: str) -> dict[str, Any]:
        return {
            "sequence": number, "time": 100.0 * number, "kind": kind, "data": {"effect": effect}
        }  # fmt: skip

    entries = [entry(1, journal.INTENT, "drain"), entry(3, journal.DONE, "admit")]
    now = clock_module.Instant.now()
    assert downtime_s(entries, now=now) == 200.0
    assert downtime_s(entries[:1], now=now) == now.wall - 100.0


def test_time_between_two_starts_of_a_host_goes_by_the_wall_clock() -> None:
    before = clock_module.Instant(1000.0, 50.0, "a")
    assert clock_module.Instant(1100.0, 51.5, "a").since(before) == 1.5
    assert clock_module.Instant(1100.0, 51.5, "b").since(before) == 100.0
    assert clock_module.Instant(900.0, 51.5, "b").since(before) == 0.0


def test_discarded_roll_ends_with_the_error_that_it_came_from(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 4 says that machines failed; a full disk or a hook is something else."""
    roll(fake, 1)

    def full(_images) -> None:
        raise OutsideError("the disk is full")

    monkeypatch.setattr(fake.provider, "publish", full)
    result = roll(fake, 2)
    assert result.outcome == "discarded"
    assert type(result.error) is OutsideError
    assert result.error.message == "discarded: the disk is full"
    monkeypatch.undo()
    fake.hooks.is_failing = True
    result = roll(fake, 2)
    assert (result.outcome, result.error.exit_code) == ("discarded", 1)
    assert result.error.message.startswith("discarded: hook before.yml failed")
    fake.hooks.is_failing = False
    fake.provider.is_starting_broken = True
    result = roll(fake, 2)
    assert (result.outcome, result.error.exit_code) == ("discarded", 4)
    assert "did not come up" in result.error.message


@pytest.mark.parametrize(
    ("settings", "at", "code"),
    [({}, "destroy before", 4), ({"batch": 1}, "deregister before", 5)],
)
def test_resumed_way_back_ends_as_it_would_have(make, settings: dict, at: str, code: int) -> None:
    fake = make(**settings)
    roll(fake, 1)
    if code == 4:
        fake.smoke.bad_images = {image(fake, 2)}
    else:
        fake.world.at = lambda _name: None
        fake.pool.await_healthy = fail_once(fake.pool.await_healthy)
    cut_short(fake, 2, at=at)
    [result] = command.resume(fake.site)
    assert result.outcome == {4: "discarded", 5: "rolled-back"}[code]
    assert result.error is not None and result.error.exit_code == code
    assert ("smoke tests failed" if code == 4 else "it is ill") in result.error.message


def test_resumed_abort_is_no_failure(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="register after")
    kill(fake, lambda: command.abort(fake.site), at="destroy before")
    [result] = command.resume(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)


def fail_once(act: Callable[..., object]) -> Callable[..., object]:
    """Return a function that fails the first time."""
    calls = itertools.count()

    def fail(*arguments: object, **more: object) -> object:
        if next(calls) == 0:
            raise OutsideError("it is ill")
        return act(*arguments, **more)

    return fail


def effects_of(fake: FakeSite, *names: str) -> list[tuple[str, str]]:
    """Return the entries of some effects, oldest first."""
    entries = fake.site.ledger.entries(environment="test", kinds=("effect.intent", "effect.done"))
    found = [(one["kind"], one["data"]["effect"]) for one in reversed(entries)]
    return [(kind, name) for kind, name in found if name in names]


def test_what_is_retired_was_announced_before(make) -> None:
    """Killed between a warm machine's place and itself, the ledger says what was begun."""
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    roll(fake, 2)
    warm = [one.name for one in fake.site.ledger.machines("test") if one.standing == "warm"]
    fake.site.ledger.set_standing(warm, "warm", warm_until=1.0)
    kill(fake, lambda: retire(fake.site, is_dry_run=False), at="deregister after")
    assert effects_of(fake, "retire") == [("effect.intent", "retire")]
    assert set(retire(fake.site, is_dry_run=False)) == set(warm)
    assert len(effects_of(fake, "retire")) == 1 + 2 * len(warm)


def test_a_machine_that_nobody_knows_is_not_removed_unannounced(fake: FakeSite) -> None:
    roll(fake, 1)
    [name, _] = fake.provider.found
    fake.site.ledger.forget_machines([name])
    kill(fake, lambda: bring_up(fake.site), at="destroy before")
    assert effects_of(fake, "orphans") == [("effect.intent", "orphans")]
    bring_up(fake.site)
    assert name not in fake.provider.found
    assert effects_of(fake, "orphans")[-1] == ("effect.done", "orphans")


def test_a_strange_place_is_not_removed_unannounced(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.world.tested.add("10.9.0.60")
    fake.pool.register(["10.9.0.60"])
    kill(fake, lambda: bring_up(fake.site, is_repair=True), at="deregister before")
    assert effects_of(fake, "places") == [("effect.intent", "places")]
    bring_up(fake.site, is_repair=True)
    assert len([place for place in fake.pool.places if place]) == 2


def test_certificate_is_renewed_only_with_the_lease_and_on_record(fake: FakeSite) -> None:
    """Nobody may take the environment down meanwhile."""
    seen = []

    def renew() -> None:
        seen.extend(effects_of(fake, "certificate"))
        with pytest.raises(LeaseHeld):
            take_down(fake.site)

    fake.balancer.renew = renew
    assert rotate._renew_balancer(fake.site, "edge_tls", wait_s=0.0) == "renewed"
    assert seen == [("effect.intent", "certificate")]
    assert effects_of(fake, "certificate")[-1] == ("effect.done", "certificate")


def test_certificate_of_an_environment_that_was_taken_down_is_left_alone(fake: FakeSite) -> None:
    take_down(fake.site)
    with pytest.raises(ConfigurationError, match="is not up"):
        rotate._renew_balancer(fake.site, "edge_tls", wait_s=0.0)
    assert fake.balancer.renewals == 0


def test_status_does_not_send_to_up_with_what_up_leaves_alone(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    # What the roll itself has drained is no news.
    [told] = drift(fake.site)
    hang(fake, machines(fake, 2)[0])
    fake.pool.targets()
    told = drift(fake.site)
    assert not any("--repair" in one for one in told)
    assert "'toolkit resume test'" in told[-1] and "'toolkit abort test'" in told[-1]
    command.abort(fake.site)
    [place, _] = [one for one in fake.pool.places if one]
    fake.pool.drain([place.address])
    assert "'toolkit up test --repair' puts this right" in drift(fake.site)


@pytest.mark.parametrize("strategy", ["stateful", "blue-green"])
@pytest.mark.parametrize("act", [command.abort, command.resume])
def test_nothing_of_a_roll_comes_back_after_down(
    make, strategy: str, act: Callable[[Site], object]
) -> None:
    """Also what it had removed and begun to start again."""
    fake = make(strategy=strategy, machines=1)
    roll(fake, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.destroy.committed"))
        roll(fake, 2)
    with pytest.MonkeyPatch.context() as patch, suppress(Stop):
        patch.setattr(faults, "reach", stop_at("roll.launch.intended"))
        act(fake.site)
    take_down(fake.site)
    assert fake.site.ledger.machines("test") == []
    bring_up(fake.site)
    assert fake.provider.found == {}


@pytest.mark.parametrize("act", [command.resume, command.abort])
def test_what_became_of_the_rest_of_a_command_is_told(
    fake: FakeSite, act: Callable[[Site], list[RollResult]]
) -> None:
    """Of three roles `app` is the second; the first was rolled, the third did not begin."""
    group = new_group(["database", "app", "web"])
    roll(fake, 1)
    digest = image(fake, 2)
    wanted = Wanted(fake.site.images.image(digest), fake.site.images.release_of(digest))
    kill(fake, lambda: command.roll_role(fake.site, "app", wanted, group=group), at="admit after")
    newest = fake.site.ledger.rolls("test")[0]
    for role, identity in (("database", group.id), ("web", "of another command")):
        order = {**newest.order, "group": {"id": identity, "roles": list(group.roles)}}
        done = replace(newest, id=f"roll-{role}", role=role, outcome="rolled", order=order)
        fake.site.ledger.start_roll(done)
    told = rest_of_group(fake.site, act(fake.site))
    if act is command.resume:
        assert told == ["web did not begin: 'toolkit roll test --release r2' goes on"]
    else:
        assert told == [
            "database had been rolled by the same command, and stay so: "
            "'toolkit rollback test ROLE' takes one back"
        ]


def test_rolls_of_one_role_say_nothing_of_others(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="admit after")
    assert rest_of_group(fake.site, command.resume(fake.site)) == []


def test_rollback_that_is_given_again_or_late_goes_no_further_back(fake: FakeSite) -> None:
    for version in (1, 2, 3):
        roll(fake, version)
    leaving = command.serving_image(fake.site, "app")
    results = [command.roll_back(fake.site, "app", None, leaving=leaving) for _ in range(2)]
    assert [one.outcome for one in results] == ["rolled", "unchanged"]
    assert serving(fake) == [image(fake, 2)] * 2
    command.roll_back(fake.site, "app", None, leaving=image(fake, 2))
    assert serving(fake) == [image(fake, 1)] * 2


def test_who_stops_between_rollbacks_is_told_which_are_left(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    stopped.set()
    monkeypatch.setattr(interrupt, "_asked", stopped)
    with pytest.raises(Interrupted) as caught:
        command.roll_back(fake.site, "app", None, group=new_group(["web", "app", "database"]))
    assert caught.value.hint == (
        "app, database did not begin: 'toolkit rollback test app', 'toolkit rollback test database'"
        " goes on"
    )


def test_resuming_is_in_the_ledger(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="admit after")
    command.resume(fake.site)
    [entry] = fake.site.ledger.entries(kinds=["roll.resumed"])
    assert entry["roll"] == fake.site.ledger.rolls("test")[0].id
    assert entry["data"]["started_by"] == fake.site.ledger.rolls("test")[0].by
    # What it took says nothing of the next one.
    digest = image(fake, 3)
    order = command.plan_only(fake.site, "app", Wanted(fake.site.images.image(digest), None))
    assert command.estimate(fake.site, "app", order) is None


def test_status_knows_what_has_passed_in_a_roll_that_was_cut_short(fake: FakeSite) -> None:
    roll(fake, 1)

    def smoke() -> set[str]:
        seen = observe(fake.site, "app")["machines"]
        return {one["smoke"] for one in seen if one["name"] in machines(fake, 2)}

    cut_short(fake, 2, at="launch after")
    assert smoke() == {"pending"}
    command.abort(fake.site)
    cut_short(fake, 2, at="register before")
    assert smoke() == {"passed"}
    seen = observe(fake.site, "app", find_remarks(fake.site))
    assert seen["unfinished"] == fake.site.ledger.rolls("test")[0].id
    assert any("was cut short" in one for one in seen["remarks"])
    assert seen["wanted"] == 2
    # Whoever is started again has passed nothing since.
    fake.provider.end(machines(fake, 2)[0])
    kill(fake, lambda: command.resume(fake.site), at="launch after")
    assert "pending" in smoke()


def test_status_without_a_balancer_says_nothing_of_places(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.site.balancer.stop()
    assert drift(fake.site) == ["the balancer does not run: 'toolkit up test' starts it"]
