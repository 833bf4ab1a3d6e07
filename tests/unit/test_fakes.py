"""The fake pool does what the real balancer's pool does: it passes the same contract."""

from dataclasses import dataclass, field

import pytest

from tests.contract.pool import PLACES, PoolContract
from tests.support.fakes import FakePool, Place, World

MACHINES = ("10.9.0.2", "10.9.0.3", "10.9.0.4")
NOBODY = tuple(f"10.9.0.{number}" for number in range(101, 107))


@dataclass
class Held:
    place: Place

    @property
    def address(self) -> str:
        return self.place.address

    def finish(self) -> str:
        self.place.sessions -= 1
        return self.place.address


@dataclass
class FakeClients:
    """`tests.contract.pool.Site` around a fake pool."""

    pool: FakePool
    machines: tuple[str, ...] = MACHINES
    nobody: tuple[str, ...] = NOBODY
    held: list[Held] = field(default_factory=list)

    def ask(self) -> str | None:
        place = self.pool.send()
        return place.address if place else None

    def begin(self) -> Held:
        place = self.pool.send()
        assert place is not None
        place.sessions += 1
        return Held(place)

    def hold(self, address: str) -> None:
        self.pool.hold([address])


class TestFakePool(PoolContract):
    @pytest.fixture
    def pool(self) -> FakePool:
        return FakePool(World(answering=set(MACHINES)), places=PLACES)

    @pytest.fixture
    def site(self, pool: FakePool) -> FakeClients:
        return FakeClients(pool)


def test_fake_pool_notices_a_machine_that_was_not_tested() -> None:
    pool = FakePool(World(answering=set(MACHINES)), places=PLACES)
    pool.register(MACHINES[:1])
    assert "before its tests" in pool.world.breaches[0]
