"""Machines that run and do not answer, and ways back that cannot be had in full."""

from collections.abc import Callable

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
from toolkit.errors import (
    ConfigurationError,
    OutsideError,
    RolledBack,
    ToolkitError,
    UnfinishedRoll,
)
from toolkit.project.model import Canary, Soak
from toolkit.roll import command, journal, prepare
from toolkit.roll.conduct import RollResult
from toolkit.roll.expire import retire
from toolkit.roll.lifecycle import bring_up, take_down

SOAK = Soak(10.0, 1.0, 50, 0.0)


def roll_badly(fake: FakeSite, at: str, befall: Callable[[], None]) -> RollResult:
    """Roll a version that fails half of its requests; something else happens at a moment of it."""
    known = set(fake.world.answering)
    is_over = False

    def watch(name: str) -> None:
        nonlocal is_over
        for one in fake.world.answering - known:
            fake.world.error_share[one] = 0.5
        if name == at and not is_over:
            is_over = True
            befall()

    fake.world.at = watch
    try:
        return roll(fake, 2)
    finally:
        fake.world.at = lambda _name: None


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        *(
            ({"strategy": strategy, **warm}, at)
            for strategy, warm in (
                ("rolling", {}), ("blue-green", {}), ("blue-green", {"keep_warm_s": 600.0}),
            )
            for at in ("launch after", "admit after", "drain after")
        ),
        # A bad canary is found out before an old machine drains.
        ({"strategy": "canary", "canary": Canary(1, 50, 10.0)}, "launch after"),
        ({"strategy": "canary", "canary": Canary(1, 50, 10.0)}, "admit after"),
    ],
)  # fmt: skip
def test_old_machine_that_hangs_does_not_keep_a_bad_version_in_service(
    make, settings: dict, at: str
) -> None:
    fake = make(soak=SOAK, **settings)
    roll(fake, 1)
    result = roll_badly(fake, at, lambda: hang(fake, machines(fake, 1)[0]))
    assert result.outcome == "rolled-back"
    assert isinstance(result.error, RolledBack)
    assert serving(fake) == [image(fake, 1)] * 2
    assert machines(fake, 2) == []
    assert fake.world.breaches == []
    assert fake.site.ledger.unfinished_rolls("test") == []


@pytest.mark.parametrize("at", ["admit after", "drain after"])
@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_bad_version_goes_also_when_one_old_machine_does_not_come_back(
    make, strategy: str, at: str
) -> None:
    fake = make(strategy=strategy, soak=SOAK)
    roll(fake, 1)
    ill, well = machines(fake, 1)

    def befall() -> None:
        hang(fake, ill)
        fake.smoke.bad_images.add(image(fake, 1))

    result = roll_badly(fake, at, befall)
    assert result.outcome == "rolled-back"
    assert result.error.exit_code == 5
    assert f"{ill} does not serve again: 1 of 1 smoke tests failed" in result.error.message
    assert "toolkit up test" in result.error.hint
    assert serving(fake) == [image(fake, 1)]
    assert machines(fake, 1) == [ill, well]
    assert machines(fake, 2) == []
    fake.smoke.bad_images.clear()
    assert bring_up(fake.site) == [ill]
    assert serving(fake) == [image(fake, 1)] * 2
    assert drift(fake.site) == []


def test_old_machine_that_ended_and_fails_its_tests_holds_up_no_way_back(make) -> None:
    fake = make(strategy="blue-green", soak=SOAK)
    roll(fake, 1)
    ended = machines(fake, 1)[0]

    def befall() -> None:
        fake.provider.end(ended)
        fake.smoke.bad_images.add(image(fake, 1))

    result = roll_badly(fake, "drain after", befall)
    assert result.outcome == "rolled-back"
    assert ended in result.error.message
    assert serving(fake) == [image(fake, 1)]


MOMENTS = ["admit after", "drain after", "deregister after", "destroy before"]


@pytest.mark.parametrize("at", MOMENTS)
@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "canary"])
def test_abort_starts_an_old_machine_anew_that_hangs(make, strategy: str, at: str) -> None:
    fake = make(strategy=strategy)
    roll(fake, 1)
    cut_short(fake, 2, at=at)
    hang(fake, machines(fake, 1)[0])
    [result] = command.abort(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)
    assert serving(fake) == [image(fake, 1)] * 2
    assert fake.world.breaches == []
    assert drift(fake.site) == []


