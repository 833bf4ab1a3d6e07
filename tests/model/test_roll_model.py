"""Rolls against a small reference model: operators, machines, balancer, clocks and kills at random.

The code under test is everything from the commands' bodies down to the ledger's database. Machines
and balancer are the fakes of `tests/support/fakes.py`. A kill is an exception that nothing in the
toolkit catches, raised at any moment of any effect; what a killed process would leave undone, the
release of its lease, is put back by hand.
"""

import itertools
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import select, update

from tests.support.fakes import FakeSite, make_deployment, make_site, nothing
from tests.support.rolls import drift
from toolkit import clock as clock_module
from toolkit import faults
from toolkit.errors import LeaseHeld, NotFound, SmokeTestsFailed, ToolkitError, UnfinishedRoll
from toolkit.ledger import ledger as ledger_module
from toolkit.ledger import tables
from toolkit.ledger.database import open_ledger
from toolkit.model import MachineState
from toolkit.project.model import Canary, Soak
from toolkit.roll import command, conduct, effects, expire, journal, lease, lifecycle, prepare, run
from toolkit.roll.wanted import Wanted

ENVIRONMENT, ROLE = "test", "app"
MOST_MACHINES = 4
TEN_YEARS_S = 10 * 365 * 86400.0
DEAD_PROCESS = "999999999 1 00000000-0000-0000-0000-000000000000"

RULES = int(os.environ.get("MODEL_RULES", "40"))
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "300"))
IS_RANDOM = "MODEL_EXAMPLES" in os.environ
"""Without a number of its own the run is the same each time; with one it is new each time."""

SEEN: Counter[str] = Counter()
"""What the runs came across, for the last line of the report."""


class Killed(BaseException):
    """The process is gone."""


class Clock:
    """Stands in for the module `time`; sleeping sends requests instead of waiting."""

    def __init__(self) -> None:
        self.wall, self.up = 1.7e9, 1e4
        self.while_sleeping = lambda: None
        self.CLOCK_BOOTTIME = 7

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.up

    def clock_gettime(self, _which: int) -> float:
        return self.up

    def sleep(self, seconds: float) -> None:
        self.wall, self.up = self.wall + seconds, self.up + seconds
        self.while_sleeping()


TIMED = (clock_module, ledger_module, command, conduct, effects, journal, lease, prepare, run)

trouble = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from(
            ["kill", "kill", "kill", "die", "hang", "balancer", "contend", "take over", "clock"]
        ),
        st.integers(1, 70),
        st.integers(0, 5),
    ),
)


