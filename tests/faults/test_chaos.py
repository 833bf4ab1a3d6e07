"""Random commands, cut short at random times in random ways, and taken up again.

`make test-chaos N=200 SEED=7` runs 200 rounds. Choices depend on the seed and the round's number
alone, so that the same seed repeats them; what they meet depends on time, as in life.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bench.echo import DOES_NOT_START
from examples.command import Answer, Running
from tests.support.siege import Siege, besieged, recovery_limit_s
from tests.support.site import EchoSite
from toolkit.errors import EXIT_BUG

pytestmark = pytest.mark.host

ROUNDS = int(os.environ.get("CHAOS_N") or 6)
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))

COMMANDS = ("roll", "roll", "roll", "roll", "broken", "rollback", "up", "gc")
DISTURBANCES = (
    "kill", "kill", "kill", "kill", "interrupt", "interrupt-twice", "new-machine", "old-machine",
)  # fmt: skip
DEPLOYMENTS: tuple[dict[str, Any], ...] = (
    {"strategy": "rolling"},
    {"strategy": "blue-green"},
    {"strategy": "blue-green", "keep_warm_s": 600.0},
    {"strategy": "canary", "canary": {"machines": 1, "percent": 50, "watch_s": 0.5}},
    {"strategy": "rolling", "batch": 2, "soak": {"seconds": 0.5, "min_requests": 10_000}},
)
ATTEMPTS = 4
BROKEN = "broken"


@dataclass(frozen=True)
class Round:
    """What is done in one round.

    Attributes:
        command: The one that is disturbed.
        deployment: Which of `DEPLOYMENTS` it finds.
        disturbance: What happens to it, or to a machine meanwhile.
        after: When, as a share of the time that an undisturbed roll takes.
        recovery: `resume` or `abort`.
        again: When that is killed in turn, as a share of the same; None for not at all.
    """

    command: str
    deployment: int
    disturbance: str
    after: float
    recovery: str
    again: float | None


def rounds_of(seed: int, count: int) -> list[Round]:
    """Return what is done with a seed; more rounds begin with those of fewer."""
    chance = random.Random(seed)
    return [
        Round(
            command=chance.choice(COMMANDS),
            deployment=chance.randrange(len(DEPLOYMENTS)),
            disturbance=chance.choice(DISTURBANCES),
            after=chance.uniform(0.0, 1.2),
            recovery=chance.choice(("resume", "abort")),
            again=chance.choice((None, None, chance.uniform(0.0, 1.2))),
        )
        for _ in range(count)
    ]


def test_a_seed_repeats_its_choices():
    assert rounds_of(7, 50) == rounds_of(7, 50)
    assert rounds_of(7, 50)[:20] == rounds_of(7, 20)
    assert rounds_of(7, 50) != rounds_of(8, 50)


@pytest.fixture(scope="module")
def siege(
    new_echo: Callable[..., EchoSite], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Siege]:
    with besieged(new_echo(), tmp_path_factory.mktemp("load")) as siege:
        siege.image(DOES_NOT_START)
        yield siege


def test_chaos(siege: Siege):
    calm_s = calm_roll_s(siege)
    for number, one in enumerate(rounds_of(SEED, ROUNDS), start=1):
        place = f"round {number} of seed {SEED} (make test-chaos N={number} SEED={SEED}): {one}"
        print(f"\n{place}", flush=True)
        try:
            play(siege, one, calm_s)
        except Exception as error:
            raise AssertionError(f"{place}: {error}") from error


def calm_roll_s(siege: Siege) -> float:
    """Return how long a roll takes on this host when nobody disturbs it."""
    siege.define("echo", **DEPLOYMENTS[0])
    began = time.monotonic()
    site = siege.site
    site.toolkit.result("roll", site.environment, "echo", "--image", siege.other())
    return time.monotonic() - began


def play(siege: Siege, one: Round, calm_s: float) -> None:
    """Play one round, and look whether everything is as it should be."""
    site = siege.site
    siege.define("echo", **DEPLOYMENTS[one.deployment])
    known = {siege.image(version) for version in ("v1", "v2")}
    words = words_of(siege, one.command)
    with siege.watched() as watch:
        running = site.toolkit.start(*words)
        wait(running, one.after * calm_s)
        victim = disturb(siege, running, one.disturbance)
        done = running.wait()
        check_end(done)
        if one.again is not None:
            running = site.toolkit.start(one.recovery, site.environment)
            wait(running, one.again * calm_s)
            running.send(signal.SIGKILL)
            check_end(running.wait())
        recover(siege, one.recovery)
    # A serving machine that dies takes its place with it, whatever the toolkit does.
    victim_served = any(victim in serving for _, serving in watch.changes)
    siege.check_capacity(watch, 1 if victim_served else 2)
    image = siege.current()
    assert image in known
    siege.check_settled(image=image)
    if victim_served:
        siege.forget_failures()
    siege.check_load()


def words_of(siege: Siege, command: str) -> list[str]:
    environment = siege.site.environment
    if command == "roll":
        return ["roll", environment, "echo", "--image", siege.other()]
    if command == BROKEN:
        return ["roll", environment, "echo", "--image", siege.image(DOES_NOT_START)]
    return {
        "rollback": ["rollback", environment, "echo"],
        "up": ["up", environment],
        "gc": ["gc"],
    }[command]


def wait(running: Running, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while running.is_running and time.monotonic() < deadline:
        time.sleep(0.01)


def disturb(siege: Siege, running: Running, how: str) -> str:
    """Do it; return the address of the machine that was hit, if one was."""
    if how == "kill":
        running.send(signal.SIGKILL)
    elif how.startswith("interrupt"):
        running.send(signal.SIGINT)
        if how == "interrupt-twice":
            wait(running, 0.2)
            running.send(signal.SIGINT)
    else:
        with siege.site.opened() as opened:
            targets = opened.pools["echo"].targets()
            serving = {one.address for one in targets if one.is_serving}
            machines = [one for one in opened.provider.machines() if one.role == "echo"]
        hit = [one for one in machines if (one.address in serving) == (how == "old-machine")]
        if hit:
            siege.site.kill_machine(hit[0].name)
            return hit[0].address
    return ""


def check_end(answer: Answer) -> None:
    assert answer.exit_code != EXIT_BUG, answer.stderr
    assert "Traceback" not in answer.stderr, answer.stderr


def recover(siege: Siege, recovery: str) -> None:
    """Do what an operator does: go on or back, and start what has died."""
    site = siege.site
    for _ in range(ATTEMPTS):
        with site.opened() as opened:
            is_settled = not opened.ledger.unfinished_rolls(site.environment)
        if is_settled:
            break
        began = time.monotonic()
        answer = site.toolkit.run(recovery, site.environment)
        assert time.monotonic() - began < 2 * recovery_limit_s()
        check_end(answer)
    else:
        raise AssertionError(f"{recovery} does not end it: {answer.stderr}")
    site.toolkit.result("up", site.environment)
