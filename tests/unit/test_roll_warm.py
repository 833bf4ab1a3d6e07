"""Machines that are kept warm, and are not as they were left."""

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.fakes import FakeSite
from tests.support.rolls import (
    Stop,
    address,
    cut_short,
    drift,
    hang,
    image,
    kill,
    machines,
    roll,
    serving,
    stop_at,
)
from toolkit import faults
from toolkit.clock import host_uptime
from toolkit.errors import SmokeTestsFailed, ToolkitError
from toolkit.model import Machine, SmokeCheck
from toolkit.roll import command
from toolkit.roll.expire import retire
from toolkit.roll.lifecycle import bring_up
from toolkit.roll.wanted import Wanted


@pytest.fixture
def warm(make) -> FakeSite:
    """Two machines of version 2 serve, and two of version 1 are warm."""
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    roll(fake, 2)
    return fake


def put_back(fake: FakeSite) -> None:
    """Have a warm machine serve, as somebody at the balancer may."""
    fake.pool.admit([address(fake, machines(fake, 1)[0])])
    assert len(serving(fake)) == 3


def test_warm_machine_that_was_put_back_is_drained_when_asked(warm: FakeSite) -> None:
    put_back(warm)
    assert any("meant to be warm" in one for one in drift(warm.site))
    bring_up(warm.site)
    assert len(serving(warm)) == 3
    bring_up(warm.site, is_repair=True)
    assert serving(warm) == [image(warm, 2)] * 2
    assert drift(warm.site) == []
    assert len(warm.provider.found) == 4


def test_warm_machine_that_was_put_back_does_not_expire(warm: FakeSite) -> None:
    put_back(warm)
    back, resting = machines(warm, 1)
    warm.site.ledger.set_standing([back, resting], "warm", warm_until=host_uptime() - 1)
    assert retire(warm.site, is_dry_run=False) == [resting]
    assert len(serving(warm)) == 3
    warm.pool.drain([address(warm, back)])
    assert retire(warm.site, is_dry_run=False) == [back]


def test_warm_machine_that_was_put_back_is_replaced_by_the_next_roll(warm: FakeSite) -> None:
    put_back(warm)
    counts = least_of(warm)
    assert roll(warm, 3).outcome == "rolled"
    assert min(counts) >= 2
    assert serving(warm) == [image(warm, 3)] * 2


@pytest.mark.parametrize(("at", "times"), [("admit after", 1), ("drain after", 2)])
def test_abort_leaves_as_warm_as_before_who_was_put_back(
    warm: FakeSite, at: str, times: int
) -> None:
    put_back(warm)

    def standings() -> dict[str, tuple[str, float | None]]:
        found = warm.site.ledger.machines("test")
        return {one.name: (one.standing, one.warm_until) for one in found}

    before = standings()
    cut_short(warm, 3, at=at, times=times)
    command.abort(warm.site)
    # The other one had made room for the roll.
    assert standings() == {name: before[name] for name in standings()}
    assert len(standings()) == 3
    assert len(serving(warm)) == 3


@pytest.fixture
def rescued(warm: FakeSite) -> FakeSite:
    """Version 2 hangs, and somebody has put the warm machines of version 1 back into service."""
    for name in machines(warm, 2):
        hang(warm, name)
    warm.pool.targets()
    warm.pool.admit([address(warm, name) for name in machines(warm, 1)])
    assert serving(warm) == [image(warm, 1)] * 2
    return warm


def least_of(fake: FakeSite) -> list[int]:
    """Return a list that grows with how many serve."""
    counts: list[int] = []
    fake.world.at = lambda _name: counts.append(len(fake.pool.serving()))
    return counts


@pytest.mark.parametrize("is_bad", [False, True])
def test_repair_drains_warm_machines_only_once_all_others_serve(
    rescued: FakeSite, is_bad: bool
) -> None:
    counts = least_of(rescued)
    if is_bad:
        rescued.smoke.bad_images = {image(rescued, 2)}
        with pytest.raises(ToolkitError):
            bring_up(rescued.site, is_repair=True)
    else:
        bring_up(rescued.site, is_repair=True)
    assert min(counts) >= 2
    assert serving(rescued) == [image(rescued, 1 if is_bad else 2)] * 2