@pytest.mark.parametrize("at", ["launch after", "admit before", "destroy after"])
def test_way_back_from_a_hanging_machine_may_be_cut_short(make, at: str) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    hang(fake, machines(fake, 1)[0])
    kill(fake, lambda: command.abort(fake.site), at=at)
    [result] = command.resume(fake.site)
    assert result.outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)] * 2
    assert machines(fake, 2) == []


def test_stateful_machine_that_hangs_is_started_anew_with_its_volume(make) -> None:
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    hang(fake, machines(fake, 1)[0])
    [result] = command.abort(fake.site)
    assert result.error is None
    assert serving(fake) == [image(fake, 1)]


def test_new_machines_that_do_well_stay_until_as_many_old_ones_serve(fake: FakeSite) -> None:
    stuck(fake)
    with pytest.raises(ToolkitError, match="could not go back: 1 of 1 smoke tests") as caught:
        command.abort(fake.site)
    assert "toolkit abort test --leave" in caught.value.hint
    assert serving(fake) == [image(fake, 1), image(fake, 2)]
    with pytest.raises(UnfinishedRoll):
        roll(fake, 3)
    fake.smoke.bad_images.clear()
    assert [one.outcome for one in command.abort(fake.site)] == ["rolled-back"]
    assert serving(fake) == [image(fake, 1)] * 2


def test_old_machine_that_did_not_serve_before_is_not_needed(fake: FakeSite) -> None:
    roll(fake, 1)
    ill = machines(fake, 1)[0]
    hang(fake, ill)
    cut_short(fake, 2, at="drain after")
    fake.smoke.bad_images = {image(fake, 1)}
    [result] = command.abort(fake.site)
    assert result.outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)]
    # What `abort` does last tries once more, and says what fails.
    assert ill in result.error.message
    assert fake.site.ledger.unfinished_rolls("test") == []


def test_new_machines_stay_while_no_old_one_serves(make) -> None:
    fake = make(strategy="blue-green", soak=SOAK)
    roll(fake, 1)

    def befall() -> None:
        fake.smoke.bad_images = {image(fake, 1)}
        for one in machines(fake, 1):
            hang(fake, one)

    with pytest.raises(ToolkitError, match="could not go back"):
        roll_badly(fake, "drain after", befall)
    assert serving(fake) == [image(fake, 2)] * 2


def test_balancer_that_goes_on_the_way_back_makes_nobody_ill(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    for name in machines(fake, 1):
        fake.provider.end(name)

    def vanish(name: str) -> None:
        if name == "launch after":
            fake.pool.is_reachable = False

    fake.world.at = vanish
    with pytest.raises(OutsideError, match="the balancer does not answer"):
        command.abort(fake.site)
    failed = [one for one in fake.site.ledger.entries() if one["kind"] == journal.FAILED]
    assert len(failed) == 1


# Started anew.


def test_configuration_that_was_mended_is_taken_up_by_the_next_attempt(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that came back without passing is not taken for one that is as it should be."""
    fake = make()
    roll(fake, 1)
    broken = machines(fake, 1)[0]
    fake.provider.end(broken)
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(ToolkitError):
        bring_up(fake.site)
    destroyed = []
    destroy = fake.provider.destroy

    def watch(names, *, deadline_s: float) -> None:
        destroyed.extend(names)
        destroy(names, deadline_s=deadline_s)

    monkeypatch.setattr(fake.provider, "destroy", watch)
    monkeypatch.setattr(prepare, "role_settings", lambda *_: {"colour": "blue"})
    fake.smoke.bad_images.clear()
    assert bring_up(fake.site) == [broken]
    assert destroyed == [broken]


def test_machine_that_came_back_and_hangs_is_started_anew_by_the_next_attempt(make) -> None:
    fake = make()
    roll(fake, 1)
    broken = machines(fake, 1)[0]
    fake.provider.end(broken)
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(ToolkitError):
        bring_up(fake.site)
    fake.smoke.bad_images.clear()
    hang(fake, broken)
    assert bring_up(fake.site) == [broken]
    assert serving(fake) == [image(fake, 1)] * 2


def test_machines_that_hang_when_a_roll_is_resumed_are_started_anew(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="deregister after")
    hang(fake, machines(fake, 2)[0])
    [result] = command.resume(fake.site)
    assert result.outcome == "rolled"
    assert serving(fake) == [image(fake, 2)] * 2


def test_member_that_hangs_is_drift_and_started_anew_when_asked(fake: FakeSite) -> None:
    roll(fake, 1)
    ill = machines(fake, 1)[0]
    hang(fake, ill)
    fake.pool.targets()
    assert drift(fake.site) == [
        f"{ill} is meant to serve, and fails the balancer's check",
        "'toolkit up test --repair' puts this right",
    ]
    assert bring_up(fake.site) == []
    assert bring_up(fake.site, is_repair=True) == [ill]
    assert serving(fake) == [image(fake, 1)] * 2
    assert drift(fake.site) == []


# Left as it stands.

# A `down` that was cut short and has forgotten machines that serve.


def forgotten(fake: FakeSite) -> list[str]:
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    forget(fake)
    return machines(fake, 2)


def forget(fake: FakeSite) -> None:
    """Cut a `down` short just after it has ended the unfinished roll."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(faults, "reach", stop_at("down.balancer.intended"))
        take_down(fake.site)


def test_machines_that_a_down_has_forgotten_serve_until_others_do(make) -> None:
    fake = make(strategy="blue-green")
    forgotten(fake)
    least, going = [], []

    def watch(name: str) -> None:
        least.append(len(fake.pool.serving()))
        if name == "deregister before":
            going.append(len(fake.pool.serving()))

    fake.world.at = watch
    bring_up(fake.site)
    assert min(least) >= 2
    # They have drained by then.
    assert going == [2, 2]
    assert serving(fake) == [image(fake, 1)] * 2
    assert len(fake.provider.found) == 2
    assert drift(fake.site) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda fake: roll(fake, 3),
        lambda fake: command.roll_back(fake.site, "app", image(fake, 3)),
    ],
)
def test_nothing_is_rolled_beside_machines_that_a_down_has_forgotten(
    make, act: Callable[[FakeSite], object]
) -> None:
    fake = make(strategy="blue-green")
    names = forgotten(fake)
    with pytest.raises(ConfigurationError, match="the ledger does not know them") as caught:
        act(fake)
    assert "toolkit up test" in caught.value.hint
    assert machines(fake, 2) == names
    assert serving(fake) == [image(fake, 2)] * 2


