"""Rolls of a fake site, and how they are cut short."""

from collections.abc import Callable

import pytest

from tests.support.fakes import FakeSite
from toolkit.roll import command
from toolkit.roll.conduct import RollResult
from toolkit.roll.observe import find_remarks
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted


class Stop(BaseException):
    """The process is gone."""


class Clock:
    """Stands in for `time` while machines are watched: sleeping sends requests."""

    def __init__(self, fake: FakeSite) -> None:
        self._fake, self._now = fake, 0.0

    def time(self) -> float:
        return 1e9 + self._now

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        for _ in range(40):
            self._fake.pool.send()


def image(fake: FakeSite, version: int) -> str:
    return list(reversed(fake.site.images.images()))[version - 1].digest


def machines(fake: FakeSite, version: int) -> list[str]:
    """Return the names of the machines of a version, in order."""
    return sorted(
        one.name for one in fake.provider.found.values() if one.image == image(fake, version)
    )


def address(fake: FakeSite, name: str) -> str:
    return fake.provider.found[name].address


def hang(fake: FakeSite, name: str) -> None:
    """Let a machine run on and answer nobody."""
    fake.world.answering.discard(address(fake, name))


def roll(fake: FakeSite, version: int) -> RollResult:
    digest = image(fake, version)
    wanted = Wanted(fake.site.images.image(digest), fake.site.images.release_of(digest))
    return command.roll_role(fake.site, "app", wanted)


def serving(fake: FakeSite) -> list[str]:
    """Return the images that serve, one for each machine."""
    found = {one.address: one.image for one in fake.provider.found.values()}
    return sorted(found[address] for address in fake.pool.serving())


def cut_short(fake: FakeSite, version: int, *, at: str, times: int = 1) -> None:
    """Begin a roll and let its process disappear at a moment of the world."""
    kill(fake, lambda: roll(fake, version), at=at, times=times)


def kill(fake: FakeSite, act: Callable[[], object], *, at: str, times: int = 1) -> None:
    """Let the process that does something disappear at a moment of the world."""
    left = times

    def stop(name: str) -> None:
        nonlocal left
        if name == at:
            left -= 1
            if left == 0:
                raise Stop

    fake.world.at = stop
    with pytest.raises(Stop):
        act()
    fake.world.at = lambda _name: None


def stuck(fake: FakeSite) -> str:
    """Bring about a roll that cannot go back: new machines serve well, an old one is needed."""
    roll(fake, 1)
    cut_short(fake, 2, at="drain after")
    ill = machines(fake, 1)[0]
    hang(fake, ill)
    fake.smoke.bad_images = {image(fake, 1)}
    return ill


def roll_with_errors(fake: FakeSite, version: int, share: float) -> RollResult:
    """Roll to a version whose machines answer a share of their requests with errors."""
    known = set(fake.world.answering)

    def spoil(name: str) -> None:
        for address in fake.world.answering - known:
            fake.world.error_share[address] = share

    fake.world.at = spoil
    return roll(fake, version)


def stop_at(wanted: str) -> Callable[[str, str, str], None]:
    """Return a failpoint at which the process disappears."""

    def reach(scope: str, effect: str, moment: str) -> None:
        if f"{scope}.{effect}.{moment}" == wanted:
            raise Stop

    return reach


def drift(site: Site) -> list[str]:
    """Return what an operator is told of an environment, as sentences."""
    return [one.text for one in find_remarks(site)]
