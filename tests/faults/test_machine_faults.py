"""New machines die, hang and shout in the middle of a roll, and the clock jumps."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.echo import HOSTILE, UNHEALTHY, set_note
from examples.command import Toolkit
from tests.support.breakage import (
    eventually,
    gate,
    hang,
    is_plain,
    serving,
    settle,
    smoke_test,
    started,
)
from tests.support.site import EchoSite
from tests.support.traces import groups, leftovers
from toolkit.machines.container import CONSOLE_BYTES

pytestmark = pytest.mark.host

TEN_YEARS_S = 10 * 365 * 86400
CLOCK = """
import os, time
from pathlib import Path

real, offset = time.time, Path(os.environ["CLOCK_OFFSET"])
time.time = lambda: real() + float(offset.read_text())
"""
"""Python imports it as `sitecustomize`: nobody can set the clock of one process alone."""

QUICK = {"healthy_s": 8, "smoke_s": 60, "drain_s": 5, "stop_s": 5}

ENDLESS = """
import subprocess

NUMBER = "86399.{number}"


def test_never_ends(host):
    subprocess.Popen(["sleep", NUMBER], start_new_session=True)
    while True:
        host.run(f"sleep {{NUMBER}}")
"""

RUDE = r"""
def test_is_rude(host):
    words = host.run(r"printf '\033]0;owned\007\033[2J\033[31mrude\n'; yes | head -c 9000000")
    print(words.stdout[:20000000])
    raise RuntimeError(words.stdout[:100])
"""


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    return new_echo("v1", "v2", HOSTILE, UNHEALTHY)


def new_machines(site: EchoSite) -> list[str]:
    with site.opened() as opened:
        records = opened.ledger.machines(site.environment, "echo")
        return [one.name for one in records if one.standing == "new"]


def test_one_that_dies_in_its_smoke_tests_is_discarded(site):
    settle(site, "v1", timeouts=QUICK)
    before = site.snapshots(), site.machines()
    with gate(site, "echo") as closed:
        running = site.toolkit.start(
            "roll", site.environment, "echo", "--image", site.image("v2", "echo")
        )
        eventually(lambda: len(closed.waiting()) == 2)
        site.kill_machine(closed.waiting()[0])
        closed.open()
        answer = running.wait()
    assert is_plain(answer, 4)
    assert answer.data["outcome"] == "discarded"
    assert (site.snapshots(), site.machines()) == before


def test_one_that_dies_after_it_was_registered_is_taken_out(site):
    settle(site, "v1", timeouts=QUICK)
    before = site.snapshots(), site.machines(), serving(site)
    image = site.image(UNHEALTHY, "echo")
    running = site.toolkit.start("roll", site.environment, "echo", "--image", image)
    eventually(lambda: started(running, "await-healthy"))
    site.kill_machine(new_machines(site)[0])
    answer = running.wait()
    assert is_plain(answer, 5)
    assert answer.data["outcome"] == "rolled-back"
    assert "not healthy after" in answer.error["error"]
    assert (site.snapshots(), site.machines(), serving(site)) == before


def test_one_that_dies_while_it_is_watched_is_taken_out(site):
    settle(site, "v1", timeouts=QUICK, soak={"seconds": 60})
    before = site.snapshots(), site.machines(), serving(site)
    image = site.image("v2", "echo")
    running = site.toolkit.start("roll", site.environment, "echo", "--image", image)
    eventually(lambda: started(running, "watch"))
    site.kill_machine(serving(site)[0])
    answer = running.wait()
    assert is_plain(answer, 5)
    assert "failed the balancer's health check" in answer.error["error"]
    assert (site.snapshots(), site.machines(), serving(site)) == before


def test_an_old_one_that_hangs_is_started_anew_on_the_way_back(site):
    settle(site, "v1", timeouts=QUICK, soak={"seconds": 60})
    before = serving(site), site.machines()
    image = site.image("v2", "echo")
    running = site.toolkit.start("roll", site.environment, "echo", "--image", image)
    eventually(lambda: started(running, "watch"))
    ill = before[0][0]
    hang(site, ill)
    site.kill_machine(serving(site)[0])
    answer = running.wait()
    assert is_plain(answer, 5)
    assert f"unhealthy, so started anew: {ill}" in answer.stderr
    assert (serving(site), site.machines()) == before


def test_one_that_hangs_is_drift_and_started_anew_when_asked(site):
    settle(site, "v1", timeouts=QUICK)
    before = serving(site)
    hang(site, before[0])
    eventually(lambda: before[0] not in serving(site))
    assert f"{before[0]} is meant to serve, and fails the balancer's check" in site.remarks()
    assert site.toolkit.result("up", site.environment)["machines"] == []
    repaired = site.toolkit.result("up", site.environment, "--repair")
    assert repaired["machines"] == before[:1]
    assert serving(site) == before


def test_a_smoke_test_that_never_ends_is_ended_with_all_it_has_started(site):
    settle(site, "v1", timeouts=QUICK | {"smoke_s": 10})
    number = str(os.getpid())
    before = site.snapshots(), site.machines()
    with smoke_test(site, "echo", ENDLESS.format(number=number)):
        answer = site.roll("echo", "v2")
    assert is_plain(answer, 4)
    assert "did not end in time" in answer.error["error"]
    assert (site.snapshots(), site.machines()) == before
    assert sleepers(number) == []
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []


def test_a_smoke_test_that_outlives_the_command_is_ended_by_the_next(site):
    settle(site, "v1", timeouts=QUICK)
    number = f"{os.getpid()}1"
    with smoke_test(site, "echo", ENDLESS.format(number=number)):
        image = site.image("v2", "echo")
        running = site.toolkit.start("roll", site.environment, "echo", "--image", image)
        eventually(lambda: sleepers(number))
        running.send(signal.SIGKILL)
        assert running.wait().exit_code == -signal.SIGKILL
    assert sleepers(number)
    [result] = site.toolkit.result("abort", site.environment)
    assert result["outcome"] == "discarded"
    assert sleepers(number) == []
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []


def sleepers(number: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"sleep\0") and number.encode() in words:
            found.append(path.parent.name)
    return found


def test_what_machines_print_reaches_neither_terminal_nor_memory_nor_outcome(site):
    """It prints without end: escape codes, and what looks like events of Ansible's."""
    settle(site, "v1", timeouts=QUICK)
    image = site.image(HOSTILE, "echo")
    answer = site.toolkit.run("roll", site.environment, "echo", "--image", image, is_json=False)
    assert answer.exit_code == 0, answer.stderr
    assert site.get().headers["X-Version"] == "3"
    time.sleep(1.0)
    answers = [answer, site.toolkit.run("status", site.environment, is_json=False)]
    answers.append(site.toolkit.run("smoke", site.environment, "echo", is_json=False))
    for one in answers:
        assert one.exit_code == 0
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", one.stdout + one.stderr)
    with site.opened() as opened:
        for name in serving(site):
            # The journal holds what it printed, as far as systemd lets it.
            journal = opened.provider.run(
                name, ["journalctl", "--all", "--lines=20", "--unit=echo"], timeout_s=60.0
            )
            assert b"owned" in journal.stdout
            assert len(opened.provider._container(name).console) <= CONSOLE_BYTES
    assert all(path.stat().st_size < 65536 for path in runtime_files(site))


