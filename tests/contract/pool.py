"""What every `toolkit.ports.Pool` must do, whatever balancer is behind it.

A subclass provides two fixtures: `pool`, empty and with exactly `PLACES` places, and `site`, the
real machines and clients around it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest

from toolkit.errors import OutsideError, Unhealthy
from toolkit.model import TargetState
from toolkit.ports import Pool

PLACES = 4
PATIENCE_S = 10.0


class RunningRequest(Protocol):
    """A request that a machine has begun to answer."""

    address: str

    def finish(self) -> str:
        """Let the machine answer, and return the address that is in the answer."""


class Site(Protocol):
    """Machines that a pool can hold, and clients of the balancer."""

    machines: Sequence[str]
    """Addresses of at least three healthy machines."""

    nobody: Sequence[str]
    """Addresses in the machines' network where nothing answers; more than `PLACES`."""

    def ask(self) -> str | None:
        """Send a request on a new connection; return the machine's address, None if unserved."""

    def begin(self) -> RunningRequest:
        """Send a request that its machine does not answer yet."""

    def hold(self, address: str) -> None:
        """Put a machine's place into maintenance at the balancer, as an operator does."""


def serving(pool: Pool) -> set[str]:
    return {target.address for target in pool.targets() if target.is_serving}


def eventually(is_so: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class PoolContract:
    def put_into_service(self, pool: Pool, *addresses: str) -> None:
        pool.register(addresses)
        pool.await_healthy(addresses, deadline_s=PATIENCE_S)
        pool.admit(addresses)

    def test_an_empty_pool_serves_nobody(self, pool: Pool, site: Site) -> None:
        assert list(pool.targets()) == []
        assert site.ask() is None

    def test_no_addresses_are_fine_everywhere(self, pool: Pool) -> None:
        pool.register([])
        pool.await_healthy([], deadline_s=0)
        pool.admit([])
        pool.drain([])
        assert pool.await_drained([], deadline_s=0)
        pool.deregister([])
        assert list(pool.targets()) == []

    def test_a_registered_machine_is_checked_but_gets_no_requests(
        self, pool: Pool, site: Site
    ) -> None:
        pool.register(site.machines[:2])
        pool.await_healthy(site.machines[:2], deadline_s=PATIENCE_S)

        assert {(t.address, t.state, t.is_healthy, t.sessions) for t in pool.targets()} == {
            (address, TargetState.DRAINING, True, 0) for address in site.machines[:2]
        }
        assert serving(pool) == set()
        assert site.ask() is None

    def test_an_admitted_machine_gets_requests(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, *site.machines[:2])

        assert serving(pool) == set(site.machines[:2])
        assert {site.ask() for _ in range(20)} == set(site.machines[:2])

    def test_a_machine_that_does_not_answer_is_never_healthy(self, pool: Pool, site: Site) -> None:
        address = site.nobody[0]
        pool.register([address])
        with pytest.raises(Unhealthy, match=address.replace(".", r"\.")) as caught:
            pool.await_healthy([address], deadline_s=0.6)
        assert caught.value.addresses == {address}
        assert [target.is_healthy for target in pool.targets()] == [False]

    def test_one_bad_machine_among_good_ones_is_named_alone(self, pool: Pool, site: Site) -> None:
        good, bad = site.machines[0], site.nobody[0]
        pool.register([good, bad])
        pool.await_healthy([good], deadline_s=PATIENCE_S)
        with pytest.raises(Unhealthy) as caught:
            pool.await_healthy([good, bad], deadline_s=0.3)
        assert caught.value.addresses == {bad}
        assert bad in caught.value.message
        assert good not in caught.value.message

    def test_admitting_one_that_is_not_healthy_sends_it_nothing(
        self, pool: Pool, site: Site
    ) -> None:
        self.put_into_service(pool, site.machines[0])
        pool.register([site.nobody[0]])
        pool.admit([site.nobody[0]])
        assert {site.ask() for _ in range(10)} == {site.machines[0]}
        assert serving(pool) == {site.machines[0]}

    def test_registering_again_changes_nothing(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, site.machines[0])
        pool.register([site.machines[0], site.machines[0]])
        assert len(pool.targets()) == 1
        assert serving(pool) == {site.machines[0]}

    def test_too_many_machines_are_refused_before_anything_changes(
        self, pool: Pool, site: Site
    ) -> None:
        pool.register([site.machines[0]])
        with pytest.raises(OutsideError):
            pool.register(site.nobody[:PLACES])
        assert [target.address for target in pool.targets()] == [site.machines[0]]

    def test_every_place_can_be_used(self, pool: Pool, site: Site) -> None:
        pool.register(site.nobody[:PLACES])
        assert {target.address for target in pool.targets()} == set(site.nobody[:PLACES])

    def test_a_machine_without_a_place_cannot_be_admitted(self, pool: Pool, site: Site) -> None:
        pool.register([site.machines[0]])
        pool.await_healthy([site.machines[0]], deadline_s=PATIENCE_S)
        with pytest.raises(OutsideError):
            pool.admit(site.machines[:2])
        assert serving(pool) == set()
        with pytest.raises(OutsideError):
            pool.await_healthy(site.machines[:2], deadline_s=0.1)

    def test_a_lighter_machine_gets_less(self, pool: Pool, site: Site) -> None:
        light, full = site.machines[:2]
        pool.register([light, full])
        pool.await_healthy([light, full], deadline_s=PATIENCE_S)
        pool.weigh([light], 10)
        pool.admit([light, full])
        assert {one.address: one.percent for one in pool.targets()} == {light: 10, full: 100}
        answers = [site.ask() for _ in range(44)]
        assert 1 <= answers.count(light) <= 10
        pool.weigh([light], 100)
        answers = [site.ask() for _ in range(44)]
        assert answers.count(light) >= 15
        with pytest.raises(OutsideError):
            pool.weigh([site.nobody[0]], 10)

    def test_the_weight_goes_with_the_machine_not_with_the_place(
        self, pool: Pool, site: Site
    ) -> None:
        self.put_into_service(pool, *site.machines[:2])
        pool.weigh(site.machines[:1], 1)
        pool.deregister(site.machines[:1])
        self.put_into_service(pool, site.machines[2])
        answers = [site.ask() for _ in range(20)]
        assert answers.count(site.machines[2]) >= 5

    def test_requests_are_counted_for_the_machine_that_got_them(
        self, pool: Pool, site: Site
    ) -> None:
        self.put_into_service(pool, *site.machines[:2])
        before = pool.counters()
        assert set(before) == set(site.machines[:2])
        answers = [site.ask() for _ in range(10)]
        after = pool.counters()
        for address in site.machines[:2]:
            assert after[address].requests - before[address].requests == answers.count(address)
            assert after[address].errors == before[address].errors

    def test_counting_anew_forgets_what_was(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, site.machines[0])
        for _ in range(5):
            site.ask()
        assert pool.counters()[site.machines[0]].requests >= 5
        pool.count_anew()
        counted = pool.counters()[site.machines[0]]
        assert (counted.requests, counted.errors) == (0, 0)
        site.ask()
        assert pool.counters()[site.machines[0]].requests == 1

    def test_a_draining_machine_ends_what_it_has_and_gets_nothing_new(
        self, pool: Pool, site: Site
    ) -> None:
        old, new = site.machines[:2]
        self.put_into_service(pool, old)
        running = site.begin()
        assert running.address == old
        self.put_into_service(pool, new)
        pool.drain([old])

        assert serving(pool) == {new}
        assert {site.ask() for _ in range(10)} == {new}
        assert {t.address: t.sessions for t in pool.targets()}[old] == 1
        assert not pool.await_drained([old], deadline_s=0.2)

        assert running.finish() == old
        assert pool.await_drained([old], deadline_s=PATIENCE_S)

    def test_a_drained_machine_can_come_back(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, site.machines[0])
        pool.drain([site.machines[0]])
        assert site.ask() is None
        pool.await_healthy([site.machines[0]], deadline_s=PATIENCE_S)
        pool.admit([site.machines[0]])
        assert site.ask() == site.machines[0]

    def test_deregistering_takes_the_machine_out(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, *site.machines[:2])
        pool.deregister([site.machines[0], site.nobody[0]])
        pool.deregister([site.machines[0]])

        assert [target.address for target in pool.targets()] == [site.machines[1]]
        assert {site.ask() for _ in range(10)} == {site.machines[1]}
        assert pool.await_drained([site.machines[0]], deadline_s=PATIENCE_S)

    def test_a_place_does_not_hand_on_the_health_of_its_last_machine(
        self, pool: Pool, site: Site
    ) -> None:
        self.put_into_service(pool, *site.machines[:2])
        pool.deregister(site.machines[:2])
        seen = set()
        pool.register(site.nobody[:PLACES])
        with pytest.raises(Unhealthy):
            pool.await_healthy([site.nobody[0]], deadline_s=0)
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            seen |= {target.is_healthy for target in pool.targets()}
        assert seen == {False}

    def test_what_an_operator_puts_into_maintenance_stays_there(
        self, pool: Pool, site: Site
    ) -> None:
        self.put_into_service(pool, *site.machines[:2])
        pool.weigh([site.machines[0]], 10)
        slots = {target.address: target.slot for target in pool.targets()}
        site.hold(site.machines[0])

        def states() -> dict[str, TargetState]:
            return {target.address: target.state for target in pool.targets()}

        held = {site.machines[0]: TargetState.MAINTENANCE, site.machines[1]: TargetState.READY}
        assert states() == held
        assert {site.ask() for _ in range(10)} == {site.machines[1]}
        assert set(pool.counters()) == {site.machines[1]}
        # Whatever happens to others.
        pool.deregister([])
        pool.register([site.nobody[0]])
        pool.deregister([site.nobody[0]])
        pool.drain([site.machines[0]])
        assert states() == held
        for refused in (pool.admit, lambda one: pool.weigh(one, 100)):
            with pytest.raises(OutsideError):
                refused([site.machines[0]])
        assert states() == held

        pool.register([site.machines[0]])
        [again] = [one for one in pool.targets() if one.address == site.machines[0]]
        assert again.slot == slots[site.machines[0]]
        assert (again.state, again.is_healthy, again.percent) == (TargetState.DRAINING, False, 100)

    def test_a_place_in_maintenance_is_taken_last(self, pool: Pool, site: Site) -> None:
        pool.register([site.machines[0]])
        site.hold(site.machines[0])
        pool.register(site.nobody[: PLACES - 1])
        assert len(pool.targets()) == PLACES
        pool.register(site.nobody[:PLACES])
        assert {target.address for target in pool.targets()} == set(site.nobody[:PLACES])

    def test_a_place_in_maintenance_is_freed_as_any_other(self, pool: Pool, site: Site) -> None:
        pool.register([site.machines[0]])
        site.hold(site.machines[0])
        pool.deregister([site.machines[0]])
        assert list(pool.targets()) == []

    def test_a_machine_that_returns_is_checked_anew(self, pool: Pool, site: Site) -> None:
        self.put_into_service(pool, site.machines[0])
        pool.deregister([site.machines[0]])
        pool.register([site.machines[0]])
        assert [target.is_healthy for target in pool.targets()] == [False]
        pool.await_healthy([site.machines[0]], deadline_s=PATIENCE_S)
