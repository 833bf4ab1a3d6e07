"""Rolls that are left as they stand, and what becomes of the machines that stay."""

from collections.abc import Callable, Collection

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
    stuck,
)
from toolkit import faults
from toolkit.errors import ToolkitError
from toolkit.roll import command, prepare
from toolkit.roll.expire import find_in_use
from toolkit.roll.lifecycle import bring_up

MIXED = "app has machines of several images: 'toolkit roll test app' replaces them all"


def test_roll_that_neither_version_can_end_is_left_and_the_next_replaces_all(
    fake: FakeSite,
) -> None:
    ill = stuck(fake)
    [result] = command.leave(fake.site)
    assert (result.outcome, result.error) == ("left", None)
    assert len(result.machines) == 2
    assert ill not in fake.provider.found
    assert serving(fake) == [image(fake, 1), image(fake, 2)]
    assert fake.site.ledger.rolls("test")[0].outcome == "left"
    assert drift(fake.site) == [MIXED]
    assert roll(fake, 3).outcome == "rolled"
    assert serving(fake) == [image(fake, 3)] * 2
    assert len(fake.provider.found) == 2
    assert command.leave(fake.site) == []
    assert fake.world.breaches == []


def test_rollback_after_leaving_goes_to_the_version_before(fake: FakeSite) -> None:
    stuck(fake)
    command.leave(fake.site)
    fake.smoke.bad_images.clear()
    assert command.roll_back(fake.site, "app", None).outcome == "rolled"
    assert serving(fake) == [image(fake, 1)] * 2


def test_leaving_keeps_what_is_warm_and_has_a_place(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    roll(fake, 2)
    warm = machines(fake, 1)
    cut_short(fake, 3, at="deregister after")
    command.leave(fake.site)
    assert len(machines(fake, 1)) == 1
    assert serving(fake) == [image(fake, 2)] * 2
    records = {one.name: one.standing for one in fake.site.ledger.machines("test")}
    assert [records.get(name) for name in warm].count("warm") == 1
    assert len(records) == 3
    assert drift(fake.site) == []


@pytest.mark.parametrize("strategy", ["blue-green", "stateful"])
def test_leaving_where_nothing_serves_keeps_the_version_before(make, strategy: str) -> None:
    count = 1 if strategy == "stateful" else 2
    fake = make(strategy=strategy, machines=count)
    roll(fake, 1)
    cut_short(fake, 2, at="register after")
    for name in list(fake.provider.found):
        hang(fake, name)
    fake.pool.targets()
    command.leave(fake.site)
    assert serving(fake) == []
    bring_up(fake.site)
    assert serving(fake) == [image(fake, 1)] * count
    assert len(fake.provider.found) == count


@pytest.mark.parametrize("at", ["drain before", "drain after", "deregister after", "destroy after"])
@pytest.mark.parametrize("act", [command.leave, command.abort, command.resume])
def test_leaving_may_be_cut_short(make, at: str, act: Callable[..., list]) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="admit after")
    kill(fake, lambda: command.leave(fake.site), at=at)
    act(fake.site)
    bring_up(fake.site)
    found = serving(fake)
    assert len(found) >= 2
    assert len(fake.provider.found) == len(found)
    assert drift(fake.site) == ([MIXED] if len({*found}) > 1 else [])


def test_leaving_takes_one_late_check_for_nothing(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="deregister after")
    for name in machines(fake, 2):
        hang(fake, name)
    fake.pool.targets()
    for name in machines(fake, 2):
        fake.world.answering.add(address(fake, name))
    command.leave(fake.site)
    assert serving(fake) == [image(fake, 2)] * 2


@pytest.mark.parametrize("hanging", [1, 2])
def test_leaving_has_old_machines_serve_again_that_are_well(make, hanging: int) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    for name in machines(fake, 2)[:hanging]:
        hang(fake, name)
    [result] = command.leave(fake.site)
    assert result.error is None
    assert serving(fake) == [image(fake, 1)] * hanging + [image(fake, 2)] * (2 - hanging)
    assert len(fake.provider.found) == 2


def test_leaving_where_nothing_serves_is_no_success(fake: FakeSite) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="register after")
    for name in list(fake.provider.found):
        hang(fake, name)
    [result] = command.leave(fake.site)
    assert "nothing of app serves" in result.error.message
    assert "toolkit up test" in result.error.hint
    assert [word for word in drift(fake.site) if "has not passed its tests yet" in word]


def test_leaving_keeps_what_somebody_had_withdrawn_before(fake: FakeSite) -> None:
    roll(fake, 1)
    held, other = machines(fake, 1)
    fake.pool.hold([address(fake, held)])
    cut_short(fake, 2, at="admit after")
    command.leave(fake.site)
    assert {held, other} <= set(fake.provider.found)
    assert {one.address for one in fake.pool.places if one and one.is_held} == {address(fake, held)}


def test_way_back_begun_then_left_in_the_middle_then_gone_back_after_all(fake: FakeSite) -> None:
    roll(fake, 1)
    first = machines(fake, 1)[0]
    cut_short(fake, 2, at="admit after")
    kill(fake, lambda: command.abort(fake.site), at="drain before")
    hang(fake, first)
    kill(fake, lambda: command.leave(fake.site), at="drain after")
    fake.world.answering.add(address(fake, first))
    [result] = command.abort(fake.site)
    assert result.outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)] * 2