def test_abort_leaves_machines_that_a_down_has_forgotten(make) -> None:
    fake = make(strategy="blue-green")
    names = forgotten(fake)
    assert command.abort(fake.site) == []
    assert machines(fake, 2) == names
    assert serving(fake) == [image(fake, 2)] * 2


def test_machines_that_a_down_has_forgotten_stay_while_others_cannot_serve(make) -> None:
    fake = make(strategy="blue-green")
    names = forgotten(fake)
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(ToolkitError):
        bring_up(fake.site)
    assert machines(fake, 2) == names
    assert serving(fake) == [image(fake, 2)] * 2


def test_machines_that_a_down_has_forgotten_stay_while_others_are_in_maintenance(make) -> None:
    fake = make(strategy="blue-green")
    roll(fake, 1)
    cut_short(fake, 2, at="drain after", times=2)
    fake.pool.hold([address(fake, name) for name in machines(fake, 1)])
    forget(fake)
    with pytest.raises(ToolkitError, match="stay until all serve that are meant to") as caught:
        bring_up(fake.site)
    assert "toolkit up test --repair" in caught.value.hint
    assert serving(fake) == [image(fake, 2)] * 2
    bring_up(fake.site, is_repair=True)
    assert serving(fake) == [image(fake, 1)] * 2
    assert machines(fake, 2) == []


def test_gc_says_nothing_of_machines_that_serve(make) -> None:
    fake = make(strategy="blue-green")
    forgotten(fake)
    assert retire(fake.site, is_dry_run=True) == retire(fake.site, is_dry_run=False) == []


def test_volume_has_one_owner_in_a_rollback_after_a_down_that_was_cut_short(make) -> None:
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    roll(fake, 2)
    cut_short(fake, 3, at="register before")
    forget(fake)
    most = []
    fake.world.at = lambda _name: most.append(len(fake.provider.found))
    assert command.roll_back(fake.site, "app", image(fake, 1)).outcome == "rolled"
    assert max(most) == 1


# A machine that serves is nobody to start anew.


def test_machine_that_serves_is_not_started_anew_for_another_that_fails(make) -> None:
    fake = make()
    roll(fake, 1)
    for name in machines(fake, 1):
        fake.provider.end(name)
    kill(fake, lambda: bring_up(fake.site), at="admit after")
    assert serving(fake) == [image(fake, 1)]
    fake.smoke.bad_images = {image(fake, 1)}
    with pytest.raises(ToolkitError, match="smoke tests failed"):
        bring_up(fake.site)
    assert serving(fake) == [image(fake, 1)]


