"""What a command starts and waits for does not outlive it for long, wherever it has gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit import shell
from toolkit.errors import DeadlineExceeded
from toolkit.ledger.database import open_ledger
from toolkit.ledger.ledger import Ledger
from toolkit.machines.processes import ProcessId, identify, marked
from toolkit.roll import lease
from toolkit.state import exclusive

PATIENCE_S = 20.0

RUNAWAY = """
import os, subprocess, sys, time
# Out of its parent's session, as Ansible's workers are.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True, stdout=subprocess.DEVNULL)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""

COMMAND = """
import sys
from contextlib import ExitStack
from pathlib import Path
from toolkit import shell
from toolkit.ledger.database import open_ledger
from toolkit.roll import lease
from toolkit.state import exclusive
kind, place, program, pid_file = sys.argv[1:]
with ExitStack() as stack:
    if kind == "lease":
        stack.enter_context(lease.held(open_ledger(Path(place)), "test", doing="holding"))
    elif kind == "lock":
        stack.enter_context(exclusive(Path(place), doing="holding"))
    shell.run([sys.executable, "-c", program, pid_file], env=shell.environment(), timeout_s=600)
"""


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "runaway.pid"
    yield path
    process = identify(int(path.read_text())) if path.exists() else None
    if process:
        process.send(signal.SIGKILL)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runaway(pid_file: Path) -> ProcessId:
    until(lambda: pid_file.exists() and pid_file.read_text())
    process = identify(int(pid_file.read_text()))
    assert process
    return process


def killed_command(kind: str, place: Path, pid_file: Path) -> tuple[ProcessId, ProcessId]:
    """Start a command that waits for a program, and kill it; return it and a grandchild of it."""
    command = subprocess.Popen([sys.executable, "-c", COMMAND, kind, place, RUNAWAY, pid_file])
    left = runaway(pid_file)
    identity = identify(command.pid)
    assert identity
    command.kill()
    command.wait()
    assert left.is_alive, "a test that cannot fail"
    return identity, left


def test_a_deadline_ends_grandchildren_in_other_sessions(pid_file: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        shell.run(
            [sys.executable, "-c", RUNAWAY, str(pid_file)], env=shell.environment(), timeout_s=3.0
        )
    assert pid_file.exists()
    assert identify(int(pid_file.read_text())) is None


def test_what_another_thread_waits_for_is_ended_with_its_grandchildren(pid_file: Path) -> None:
    thread = threading.Thread(
        target=lambda: shell.run(
            [sys.executable, "-c", RUNAWAY, str(pid_file)],
            env=shell.environment(), timeout_s=600.0, is_checked=False,
        )
    )  # fmt: skip
    thread.start()
    left = runaway(pid_file)
    shell.kill_running()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not left.is_alive


def test_children_of_a_killed_command_are_found_and_ended(tmp_path: Path, pid_file: Path) -> None:
    command, left = killed_command("none", tmp_path, pid_file)
    other = shell.spawn(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=shell.environment(), log=tmp_path / "log", is_marked=True,
    )  # fmt: skip
    try:
        shell.end_children(command)
        assert not left.is_alive
        assert marked(shell.MARK, f"/{command.pid}.{command.started}/") == []
        assert identify(other), "children of other commands are let alone"
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def test_children_of_a_command_before_the_host_restarted_are_not_looked_for(
    tmp_path: Path, pid_file: Path
) -> None:
    command, left = killed_command("none", tmp_path, pid_file)
    shell.end_children(ProcessId(command.pid, command.started, "another boot"))
    assert left.is_alive
    shell.end_children(command)


def test_who_takes_over_a_lease_ends_what_its_holder_left(
    ledger: Ledger, tmp_path: Path, pid_file: Path
) -> None:
    _, left = killed_command("lease", tmp_path / "ledger.db", pid_file)
    with lease.held(ledger, "test", doing="taking over"):
        assert not left.is_alive


def test_the_lease_of_another_environment_ends_nothing(
    ledger: Ledger, tmp_path: Path, pid_file: Path
) -> None:
    command, left = killed_command("lease", tmp_path / "ledger.db", pid_file)
    with lease.held(ledger, "another", doing="something else"):
        assert left.is_alive
    shell.end_children(command)


def test_who_takes_a_lock_ends_what_its_holder_left(tmp_path: Path, pid_file: Path) -> None:
    _, left = killed_command("lock", tmp_path / "a.lock", pid_file)
    with exclusive(tmp_path / "a.lock", doing="taking over"):
        assert not left.is_alive
    with exclusive(tmp_path / "a.lock", doing="again"):
        pass