def runtime_files(site: EchoSite) -> list[Path]:
    return [path for path in Path("/run/toolkit", site.state_id).rglob("*") if path.is_file()]


@pytest.mark.parametrize("is_json", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_what_a_failing_smoke_test_repeats_cannot_drive_the_terminal(site, is_json):
    settle(site, "v1", timeouts=QUICK)
    before = site.snapshots()
    with smoke_test(site, "echo", RUDE):
        image = site.image("v2", "echo")
        answer = site.toolkit.run(
            "roll", site.environment, "echo", "--image", image, is_json=is_json
        )
    assert answer.exit_code == 4
    assert "rude" in answer.stderr
    assert "\x1b" not in answer.stderr + answer.stdout
    # The ledger keeps the messages, bounded.
    assert len(answer.stderr) < 16384 and len(answer.stdout) < 65536
    assert site.snapshots() == before


@pytest.mark.parametrize("seconds", [TEN_YEARS_S, -TEN_YEARS_S])
def test_the_clock_may_jump_ten_years(site, seconds, tmp_path):
    """Timeouts, the watch, the lease and the warm window go by a clock that nobody can set."""
    strategy = {"strategy": "blue-green", "keep_warm_s": 600, "soak": {"seconds": 2}}
    settle(site, "v1", timeouts=QUICK, **strategy)
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    offset = tmp_path / "offset"
    offset.write_text("0")
    jumping = Toolkit(
        site.toolkit.project,
        site.toolkit.state,
        prefix=["env", f"PYTHONPATH={tmp_path}", f"CLOCK_OFFSET={offset}"],
    )
    image = site.image("v2", "echo")
    with gate(site, "echo") as closed:
        running = jumping.start("roll", site.environment, "echo", "--image", image)
        eventually(lambda: len(closed.waiting()) == 2)
        offset.write_text(str(seconds))
        # The lease is still held: for the one with the other clock, and for others.
        for other in (jumping, site.toolkit):
            assert is_plain(other.run("abort", site.environment), 6)
        closed.open()
        answer = running.wait()
    assert is_plain(answer, 0)
    assert answer.data["outcome"] == "rolled"
    assert site.get().headers["X-Version"] == "2"
    # The clock did jump, and the chain of entries holds all the same.
    with site.opened() as opened:
        times = [entry["time"] for entry in opened.ledger.entries(limit=50)]
        assert max(times) - min(times) > 9 * 365 * 86400
        assert opened.ledger.first_break() is None
        machines = {one.name for one in opened.ledger.machines(site.environment, "echo")}
    # Nothing that is warm has had its time, and the way back is open.
    assert jumping.result("gc", "--dry-run", "--keep", "100")["machines"] == []
    back = jumping.result("rollback", site.environment, "echo")
    assert back["outcome"] == "rolled" and "launch" not in back["seconds"]
    assert set(back["machines"]) < machines
    assert site.get().headers["X-Version"] == "1"


def test_nothing_is_left_of_all_that(site):
    settle(site, "v1")
    set_note(site.project, "echo", "the last one")
    site.toolkit.result("roll", site.environment, "echo", "--image", site.image("v1", "echo"))
    assert len(site.machines()) == 3
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []
    assert len(groups(site.state_id)) == 3
