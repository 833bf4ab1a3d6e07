"""An environment that is killed at again and again: under load, and watched all the time."""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bench.echo import define
from bench.lab import Lab
from bench.load.process import LoadProcess
from examples.command import Answer, Toolkit
from tests.support.breakage import PLAIN
from tests.support.rolls import drift
from tests.support.site import EchoSite
from tests.support.traces import leftovers
from toolkit.errors import ToolkitError
from toolkit.faults import VARIABLE
from toolkit.state import write_atomically

SAMPLE_S = 0.03
RATE = 40.0
RECOVERY_S = 30.0
"""On a host that has nothing else to do."""
SETTLE_S = 10.0

VERSIONS = ("v1", "v2")


@dataclass
class Watch:
    """What the balancer itself reported of one pool while it was looked at.

    Attributes:
        lowest: Fewest machines that it sent requests to.
        samples: How often it was asked.
        changes: Seconds since the beginning, and the addresses that served from then on.
        problem: Why it could not be asked.
    """

    lowest: int = 1000
    samples: int = 0
    changes: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    problem: str = ""


class Siege:
    """The service `echo` with two machines and a steady load.

    Args:
        site: It runs version 1.
        load: Under which it is, if it is.
    """

    def __init__(self, site: EchoSite, load: LoadProcess | None = None) -> None:
        self.site = site
        self.load = load
        self._failed = 0
        self.images = {version: dict(site.bake(version)["images"]) for version in VERSIONS}

    def define(self, role: str, **settings: object) -> None:
        """Have a role deployed in a way; what is not named is as it was in the beginning."""
        define(self.site.project, **{role: {**PLAIN, **settings}})

    def set_hooks(self, **hooks: str) -> None:
        """Have the playbooks run in each roll of `echo`: none, or `before` and `after`."""
        file = self.site.project.root / "service.yml"
        document = yaml.safe_load(file.read_text())
        if hooks == document["roles"]["echo"].get("hooks", {}):
            return
        document["roles"]["echo"]["hooks"] = hooks
        # Whole at every moment: `watched` may be reading it.
        write_atomically(file, json.dumps(document, indent=1).encode())

    def current(self, role: str = "echo") -> str:
        """Return the image of the machines that are meant to serve."""
        with self.site.opened() as opened:
            machines = opened.ledger.machines(self.site.environment, role)
        return next(one.image for one in machines if one.is_member)

    def other(self, role: str = "echo") -> str:
        """Return the image of the good version that a role does not run."""
        current = self.current(role)
        return next(one[role] for one in self.images.values() if one[role] != current)

    def image(self, version: str, role: str = "echo") -> str:
        if version not in self.images:
            self.images[version] = dict(self.site.bake(version)["images"])
        return self.images[version][role]

    def settle(self) -> None:
        """Go back from what an earlier case has left, if that failed."""
        with self.site.opened() as opened:
            is_unfinished = opened.ledger.unfinished_rolls(self.site.environment)
        if is_unfinished:
            self.site.toolkit.run("abort", self.site.environment)
            self.forget_failures()

    def killed_at(self, point: str, *words: str) -> Answer:
        """Run a command that kills itself at a failpoint."""
        return killed_at(self.site, point, *words)

    @contextmanager
    def watched(self, role: str = "echo") -> Iterator[Watch]:
        """Ask the balancer all the time whom it sends requests to."""
        watch, is_over = Watch(), threading.Event()
        thread = threading.Thread(target=self._watch, args=(role, watch, is_over))
        thread.start()
        try:
            yield watch
        finally:
            is_over.set()
            thread.join()

    def check_capacity(self, watch: Watch, capacity: int = 2) -> None:
        """The pool never had fewer machines than are configured."""
        assert not watch.problem, watch.problem
        assert watch.samples > 5
        assert watch.lowest >= capacity, watch.changes

    def check_load(self) -> None:
        """No request has failed since this was last asked."""
        if self.load is not None:
            failed = self.load.snapshot().failed
            before, self._failed = self._failed, failed
            assert failed == before, f"{failed - before} requests failed"

    def forget_failures(self) -> None:
        """Some requests had to fail."""
        if self.load is not None:
            self.load.wait_for(requests_done=self.load.snapshot().requests + 20)
            self._failed = self.load.snapshot().failed

    def check_settled(self, *, image: str, role: str = "echo", capacity: int = 2) -> None:
        """One version serves, on as many machines as are configured, and nothing else is left."""
        site = self.site
        deadline = time.monotonic() + SETTLE_S
        while True:
            # A machine is healthy for the balancer's next check only, after a moment of load.
            state = site.status()[role]
            serving = state["pool"]["serving"]
            if len(serving) == capacity or time.monotonic() > deadline:
                break
        assert len(serving) == capacity, state
        assert state["pool"]["draining"] == self.warm(role)
        assert state["image"] == image
        with site.opened() as opened:
            assert opened.ledger.unfinished_rolls(site.environment) == []
            records = {one.name: one for one in opened.ledger.machines(site.environment, role)}
            assert {records[name].image for name in serving} == {image}
            assert {one["smoke"] for one in state["machines"]} == {"passed"}
            assert sorted(records) == sorted([*serving, *self.warm(role)])
            assert drift(opened) == []
            targets = {one.address for one in opened.pools[role].targets()}
            assert targets == {one.address for one in records.values()}
            assert opened.ledger.first_break() is None
        left = leftovers(site.state, site.state_id, site.machines(), site.environment)
        assert left == [], left

    def warm(self, role: str = "echo") -> list[str]:
        """Return the machines that are kept warm."""
        with self.site.opened() as opened:
            machines = opened.ledger.machines(self.site.environment, role)
            return sorted(one.name for one in machines if one.standing == "warm")

    def _watch(self, role: str, watch: Watch, is_over: threading.Event) -> None:
        began = time.monotonic()
        try:
            with self.site.opened() as opened:
                pool = opened.pools[role]
                while not is_over.is_set():
                    serving = frozenset(one.address for one in pool.targets() if one.is_serving)
                    watch.samples += 1
                    watch.lowest = min(watch.lowest, len(serving))
                    if not watch.changes or watch.changes[-1][1] != serving:
                        watch.changes.append((round(time.monotonic() - began, 2), serving))
                    is_over.wait(SAMPLE_S)
        except ToolkitError as error:
            watch.problem = str(error)


@contextmanager
def besieged(site: EchoSite, directory: Path) -> Iterator[Siege]:
    """Start a site and put it under load."""
    site.start("v1")
    settings = site.load(rate=RATE, requests=None, max_seconds=7200.0)
    with LoadProcess(settings, directory) as load:
        load.wait_for(requests_done=20)
        yield Siege(site, load)


def recovery_limit_s() -> float:
    """Return how long a recovery may take on a host that may be busy with other work."""
    return RECOVERY_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def killed_at(lab: Lab, point: str, *words: str) -> Answer:
    """Run a command that kills itself at a failpoint."""
    prefix = ["env", f"{VARIABLE}={point}"]
    return Toolkit(lab.project.root, lab.state, prefix=prefix).run(*words)


def outcomes(answer: Answer) -> Sequence[str]:
    """Return how the rolls ended that a command took up."""
    return [one["outcome"] for one in answer.data]
