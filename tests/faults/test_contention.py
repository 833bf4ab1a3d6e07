"""Many operators at once: one of them wins each round, and nothing is done twice."""

import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bench.echo import set_note
from tests.support.breakage import eventually, gate, is_plain, serving, settle
from tests.support.site import EchoSite
from tests.support.traces import leftovers
from toolkit.ledger.database import open_ledger
from toolkit.state import State

pytestmark = pytest.mark.host

HELD = re.compile(
    r"development is being changed by \S+@\S+ \((a roll|a rollback|abort|resume)[^)]*, "
    r"process \d+\) since \d+ s; the lease runs out in \d+ s unless it is renewed"
)

CONTENDERS = '''
"""Contend for a lease: argv is the ledger's file, how many processes, how many rounds."""

import multiprocessing
import sys
from pathlib import Path

from toolkit.errors import LeaseHeld
from toolkit.ledger.database import open_ledger
from toolkit.roll import lease

WRITES = 5


def contend(number, path, rounds, barrier):
    ledger = open_ledger(path)
    for turn in range(rounds):
        barrier.wait(60)
        try:
            with lease.held(ledger, "test", doing=f"round {turn}") as held:
                for count in range(WRITES):
                    data = {"turn": turn, "epoch": held.epoch, "who": number, "count": count}
                    held.ledger.append("won", data, environment="test")
                barrier.wait(60)
        except LeaseHeld as error:
            ledger.append("lost", {"turn": turn, "who": number, "message": error.message})
            barrier.wait(60)
        # The winner lets go before the next round begins.
        barrier.wait(60)


if __name__ == "__main__":
    path, processes, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    open_ledger(path).close()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    children = [
        context.Process(target=contend, args=(number, path, rounds, barrier))
        for number in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(any(child.exitcode for child in children))
'''


def test_twenty_processes_contend_for_a_lease_twenty_times(tmp_path):
    processes = rounds = 20
    script = tmp_path / "contenders.py"
    script.write_text(CONTENDERS)
    path = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, script, path, str(processes), str(rounds)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with closing(open_ledger(path)) as ledger:
        won, lost = ledger.entries(kinds=["won"]), ledger.entries(kinds=["lost"])
        assert ledger.first_break() is None
    for turn in range(rounds):
        mine = [one["data"] for one in reversed(won) if one["data"]["turn"] == turn]
        # One winner, whose writes are all there, in order, under an epoch of its own.
        assert len({data["who"] for data in mine}) == 1
        assert {data["epoch"] for data in mine} == {turn + 1}
        assert [data["count"] for data in mine] == list(range(5))
        losers = [one["data"]["who"] for one in lost if one["data"]["turn"] == turn]
        assert sorted([*losers, mine[0]["who"]]) == list(range(processes))
    # Nobody else's write came between those of a winner... but the losers' own complaints.
    assert len(won) == 5 * rounds and len(lost) == (processes - 1) * rounds
    assert all("is being changed by" in one["data"]["message"] for one in lost)


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    return new_echo("v1", "v2")


def epoch(site: EchoSite) -> int:
    with closing(sqlite3.connect(site.state / "ledger.db")) as database:
        return database.execute("SELECT epoch FROM leases").fetchone()[0]