def test_version_that_was_left_in_full_is_one_to_go_back_to(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    command.leave(fake.site)
    assert serving(fake) == [image(fake, 2)] * 2
    roll(fake, 3)
    command.roll_back(fake.site, "app", None)
    assert serving(fake) == [image(fake, 2)] * 2
    command.roll_back(fake.site, "app", None)
    assert serving(fake) == [image(fake, 1)] * 2


def test_rollback_that_was_left_in_the_middle_can_be_done_again(fake: FakeSite) -> None:
    for version in (1, 2, 3):
        roll(fake, version)
    kill(fake, lambda: command.roll_back(fake.site, "app", None), at="admit after")
    command.leave(fake.site)
    assert set(serving(fake)) == {image(fake, 2), image(fake, 3)}
    command.roll_back(fake.site, "app", None)
    assert serving(fake) == [image(fake, 2)] * 2


@pytest.mark.parametrize("how", ["hold", "drain"])
def test_volume_has_one_owner_after_leaving(make, how: str) -> None:
    """An old machine that somebody had withdrawn, and that the roll has removed since, is gone."""
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    [old] = machines(fake, 1)
    getattr(fake.pool, how)([address(fake, old)])
    cut_short(fake, 2, at="admit after")
    command.leave(fake.site)
    bring_up(fake.site)
    assert [one.image for one in fake.provider.found.values()] == [image(fake, 2)]
    assert serving(fake) == [image(fake, 2)]


def test_machine_that_was_withdrawn_and_has_gone_since_does_not_come_back(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    fake.pool.hold([address(fake, machines(fake, 1)[0])])
    cut_short(fake, 2, at="destroy after", times=2)
    command.leave(fake.site)
    bring_up(fake.site)
    assert serving(fake) == [image(fake, 2)] * 2


@pytest.mark.parametrize("warm_s", [0.0, 600.0])
def test_resume_after_leaving_was_cut_short_lets_old_machines_drain(
    make, monkeypatch: pytest.MonkeyPatch, warm_s: float
) -> None:
    fake = make(strategy="blue-green", keep_warm_s=warm_s)
    roll(fake, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.await-drained.intended"))
        roll(fake, 2)
    hang(fake, machines(fake, 2)[0])
    kill(fake, lambda: command.leave(fake.site), at="admit after")
    assert image(fake, 1) in serving(fake)
    cut_off, deregister = [], fake.pool.deregister

    def watch(addresses: Collection[str]) -> None:
        cut_off.extend({*addresses} & {*fake.pool.serving()})
        deregister(addresses)

    monkeypatch.setattr(fake.pool, "deregister", watch)
    [result] = command.resume(fake.site)
    assert (result.outcome, cut_off) == ("rolled", [])
    assert serving(fake) == [image(fake, 2)] * 2
    assert drift(fake.site) == []


def test_leaving_has_warm_machines_serve_again_where_new_ones_hang(make) -> None:
    fake = make(strategy="blue-green", keep_warm_s=600.0)
    roll(fake, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.keep-warm.committed"))
        roll(fake, 2)
    hang(fake, machines(fake, 2)[0])
    command.leave(fake.site)
    assert serving(fake) == [image(fake, 1), image(fake, 2)]
    assert drift(fake.site) == [MIXED]


def test_status_tells_when_fewer_are_meant_to_serve_than_configured(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="destroy after", times=2)
    hang(fake, machines(fake, 2)[0])
    command.leave(fake.site)
    assert serving(fake) == [image(fake, 2)]
    [told] = drift(fake.site)
    assert told.startswith(
        "app has 1 of the 2 machines that are configured: 'toolkit roll test app'"
    )
    roll(fake, 2)
    assert drift(fake.site) == []


def test_all_that_a_way_back_may_start_is_in_use(fake: FakeSite) -> None:
    """Also the image of an old machine that is destroyed already, of two that served."""
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    command.leave(fake.site)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("roll.destroy.committed"))
        roll(fake, 3)
    found = find_in_use(fake.site.ledger)
    assert found.images == {image(fake, version) for version in (1, 2, 3)}
    assert found.releases == {"r1", "r2", "r3"}


def test_leaving_keeps_no_more_than_there_is_room_for(make) -> None:
    """As many as before, or as configured: of the new version where both serve."""
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain before")
    assert len(serving(fake)) == 4
    command.leave(fake.site)
    assert serving(fake) == [image(fake, 2)] * 2
    assert len(fake.provider.found) == 2


def test_machine_that_serves_has_passed_though_the_ledger_does_not_know(make) -> None:
    """Its admission was killed before it was written down."""
    fake = make()
    roll(fake, 1)
    roll(fake, 2)
    cut_short(fake, 3, at="admit after")
    command.leave(fake.site)
    assert drift(fake.site) == [MIXED]
    command.roll_back(fake.site, "app", None)
    assert serving(fake) == [image(fake, 2)] * 2


def test_rollback_after_one_that_was_left_and_a_roll_that_was_discarded(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    kill(fake, lambda: command.roll_back(fake.site, "app", None), at="drain after")
    command.leave(fake.site)
    fake.smoke.bad_images = {image(fake, 3)}
    assert roll(fake, 3).outcome == "discarded"
    assert command.roll_back(fake.site, "app", None).outcome == "rolled"
    assert serving(fake) == [image(fake, 1)] * 2


def test_status_tells_of_machines_that_were_told_different_settings(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    monkeypatch.setattr(prepare, "role_settings", lambda *_: {"colour": "green"})
    command.resume(fake.site)
    assert serving(fake) == [image(fake, 2)] * 2
    [told] = drift(fake.site)
    assert "told different settings or secrets: 'toolkit roll test app'" in told
    roll(fake, 2)
    assert drift(fake.site) == []


def test_machine_that_has_not_passed_yet_is_among_the_configured(fake: FakeSite) -> None:
    roll(fake, 1)
    fake.provider.end(machines(fake, 1)[0])
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(ToolkitError):
        bring_up(fake.site)
    told = drift(fake.site)
    assert any("has not passed its tests yet" in one for one in told)
    assert not any("that are configured" in one for one in told)