def test_machine_that_serves_is_not_started_anew_for_its_configuration(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make()
    roll(fake, 1)
    for name in machines(fake, 1):
        fake.provider.end(name)
    kill(fake, lambda: bring_up(fake.site), at="admit after", times=2)
    monkeypatch.setattr(prepare, "role_settings", lambda *_: {"colour": "blue"})
    least = []
    fake.world.at = lambda _name: least.append(len(fake.pool.serving()))
    bring_up(fake.site)
    assert min(least, default=2) == 2


def test_repair_starts_nobody_anew_that_is_well(fake: FakeSite) -> None:
    roll(fake, 1)
    drained, ill = machines(fake, 1)
    fake.pool.drain([address(fake, drained)])
    hang(fake, ill)
    fake.smoke.bad_images = set()
    ended = []
    destroy = fake.provider.destroy
    fake.provider.destroy = lambda names, *, deadline_s: (
        ended.extend(names), destroy(names, deadline_s=deadline_s)
    )  # fmt: skip
    assert set(bring_up(fake.site, is_repair=True)) == {drained, ill}
    assert ended == [ill]
    assert serving(fake) == [image(fake, 1)] * 2


# What is done by hand in the middle.


@pytest.mark.parametrize("by_hand", ["hold", "deregister", "drain"])
@pytest.mark.parametrize(
    "settings",
    [{"strategy": "canary", "canary": Canary(1, 50, 10.0)}, {"soak": SOAK}, {"batch": 2}],
)
def test_old_machine_that_is_withdrawn_in_the_middle_serves_again(
    make, settings: dict, by_hand: str
) -> None:
    """The roll had not drained it yet."""
    fake = make(**settings)
    roll(fake, 1)
    old = machines(fake, 1)[-1]
    if "batch" in settings:
        cut_short(fake, 2, at="admit after", times=2)
        getattr(fake.pool, by_hand)([address(fake, old)])
        [result] = command.abort(fake.site)
    else:
        result = roll_badly(
            fake, "admit after", lambda: getattr(fake.pool, by_hand)([address(fake, old)])
        )
    assert result.outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)] * 2
    assert machines(fake, 2) == []
    assert fake.world.breaches == []


# Who was well may be so no more.


def test_old_machine_that_hangs_while_another_is_started_anew(make) -> None:
    """The well one hangs meanwhile: it is started anew as well, before the new ones go."""
    fake = make()
    roll(fake, 1)
    first, second = machines(fake, 1)
    cut_short(fake, 2, at="admit after")
    fake.provider.end(second)
    is_over = False

    def watch(name: str) -> None:
        nonlocal is_over
        if name == "launch after" and not is_over:
            is_over = True
            hang(fake, first)

    fake.world.at = watch
    [result] = command.abort(fake.site)
    assert (result.outcome, result.error) == ("rolled-back", None)
    assert serving(fake) == [image(fake, 1)] * 2


def test_as_many_may_serve_as_before_though_they_are_others(make) -> None:
    """One that did not serve before has recovered, another does not come back."""
    fake = make()
    roll(fake, 1)
    first, second = machines(fake, 1)
    hang(fake, first)
    fake.pool.targets()
    cut_short(fake, 2, at="admit after")
    fake.world.answering.add(address(fake, first))
    fake.pool.targets()
    fake.provider.end(second)
    fake.smoke.bad_images = {image(fake, 1)}
    [result] = command.abort(fake.site)
    assert result.outcome == "rolled-back"
    assert serving(fake) == [image(fake, 1)]


# More of what is left.


def test_stateful_roll_has_an_end_though_neither_version_is_well(make) -> None:
    """Nothing served before it either."""
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    hang(fake, machines(fake, 1)[0])
    fake.pool.targets()
    fake.smoke.bad_images = {image(fake, 1), image(fake, 2)}
    result = roll(fake, 2)
    assert result.error is not None and result.error.exit_code == 4
    assert fake.site.ledger.unfinished_rolls("test") == []
    assert len(fake.provider.found) <= 1


def test_hint_says_nothing_of_new_machines_that_are_gone(make) -> None:
    fake = make(strategy="stateful", machines=1)
    roll(fake, 1)
    fake.smoke.bad_images = {image(fake, 1), image(fake, 2)}
    with pytest.raises(ToolkitError) as caught:
        roll(fake, 2)
    assert machines(fake, 2) == []
    assert "the new machines stay" not in (caught.value.hint or "")
    assert "--leave" in (caught.value.hint or "")
