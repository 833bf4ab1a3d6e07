"""Machines that are kept warm, and are not as they were left."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.fakes import FakeSite
from tests.support.rolls import address, cut_short, drift, image, machines, roll, serving
from toolkit.clock import host_uptime
from toolkit.errors import SmokeTestsFailed
from toolkit.model import Machine, SmokeCheck
from toolkit.roll import command
from toolkit.roll.expire import retire
from toolkit.roll.lifecycle import bring_up


@pytest.fixture
def warm(make) -> FakeSite:
    """Two machines of version 2 serve, and two of version 1 are warm."""
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    roll(fake, 2)
    return fake


def heard(fake: FakeSite) -> list[str]:
    """Return a list that grows with what the world is told."""
    told: list[str] = []
    fake.world.at = told.append
    return told


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


def test_warm_machine_that_was_put_back_drains_before_it_expires(warm: FakeSite) -> None:
    put_back(warm)
    names = machines(warm, 1)
    warm.site.ledger.set_standing(names, "warm", warm_until=host_uptime() - 1)
    told = heard(warm)
    assert retire(warm.site, is_dry_run=False) == names
    assert told.index("drain before") < told.index("deregister before")


def test_warm_machine_that_was_put_back_drains_before_it_makes_room(warm: FakeSite) -> None:
    put_back(warm)
    told = heard(warm)
    assert roll(warm, 3).outcome == "rolled"
    assert told.index("drain before") < told.index("deregister before")


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
