"""One writer for each environment, whatever clocks, hosts and dead processes do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from toolkit.cli.main import run
from toolkit.clock import host_uptime
from toolkit.errors import LeaseHeld, OutsideError
from toolkit.ledger import tables
from toolkit.ledger.database import open_ledger
from toolkit.ledger.ledger import Ledger
from toolkit.machines.processes import ProcessId, identify
from toolkit.roll import lease

TEN_YEARS_S = 10 * 365 * 86400.0

HOLD = """
import sys, time
from pathlib import Path
from toolkit.ledger.database import open_ledger
from toolkit.roll import lease
with lease.held(open_ledger(Path(sys.argv[1])), "test", doing="holding") as held:
    print("held", held.epoch, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def row(ledger: Ledger) -> dict:
    with ledger.transaction() as connection:
        return dict(connection.execute(select(tables.leases)).mappings().one())


def change(ledger: Ledger, **values: object) -> None:
    with ledger.transaction() as connection:
        connection.execute(update(tables.leases).values(values))


def other_process(ledger_path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ledger_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline().startswith("held")
    return process


def test_held_lease_says_who_what_since_when_and_until_when(ledger: Ledger) -> None:
    with (
        lease.held(ledger, "test", doing="a roll of web"),
        pytest.raises(LeaseHeld) as caught,
        lease.held(ledger, "test", doing="another"),
    ):
        pass
    message = caught.value.message
    assert caught.value.exit_code == 6
    assert socket.gethostname() in message
    assert "a roll of web" in message
    assert str(os.getpid()) in message
    assert "since 0 s" in message
    assert "runs out in 900 s" in message
    assert "--wait" in (caught.value.hint or "")


def test_environments_do_not_disturb_each_other(ledger: Ledger) -> None:
    with lease.held(ledger, "one", doing="x"), lease.held(ledger, "two", doing="x") as two:
        assert two.epoch == 1


def test_epoch_rises_with_every_holder(ledger: Ledger) -> None:
    epochs = []
    for _ in range(3):
        with lease.held(ledger, "test", doing="x") as held:
            epochs.append(held.epoch)
    assert epochs == [1, 2, 3]


def test_lease_is_let_go_when_the_body_fails(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="x"), lease.held(ledger, "test", doing="x"):
        raise ValueError("x")
    with lease.held(ledger, "test", doing="y"):
        pass


def test_every_write_renews_the_lease(ledger: Ledger) -> None:
    with lease.held(ledger, "test", doing="x") as held:
        change(ledger, expires=1.0, expires_uptime=1.0)
        held.ledger.append("x", {})
        assert row(ledger)["expires_uptime"] > host_uptime() + lease.TIME_TO_LIVE_S - 5
        change(ledger, expires=1.0, expires_uptime=1.0)
        held.ledger.append("note", {})
        assert row(ledger)["expires"] > time.time() + lease.TIME_TO_LIVE_S - 5


def test_time_to_live_is_longer_than_the_longest_effect(ledger: Ledger) -> None:
    with lease.held(ledger, "test", doing="x", longest_effect_s=5000.0) as held:
        assert row(ledger)["expires_uptime"] > host_uptime() + 5000.0
        held.ledger.append("note", {})
        assert row(ledger)["expires_uptime"] > host_uptime() + 5000.0


def test_stale_holder_writes_nothing_any_more(ledger: Ledger) -> None:
    with lease.held(ledger, "test", doing="hanging") as stale:
        change(ledger, expires=1.0, expires_uptime=1.0)
        with lease.held(ledger, "test", doing="taking over") as fresh:
            for write in (
                lambda: stale.ledger.append("late", {}),
                lambda: stale.ledger.set_up("test", is_up=True),
                lambda: stale.ledger.forget_machines(["x"]),
                lambda: stale.ledger.set_standing(["x"], "member"),
            ):
                with pytest.raises(LeaseHeld, match="taken over"):
                    write()
            fresh.ledger.append("x", {})
    assert [entry["kind"] for entry in ledger.entries()] == ["x"]


def test_stale_holder_does_not_let_go_of_the_next_one_s_lease(ledger: Ledger) -> None:
    with lease.held(ledger, "test", doing="hanging"):
        change(ledger, expires=1.0, expires_uptime=1.0)
        taken = lease.held(ledger, "test", doing="taking over")
        fresh = taken.__enter__()
    fresh.ledger.append("note", {})
    assert row(ledger)["expires"] > time.time()
    taken.__exit__(None, None, None)


def test_lease_of_a_killed_process_is_taken_over(ledger: Ledger, tmp_path: Path) -> None:
    process = other_process(tmp_path / "ledger.db")
    try:
        with pytest.raises(LeaseHeld), lease.held(ledger, "test", doing="x"):
            pass
    finally:
        process.kill()
        process.wait()
    with lease.held(ledger, "test", doing="x") as held:
        assert held.epoch == 2


def test_lease_of_a_hanging_process_is_taken_over_when_it_runs_out(
    ledger: Ledger, tmp_path: Path
) -> None:
    process = other_process(tmp_path / "ledger.db")
    try:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LeaseHeld), lease.held(ledger, "test", doing="x"):
            pass
        change(ledger, expires_uptime=host_uptime() - 1)
        with lease.held(ledger, "test", doing="x") as held:
            assert held.epoch == 2
    finally:
        process.kill()
        process.wait()


def test_waiting_gets_the_lease_when_it_is_free(ledger: Ledger) -> None:
    first = lease.held(ledger, "test", doing="x")
    first.__enter__()
    threading.Timer(0.5, first.__exit__, (None, None, None)).start()
    began = time.monotonic()
    with lease.held(ledger, "test", doing="y", wait_s=20.0):
        assert 0.3 < time.monotonic() - began < 10.0


def test_waiting_ends(ledger: Ledger) -> None:
    began = time.monotonic()
    with (
        lease.held(ledger, "test", doing="x"),
        pytest.raises(LeaseHeld),
        lease.held(ledger, "test", doing="y", wait_s=0.5),
    ):
        pass
    assert 0.5 <= time.monotonic() - began < 5.0


def test_full_disk_when_letting_go_does_not_hide_what_went_wrong(ledger: Ledger) -> None:
    def refuse() -> None:
        raise OutsideError("the disk is full")

    held = lease.held(ledger, "test", doing="x")
    held.__enter__()
    full = Ledger(ledger._engine, lambda _connection: refuse())
    lease._release(full, "test", 1)
    assert row(ledger)["expires"] > time.time()


HERE = socket.gethostname()
ALIVE = identify(os.getpid()) or ProcessId(0, 0, "")
DEAD = ProcessId(ALIVE.pid, ALIVE.started + 1, ALIVE.boot)


@pytest.mark.parametrize(
    ("values", "now", "uptime", "expected"),
    [
        pytest.param({}, 1000.0, 100.0, False, id="held"),
        pytest.param({}, 1000.0, 1000.0, True, id="run out"),
        pytest.param({"process": str(DEAD)}, 1000.0, 100.0, True, id="owner dead, number reused"),
        pytest.param({}, 1000.0 + TEN_YEARS_S, 100.0, False, id="clock ten years on"),
        pytest.param({}, 1000.0 - TEN_YEARS_S, 100.0, False, id="clock ten years back"),
        pytest.param({}, 1000.0 - TEN_YEARS_S, 1000.0, True, id="clock back, but run out"),
        pytest.param(
            {"process": f"{ALIVE.pid} {ALIVE.started} another-boot"},
            1000.0, 100.0, True, id="host restarted",
        ),
        pytest.param({"process": "nonsense"}, 1000.0, 100.0, True, id="unreadable owner"),
        pytest.param({"host": "other"}, 1000.0, 9e9, False, id="other host, its process unknown"),
        pytest.param({"host": "other"}, 2001.0, 0.0, True, id="other host, run out"),
    ],
)  # fmt: skip
def test_freedom(values: dict, now: float, uptime: float, expected: bool) -> None:
    lease_row = {"host": HERE, "process": str(ALIVE), "expires": 2000.0, "expires_uptime": 900.0}
    found = lease.is_free(
        {**lease_row, **values}, host=HERE, boot=ALIVE.boot, now=now, uptime=uptime
    )
    assert found is expected


@pytest.mark.parametrize("words", [["up", "x"], ["roll", "x"], ["rollback", "x"], ["abort"]])
def test_a_wait_is_a_number(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--wait", "nan"]) == 2
    assert "nan is not a number" in capsys.readouterr().err


def test_who_waits_is_told_once_for_whom(tmp_path: Path, ledger: Ledger) -> None:
    process = other_process(tmp_path / "ledger.db")
    told: list[str] = []
    try:
        with (
            pytest.raises(LeaseHeld),
            lease.held(ledger, "test", doing="another", wait_s=1.0, tell=told.append),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    [message] = told
    assert f"process {process.pid}" in message and "waiting for 1 s at most" in message
    with lease.held(ledger, "test", doing="another", wait_s=1.0, tell=told.append):
        pass
    assert len(told) == 1