def test_rollback_that_fails_its_tests_leaves_those_that_serve(rescued: FakeSite) -> None:
    rescued.smoke.bad_images = {image(rescued, 1)}
    counts = least_of(rescued)
    assert command.roll_back(rescued.site, "app", None).outcome == "discarded"
    assert min(counts, default=2) == 2
    assert serving(rescued) == [image(rescued, 1)] * 2


def test_rollback_to_those_that_serve_already_makes_them_members(rescued: FakeSite) -> None:
    counts = least_of(rescued)
    assert command.roll_back(rescued.site, "app", None).outcome == "rolled"
    assert min(counts) == 2
    assert {one.image for one in rescued.site.members("app")} == {image(rescued, 1)}


@pytest.mark.parametrize("at", ["admit after", "drain after"])
def test_rollback_that_is_aborted_leaves_in_service_who_was(rescued: FakeSite, at: str) -> None:
    kill(rescued, lambda: command.roll_back(rescued.site, "app", None), at=at)
    counts = least_of(rescued)
    command.abort(rescued.site)
    assert min(counts, default=2) == 2
    assert image(rescued, 1) in serving(rescued)


def test_roll_that_fails_its_tests_leaves_warm_machines_that_serve(rescued: FakeSite) -> None:
    rescued.smoke.bad_images = {image(rescued, 3)}
    counts = least_of(rescued)
    assert roll(rescued, 3).outcome == "discarded"
    assert min(counts) == 2
    assert serving(rescued) == [image(rescued, 1)] * 2


def test_tests_that_could_not_run_say_nothing_against_warm_machines(
    warm: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_found: Sequence[Machine], *, deadline_s: float) -> list[SmokeCheck]:
        raise SmokeTestsFailed(f"a syntax error, within {deadline_s:g} s")

    monkeypatch.setattr(warm.smoke, "test", break_down)
    assert command.roll_back(warm.site, "app", None).outcome == "discarded"
    assert len(machines(warm, 1)) == 2
    monkeypatch.undo()


def test_warm_machines_make_room_in_a_network_that_is_full(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0, machines=5)
    small = replace(fake.site.environment, network=ipaddress.ip_network("10.9.0.0/28"))
    fake = replace(fake, site=replace(fake.site, environment=small))
    roll(fake, 1)
    roll(fake, 2)
    digest = image(fake, 3)
    wanted = Wanted(fake.site.images.image(digest), None)
    assert command.plan_only(fake.site, "app", wanted) is not None
    assert len(fake.provider.found) == 10
    assert roll(fake, 3).outcome == "rolled"
    assert machines(fake, 1) == []
    # Those of the version before are a quick way back, which needs no room.
    assert command.roll_back(fake.site, "app", None).outcome == "rolled"
    assert serving(fake) == [image(fake, 2)] * 5


def test_withdrawn_machine_stays_a_member_when_a_roll_goes_back(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    held = machines(fake, 1)[0]
    fake.pool.drain([address(fake, held)])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.keep-warm.committed"))
        roll(fake, 2)
    command.abort(fake.site)
    assert {one.name for one in fake.site.members("app")} == set(machines(fake, 1))


def test_warm_machines_that_fail_their_tests_are_no_quick_way_back(
    warm: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    ill, test = set(machines(warm, 1)), warm.smoke.test

    def fail(found: Sequence[Machine], *, deadline_s: float) -> list[SmokeCheck]:
        checks = test(found, deadline_s=deadline_s)
        return [replace(one, is_passed=one.machine not in ill) for one in checks]

    monkeypatch.setattr(warm.smoke, "test", fail)
    result = command.roll_back(warm.site, "app", None)
    assert (result.outcome, type(result.error)) == ("discarded", SmokeTestsFailed)
    assert serving(warm) == [image(warm, 2)] * 2
    assert not ill & set(warm.provider.found)
    # New ones start from the image.
    assert command.roll_back(warm.site, "app", None).outcome == "rolled"
    assert serving(warm) == [image(warm, 1)] * 2


@pytest.mark.parametrize("how", ["hold", "drain"])
def test_abort_has_old_machines_serve_that_were_withdrawn_since_the_roll_began(
    make, how: str
) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="register after", times=2)
    getattr(fake.pool, how)([address(fake, name) for name in machines(fake, 1)])
    command.abort(fake.site)
    assert serving(fake) == [image(fake, 1)] * 2