class RollModel(RuleBasedStateMachine):
    """The reference: one version serves, or one roll is under way from one version to another."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="roll-model-")
        self.clock = Clock()
        self._real = [(module, module.time) for module in TIMED]
        for module in TIMED:
            module.time = self.clock
        self._reach, self._new_id = faults.reach, command._new_id
        faults.reach = self._reached
        numbers = itertools.count(1)
        command._new_id = lambda: f"roll-{next(numbers):06x}"
        self.ledger = open_ledger(Path(self._directory.name) / "ledger.db")
        self.serving: str | None = None
        self.size = 0
        self.pending: tuple[str | None, str] | None = None
        self.floor = 0
        self.has_trouble = False
        self.countdown: tuple[str, int, int] | None = None
        self.is_taken_over = False
        self.was_failing = False
        self.put_back: set[str] = set()

    @initialize(
        strategy=st.sampled_from(["rolling", "blue-green", "canary", "stateful"]),
        machines=st.integers(1, MOST_MACHINES),
        batch=st.integers(1, MOST_MACHINES),
        keep_warm_s=st.sampled_from([0.0, 600.0]),
        soak_s=st.sampled_from([0.0, 5.0]),
        has_snapshot=st.booleans(),
    )
    def define(self, strategy, machines, batch, keep_warm_s, soak_s, has_snapshot) -> None:
        stateful = strategy == "stateful"
        self.deployment = make_deployment(
            ROLE,
            strategy=strategy,
            machines=1 if stateful else machines,
            batch=batch,
            canary=Canary(1, 10, 5.0),
            soak=Soak(soak_s, 1.0, 20, 0.0),
            keep_warm_s=0.0 if stateful else keep_warm_s,
            has_snapshot=has_snapshot,
        )
        self.fake: FakeSite = make_site(self.ledger, self.deployment)
        self.images = [one.digest for one in reversed(self.fake.site.images.images())]
        self.clock.while_sleeping = self._traffic

    # What operators do.

    @rule(version=st.integers(0, 2), trouble=trouble)
    def roll(self, version: int, trouble) -> None:
        self._roll_to(version, trouble)

    @precondition(lambda self: not self.pending)
    @rule(version=st.integers(0, 2), trouble=trouble)
    def roll_when_settled(self, version: int, trouble) -> None:
        self._roll_to(version, trouble)

    def _roll_to(self, version: int, trouble) -> None:
        digest = self.images[version]
        result = self._operate("roll", trouble, lambda: self._roll(digest))
        if result is None or self.has_trouble:
            return
        if digest in self.fake.smoke.bad_images and result.outcome != "unchanged":
            assert result.outcome == "discarded"
            assert isinstance(result.error, SmokeTestsFailed)
        elif digest in self._failing_under_load():
            assert result.outcome in {"rolled", "rolled-back", "unchanged"}
        else:
            assert result.outcome in {"rolled", "unchanged"}, result.error
            # The balancer may not have found out yet.
            is_known = result.outcome == "rolled" or not self.was_failing
            assert not is_known or len(self.fake.pool.serving()) == self.deployment.machines

    @rule(trouble=trouble)
    def rollback(self, trouble) -> None:
        self._operate("rollback", trouble, lambda: command.roll_back(self.fake.site, ROLE, None))

    @precondition(lambda self: self.pending)
    @rule(is_abort=st.booleans(), trouble=trouble)
    def take_up(self, is_abort: bool, trouble) -> None:
        # One that hung before the roll, and that this has not touched, is for `up --repair`.
        is_hanging = self._has_failing(MachineState.RUNNING)
        results = self._operate("take up", trouble, lambda: self._take_up(is_abort))
        is_whole = not is_hanging and not self.has_trouble and not self.put_back
        if is_whole and results and not any(one.error for one in results):
            assert len(self.fake.pool.serving()) == self.size
            assert self._drift() == []

    @precondition(lambda self: self.pending)
    @rule(version=st.integers(0, 2), trouble=trouble)
    def leave_and_roll(self, version: int, trouble) -> None:
        """What is left serves on, of both versions, until the next roll replaces it."""
        self._operate("leave", trouble, lambda: command.leave(self.fake.site))
        if self.pending:
            return
        self.fake.smoke.bad_images.clear()
        self.load_errors = {}
        self._roll_to(version, None)

    @precondition(lambda self: not self.pending)
    @rule(is_abort=st.booleans())
    def take_up_nothing(self, is_abort: bool) -> None:
        before = self.fake.pool.serving()
        assert self._take_up(is_abort) == []
        assert self.fake.pool.serving() == before

    @rule(is_up=st.booleans(), trouble=trouble)
    def collect_or_bring_up(self, is_up: bool, trouble) -> None:
        if is_up:
            self._operate("up", trouble, lambda: lifecycle.bring_up(self.fake.site))
            return
        before = self._standing("member")
        self._operate("gc", trouble, lambda: expire.retire(self.fake.site, is_dry_run=False))
        assert self._standing("member") == before

    @precondition(lambda self: not self.pending and self.deployment.strategy != "stateful")
    @rule(machines=st.integers(1, MOST_MACHINES))
    def rescale(self, machines: int) -> None:
        self.deployment = replace(self.deployment, machines=machines)
        self.fake = self.fake.with_deployment(self.deployment)

    @precondition(lambda self: not self.pending)
    @rule(which=st.integers(0, 5))
    def put_back_by_hand(self, which: int) -> None:
        """Somebody has a warm machine serve again, at the balancer."""
        placed = {place.address for place in self.fake.pool.places if place}
        found = [
            one
            for one in self.ledger.machines(ENVIRONMENT)
            if one.is_warm and one.address in placed & self.fake.world.tested
        ]
        if found:
            one = found[which % len(found)]
            self.fake.pool.admit([one.address])
            self.put_back.add(one.image)
            SEEN["put back"] += 1

    # What happens to them.

    @rule(which=st.integers(0, 5))
    def machine_dies(self, which: int) -> None:
        self._let_one_fail(which, lambda machine: self.fake.provider.end(machine.name))

    @rule(which=st.integers(0, 5))
    def machine_hangs(self, which: int) -> None:
        answering = self.fake.world.answering
        self._let_one_fail(which, lambda machine: answering.discard(machine.address))

    @rule(trouble=trouble)
    def host_restarts(self, trouble) -> None:
        """Machines end and the balancer forgets its places; what `up` brings back is another."""
        for name in self.fake.provider.found:
            self.fake.provider.end(name)
        self.fake.balancer.stop()
        self._operate("up", trouble, lambda: lifecycle.bring_up(self.fake.site))
        self.fake.balancer.ensure()
        SEEN["restarted"] += 1

    @rule(version=st.integers(0, 2), is_bad=st.booleans())
    def version_turns_bad(self, version: int, is_bad: bool) -> None:
        bad = self.fake.smoke.bad_images
        (bad.add if is_bad else bad.discard)(self.images[version])

    @rule(version=st.integers(0, 2), share=st.sampled_from([0.0, 0.2]))
    def version_fails_under_load(self, version: int, share: float) -> None:
        self.load_errors = {**getattr(self, "load_errors", {}), self.images[version]: share}

    @rule(seconds=st.sampled_from([-TEN_YEARS_S, TEN_YEARS_S, 30.0, 700.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.clock.wall += seconds

    @rule(is_abort=st.booleans())
    def settle(self, is_abort: bool) -> None:
        """Mend the outside world; then one command must be enough, and `up` for what died."""
        self.fake.smoke.bad_images.clear()
        self.load_errors = {}
        self._operate("take up", None, lambda: self._take_up(is_abort))
        assert self.pending is None
        self._operate("up", None, lambda: lifecycle.bring_up(self.fake.site, is_repair=True))
        self.put_back.clear()
        self._check_order()
        assert self._standing("new") == set()
        addresses = self.fake.pool.serving()
        assert len(addresses) == self.size
        assert self._images_of(addresses) == ({self.serving} if self.serving else set())
        assert self._drift() == []
        assert self.ledger.first_break() is None
        SEEN["settled"] += 1

    @invariant()
    def nothing_forbidden_happened(self) -> None:
        SEEN["steps"] += 1
        if hasattr(self, "fake"):
            assert self.fake.world.breaches == []
            allowed = {self.serving, *(self.pending or ()), *self.put_back}
            assert self._images_of(self.fake.pool.serving()) <= allowed

    def teardown(self) -> None:
        try:
            if hasattr(self, "fake"):
                self.settle(is_abort=True)
        finally:
            faults.reach, command._new_id = self._reach, self._new_id
            for module, real in self._real:
                module.time = real
            self.ledger.close()
            self._directory.cleanup()

    # How.

    def _operate(self, name: str, trouble, act):
        """Run a command with some trouble in its course; learn from what it returns."""
        site = self.fake.site
        self.floor = self._capacity()
        # One that has not passed since it was started may be asked for on a way back.
        self.was_failing = self._has_failing() or bool(self._standing("new"))
        for unfinished in self.ledger.unfinished_rolls(ENVIRONMENT):
            # Going back leaves as many as served before.
            order = unfinished.order
            self.floor = min(self.floor, len(order["plan"]["old"]) - len(order["absent"]))
        if self._failing_under_load() and self.fake.smoke.bad_images:
            # What fails under load is not kept where those of before cannot all start again.
            self.floor = min(self.floor, 1)
        self.countdown, self.has_trouble = trouble, False
        self.is_taken_over = False
        self.fake.world.at = self._at
        result = error = None
        try:
            result = act()
        except Killed:
            SEEN["killed"] += 1
        except ToolkitError as caught:
            error = caught
        finally:
            self.fake.world.at, self.countdown = nothing, None
            self.fake.pool.is_reachable = True
        if self.is_taken_over:
            # What has nothing more to write when it is taken over does not find out.
            is_done = error is None and name in {"up", "gc"}
            assert is_done or isinstance(error, LeaseHeld), (result, error)
        elif error is not None and not self.has_trouble:
            self._check_refusal(name, error)
        SEEN[name] += 1
        self._learn(site)
        return result

    def _check_refusal(self, name: str, error: ToolkitError) -> None:
        """Without trouble, a command refuses for a reason that the model knows."""
        if isinstance(error, UnfinishedRoll):
            assert self.pending
        elif isinstance(error, NotFound):
            assert name == "rollback"
        else:
            bad = self.fake.smoke.bad_images | self._failing_under_load()
            # Going back needs the old version's tests where its machines must start again.
            is_start_needed = self.was_failing or self.deployment.strategy == "stateful"
            assert name in {"take up", "up"} or is_start_needed, error
            assert bad or self.was_failing, error

    def _learn(self, site) -> None:
        rolls = self.ledger.rolls(ENVIRONMENT, ROLE)
        running = [one for one in rolls if one.outcome == "running"]
        assert len(running) <= 1
        self.pending = (running[0].previous, running[0].image) if running else None
        last = next((one for one in rolls if one.outcome in {"rolled", "left"}), None)
        if last is not None and last.outcome == "left":
            members = self.ledger.members(ENVIRONMENT, ROLE)
            self.serving, self.size = members[0].image if members else None, len(members)
        elif last is not None:
            self.serving, self.size = last.image, len(last.order["plan"]["new"])
        if self.pending is None:
            self._check_order()

    def _drift(self) -> list[str]:
        """Return what status tells, but for a size that the next roll is to bring about."""
        is_resized = self.size != self.deployment.machines
        return [
            one
            for one in drift(self.fake.site)
            if not (is_resized and "that are configured" in one)
        ]

    def _check_order(self) -> None:
        """Nothing is left over: no orphan, no place of nobody's."""
        records = self.ledger.machines(ENVIRONMENT)
        assert set(self.fake.provider.found) <= {one.name for one in records} or self.has_trouble
        places = {place.address for place in self.fake.pool.places if place}
        assert places <= {one.address for one in records}

    def _roll(self, digest: str):
        site = self.fake.site
        image = site.images.image(digest)
        wanted = Wanted(image, site.images.release_of(digest))
        return command.roll_role(site, ROLE, wanted)

    def _take_up(self, is_abort: bool):
        results = (command.abort if is_abort else command.resume)(self.fake.site)
        for result in results:
            if is_abort:
                assert result.outcome in {"discarded", "rolled-back"}
        return results

    # Moments.

    def _reached(self, scope: str, effect: str, moment: str) -> None:
        self._at(f"{scope}.{effect}.{moment}")

    def _at(self, name: str) -> None:
        SEEN["moments"] += 1
        self._check_capacity(name)
        if self.countdown is None:
            return
        kind, left, which = self.countdown
        if left > 1:
            self.countdown = (kind, left - 1, which)
            return
        if kind == "take over" and not name.endswith(("acted", "committed")):
            # A holder that hangs between having asked and acting acts once more: see docs.
            return
        if kind in {"die", "hang"} and name.startswith("drain "):
            # Between having looked at what takes over and draining nothing can be known.
            return
        self.countdown = None
        self.has_trouble = True
        SEEN[kind] += 1
        if kind == "kill":
            self._kill()
        elif kind == "die":
            self._let_one_fail(which, lambda machine: self.fake.provider.end(machine.name))
        elif kind == "hang":
            answering = self.fake.world.answering
            self._let_one_fail(which, lambda machine: answering.discard(machine.address))
        elif kind == "balancer":
            self.fake.pool.is_reachable = False
        elif kind == "clock":
            self.clock.wall += TEN_YEARS_S if which % 2 else -TEN_YEARS_S
        elif kind == "contend":
            self._contend()
        elif kind == "take over":
            self._take_over(is_abort=bool(which % 2))

    def _kill(self) -> None:
        """Die holding the lease."""
        with self.ledger.transaction() as connection:
            row = connection.execute(select(tables.leases)).mappings().first()
        release = lease._release

        def keep(*_arguments) -> None:
            with self.ledger.transaction() as connection:
                values = {**row, "process": DEAD_PROCESS}
                connection.execute(update(tables.leases).values(values))
            lease._release = release

        if row is not None and row["expires_uptime"] > self.clock.up:
            lease._release = keep
        raise Killed

    def _contend(self) -> None:
        before = self.ledger.entries(limit=1)[0]["sequence"]
        with self._undisturbed():
            for act in (
                lambda: self._roll(self.images[0]),
                lambda: command.abort(self.fake.site),
                lambda: command.resume(self.fake.site),
            ):
                try:
                    act()
                except LeaseHeld:
                    continue
                raise AssertionError("two operators at once")
        assert self.ledger.entries(limit=1)[0]["sequence"] == before

    def _take_over(self, *, is_abort: bool) -> None:
        """Hang for longer than the lease lasts; another operator finishes the work meanwhile."""
        self.clock.up += 1e5
        self.clock.wall += 1e5
        with self._undisturbed():
            self._take_up(is_abort)
        self.is_taken_over = True

    @contextmanager
    def _undisturbed(self):
        yield

    def _let_one_fail(self, which: int, fail) -> None:
        provider = self.fake.provider
        running = [m for m in provider.found.values() if m.state is not MachineState.STOPPED]
        if not running:
            return
        machine = sorted(running, key=lambda one: one.name)[which % len(running)]
        was_serving = machine.address in self.fake.pool.serving()
        fail(machine)
        SEEN["failed machines"] += 1
        if was_serving:
            # Its successor may be of a later batch.
            self.floor = min(self.floor - 1, self._capacity())

    def _capacity(self) -> int:
        if self.deployment.strategy == "stateful":
            return 0
        return min(self.deployment.machines, len(self.fake.pool.serving()))

    def _check_capacity(self, name: str) -> None:
        assert len(self.fake.pool.serving()) >= self.floor, f"capacity fell at {name}"

    def _traffic(self) -> None:
        shares = getattr(self, "load_errors", {})
        for machine in self.fake.provider.found.values():
            self.fake.world.error_share[machine.address] = shares.get(machine.image, 0.0)
        for _ in range(10):
            self.fake.pool.send()

    def _failing_under_load(self) -> set[str]:
        return {image for image, share in getattr(self, "load_errors", {}).items() if share}

    def _has_failing(self, *states: MachineState) -> bool:
        """Whether there is a machine, in one of some states if any are named, that answers not."""
        found = self.fake.provider.found.values()
        addresses = {one.address for one in found if not states or one.state in states}
        return not addresses <= self.fake.world.answering

    def _images_of(self, addresses) -> set[str]:
        by_address = {one.address: one for one in self.fake.provider.found.values()}
        return {by_address[address].image for address in addresses}

    def _standing(self, standing: str) -> set[str]:
        records = self.ledger.machines(ENVIRONMENT)
        return {one.name for one in records if one.standing == standing}


def test_rolls_behave_as_the_model_does() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    SEEN.clear()
    run_state_machine_as_test(
        RollModel,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=RULES,
            deadline=None,
            database=None,
            derandomize=not IS_RANDOM,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )
    print("\nmodel:", ", ".join(f"{count} {name}" for name, count in SEEN.most_common()))
