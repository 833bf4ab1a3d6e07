"""How a rotation begins: under the lease, and with nobody else's roll in the way."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fakes import FakeSite, make_deployment, make_site
from toolkit.errors import ConfigurationError, LeaseHeld, UnfinishedRoll
from toolkit.ledger.database import open_ledger
from toolkit.model import Secret
from toolkit.project.model import SecretSpec
from toolkit.roll import command, lease, rotate
from toolkit.roll.conduct import RollResult
from toolkit.roll.wanted import Wanted
from toolkit.secrets.document import Entry
from toolkit.secrets.rotate import Announce, Rotation

NAME, ROLES = "api_token", ("app",)


class Stop(BaseException):
    """The process is gone."""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSite]:
    ledger = open_ledger(tmp_path / "ledger.db")
    yield make_site(ledger, make_deployment())
    ledger.close()


def roll(fake: FakeSite, version: int) -> RollResult:
    image = list(reversed(fake.site.images.images()))[version - 1]
    return command.roll_role(fake.site, "app", Wanted(image, None))


def cut_short(fake: FakeSite, version: int) -> None:
    def stop(name: str) -> None:
        if name == "drain after":
            raise Stop

    fake.world.at = stop
    with pytest.raises(Stop):
        roll(fake, version)
    fake.world.at = lambda _name: None


def rotation(*, is_resumed: bool) -> Rotation:
    spec = SecretSpec(NAME, "token", "", (), None)
    new = Entry(NAME, 2, 0.0, {"value": b"x"})
    old = Entry(f"{NAME}.previous", 1, 0.0, {"value": b"y"})
    return Rotation(NAME, spec, ("app",), new, old, is_resumed)


def beginning(*, is_resumed: bool) -> Callable[[Announce], Rotation]:
    def begin(announce: Announce) -> Rotation:
        begun = rotation(is_resumed=is_resumed)
        announce(begun)
        return begun

    return begin


def refused(_announce: Announce) -> Rotation:
    raise ConfigurationError("there is no value yet")


def test_a_rotation_that_is_refused_leaves_no_trace(fake: FakeSite) -> None:
    """Or the next one would take somebody else's roll for its own."""
    roll(fake, 1)
    with pytest.raises(ConfigurationError, match="no value"):
        rotate.start(fake.site, NAME, ROLES, refused)
    assert not rotate._is_under_way(fake.site, NAME)
    cut_short(fake, 2)
    with pytest.raises(UnfinishedRoll):
        rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False))
    assert fake.site.ledger.unfinished_rolls("test")


def test_a_rotation_killed_before_it_wrote_anything_owns_no_roll(fake: FakeSite) -> None:
    def killed(announce: Announce) -> Rotation:
        announce(rotation(is_resumed=False))
        raise Stop

    roll(fake, 1)
    with pytest.raises(Stop):
        rotate.start(fake.site, NAME, ROLES, killed)
    assert rotate._is_under_way(fake.site, NAME)
    cut_short(fake, 2)
    with pytest.raises(UnfinishedRoll):
        rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False))


def rotating(fake: FakeSite) -> FakeSite:
    """Roll the role for a rotation, until it is cut short while old and new machines serve."""
    fake = replace(fake, site=replace(fake.site, secrets=Changed(1)))
    roll(fake, 1)
    rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False))
    fake.site.secrets.version = 2
    cut_short(fake, 1)
    return fake


def test_an_interrupted_rotation_finishes_its_roll(fake: FakeSite) -> None:
    fake = rotating(fake)
    rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=True))
    assert not fake.site.ledger.unfinished_rolls("test")
    assert fake.site.ledger.rolls("test", "app")[0].outcome == "rolled"


def test_a_rotation_takes_back_a_roll_to_another_value_than_it_brings_out_now(
    fake: FakeSite,
) -> None:
    """It goes back, or people have given another one."""
    fake = rotating(fake)
    fake.site.secrets.version = 3
    rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=True))
    assert not fake.site.ledger.unfinished_rolls("test")
    assert fake.site.ledger.rolls("test", "app")[0].outcome == "rolled-back"


def test_a_rotation_leaves_somebody_elses_roll_alone(fake: FakeSite) -> None:
    """It was begun between two attempts of the rotation, to another version."""
    roll(fake, 1)
    rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False))
    cut_short(fake, 2)
    with pytest.raises(UnfinishedRoll):
        rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=True))
    assert fake.site.ledger.unfinished_rolls("test")


def test_a_rotation_queues_behind_a_roll_that_runs(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll(fake, 1)
    cut_short(fake, 2)
    with ExitStack() as other:
        other.enter_context(fake.site.held("a roll of app"))

        def end(_seconds: float) -> None:
            for one in fake.site.ledger.unfinished_rolls("test"):
                fake.site.ledger.end_roll(one.id, "rolled", {})
            other.close()

        monkeypatch.setattr(lease.time, "sleep", end)
        with pytest.raises(LeaseHeld):
            rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False))
        rotate.start(fake.site, NAME, ROLES, beginning(is_resumed=False), wait_s=60.0)
    assert rotate._is_under_way(fake.site, NAME)


class Changed:
    """Gives every role a secret of a version."""

    def __init__(self, version: int) -> None:
        self.version = version

    def secrets(self, environment: str, role: str) -> dict[str, Secret]:
        return {NAME: Secret(NAME, self.version, b"x")}


def test_machines_first_take_up_what_was_changed_before(fake: FakeSite) -> None:
    """Or the newest value in the vaults would pass for the one that they know."""
    site = replace(fake.site, secrets=Changed(1))
    fake = replace(fake, site=site)
    roll(fake, 1)
    site.secrets.version = 2
    with pytest.raises(ConfigurationError, match="app in test were changed") as caught:
        rotate.start(site, NAME, ROLES, beginning(is_resumed=False))
    assert caught.value.hint == "run 'toolkit roll test' first"
    assert not rotate._is_under_way(site, NAME)
    # One that is under way has changed the vaults itself.
    rotate.start(site, NAME, ROLES, beginning(is_resumed=True))
    roll(fake, 1)
    rotate.start(site, NAME, ROLES, beginning(is_resumed=False))


def test_only_machines_that_run_and_know_the_secret_count(fake: FakeSite) -> None:
    site = replace(fake.site, secrets=Changed(1))
    fake = replace(fake, site=site)
    rotate.start(site, NAME, ROLES, beginning(is_resumed=False))
    roll(fake, 1)
    site.secrets.version = 2
    rotate.start(site, NAME, ("balancer",), beginning(is_resumed=False))
    for name in list(fake.provider.found):
        fake.provider.end(name)
    rotate.start(site, NAME, ROLES, beginning(is_resumed=False))