@pytest.mark.parametrize(
    ("operators", "rounds"), [(6, 2), pytest.param(20, 20, marks=pytest.mark.exhaustive)]
)
def test_operators_roll_at_once(site, operators, rounds):
    settle(site, "v1")
    for turn in range(rounds):
        set_note(site.project, "echo", f"{operators} operators, round {turn}")
        wanted = site.image("v2" if turn % 2 == 0 else "v1", "echo")
        before = epoch(site)
        words = [
            ("roll", "echo", "--image", wanted),
            ("roll", "echo"),
            ("rollback", "echo", "--to", wanted),
        ]
        with gate(site, "echo") as closed:
            # The winner waits in its smoke tests until all others have ended.
            running = []
            for number in range(operators):
                command, *rest = words[number % len(words)]
                running.append(site.toolkit.start(command, site.environment, *rest))
            eventually(lambda running=running: sum(one.is_running for one in running) == 1)
            [winner] = [one for one in running if one.is_running]
            for loser in running:
                if loser is not winner:
                    answer = loser.wait()
                    assert is_plain(answer, 6)
                    assert HELD.search(answer.error["error"]), answer.error
                    assert "--wait SECONDS" in answer.error["hint"]
                    assert answer.stdout == ""
            closed.open()
            answer = winner.wait()
        assert is_plain(answer, 0)
        assert answer.data["outcome"] == "rolled"
        assert serving(site) == sorted(answer.data["machines"])
        assert len(site.machines()) == 3
        # Nobody but the winner has held the lease, and one roll was begun.
        assert epoch(site) == before + 1
        with site.opened() as opened:
            assert opened.ledger.first_break() is None
            started = opened.ledger.entries(kinds=["roll.started"], limit=1)
            assert started[0]["roll"] == answer.data["roll"]
            rolls = opened.ledger.rolls(site.environment, "echo")
    # The first version, what `settle` may have needed, and one roll for each round.
    assert len(rolls) in range(rounds + 1, rounds + 1 + 4 + 2)


def test_up_that_is_refused_leaves_the_files_of_the_one_that_runs(new_echo):
    """The first `up` of an environment is under way: it is not recorded as up yet."""
    site = new_echo()
    state = State(site.state)
    files = [
        state.runtime / site.environment / "balancer" / "haproxy.pid",
        state.ram / site.environment / "edge.pem",
    ]
    with site.opened() as opened, opened.held("up"):
        try:
            for file in files:
                file.parent.mkdir(parents=True)
                file.write_text("of the one that runs")
            assert is_plain(site.toolkit.run("up", site.environment), 6)
            assert [file for file in files if not file.exists()] == []
        finally:
            opened.remove_runtime()
    assert leftovers(site.state, site.state_id, [], site.environment) == []


def test_who_waits_comes_next(site):
    settle(site, "v1")
    image = site.image("v2", "echo")
    with gate(site, "echo") as closed:
        first = site.toolkit.start("roll", site.environment, "echo", "--image", image)
        eventually(closed.waiting)
        queued = site.toolkit.start("rollback", site.environment, "echo", "--wait", "120")
        impatient = site.toolkit.run("rollback", site.environment, "echo", "--wait", "0.5")
        assert is_plain(impatient, 6)
        assert first.is_running and queued.is_running
        closed.open()
        assert first.wait().data["outcome"] == "rolled"
        back = queued.wait()
    assert is_plain(back, 0)
    # What is there to go back to is known only when the lease is held.
    assert back.data["image"] == site.image("v1", "echo")
    assert site.get().headers["X-Version"] == "1"


def test_who_was_stopped_for_longer_than_the_lease_changes_nothing_more(site):
    settle(site, "v1")
    before = site.snapshots(), serving(site)
    image = site.image("v2", "echo")
    with gate(site, "echo") as closed:
        stale = site.toolkit.start("roll", site.environment, "echo", "--image", image)
        eventually(closed.waiting)
        stale.send(signal.SIGSTOP)
        assert is_plain(site.toolkit.run("abort", site.environment), 6)
        # The time to live passes.
        with closing(sqlite3.connect(site.state / "ledger.db", timeout=30)) as database, database:
            database.execute("UPDATE leases SET expires = 0, expires_uptime = 0")
        [result] = site.toolkit.result("abort", site.environment)
        assert result["outcome"] == "discarded"
        with site.opened() as opened:
            last = opened.ledger.entries(limit=1)[0]["sequence"]
        closed.open()
        stale.send(signal.SIGCONT)
        answer = stale.wait()
    assert is_plain(answer, 6)
    assert "was taken over by another process" in answer.error["error"]
    assert (site.snapshots(), serving(site)) == before
    assert len(site.machines()) == 3
    with site.opened() as opened:
        assert opened.ledger.entries(limit=1)[0]["sequence"] == last
        assert opened.ledger.unfinished_rolls(site.environment) == []
