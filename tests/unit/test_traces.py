"""What tests find left behind: not what other tests have started meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

LOOK = """
import sys
from pathlib import Path
from tests.support.traces import processes

print(processes(Path(sys.argv[1]), "0" * 8)[1])
"""

CONTROLLER = """
import os, subprocess, sys

state, look, is_orphan = sys.argv[1:4]
sleeper = [sys.executable, "-c", "import time; time.sleep(60)", state]
if is_orphan == "True":
    starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid)"
    answer = subprocess.run([sys.executable, "-c", starter, *sleeper], stdout=subprocess.PIPE)
    pid = int(answer.stdout)
else:
    pid = subprocess.Popen(sleeper).pid
try:
    subprocess.run([sys.executable, "-c", look, state], check=True)
finally:
    os.kill(pid, 9)
"""
"""Starts what bears the name of a state directory, and beside it one who looks for that."""


@pytest.mark.parametrize("is_orphan", [False, True], ids=["of another test", "of nobody"])
def test_only_what_another_test_has_running_is_not_left_behind(
    is_orphan: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    state = tmp_path / "state"
    argv = [sys.executable, "-c", CONTROLLER, str(state), LOOK, str(is_orphan)]
    answer = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    assert (f"time.sleep(60) {state}" in answer.stdout) == is_orphan, answer.stdout
