"""Runs of Ansible: what they know, where they write, and what a killed one leaves behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit import shell
from toolkit.ansible.runner import BAKE, PlaybookResult, run_playbook, sweep
from toolkit.machines import cgroups
from toolkit.progress import Silence
from toolkit.state import RAM_ROOT, State, make_private
from toolkit.wiring import bake_lock

pytestmark = pytest.mark.host

CANARY = "canary-of-the-operator-3fd1"
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Keep what this run knows and writes
      ansible.builtin.shell: |
        private=$(dirname "$ANSIBLE_CONFIG")
        stat -c %a "$private" > {kept}/mode
        echo "$private" > {kept}/private
        cp -r "$private/artifacts" {kept}/artifacts
        for process in /proc/[0-9]*; do
          tr '\\0' '\\n' < $process/cmdline | grep -q "$private" || continue
          cat $process/environ $process/cmdline >> {kept}/processes
        done
"""


@pytest.fixture
def state(tmp_path):
    state = State(make_private(tmp_path / "state"))
    yield state
    sweep(state, BAKE)
    sweep(state, "test")
    if state.ram.exists():
        state.ram.rmdir()


def run(state: State, directory: Path) -> PlaybookResult:
    kept = directory / "kept"
    kept.mkdir()
    playbook = directory / "playbook.yml"
    playbook.write_text(PLAYBOOK.format(kept=kept))
    return run_playbook(
        playbook,
        owner="test",
        state=state,
        roles_path=directory,
        host="here",
        host_variables={
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        },
        variables={},
        timeout_s=120.0,
        progress=Silence(),
    )


def kept(directory: Path) -> bytes:
    files = [path for path in (directory / "kept").rglob("*") if path.is_file()]
    assert any(path.name == "command" for path in files), "ansible-runner wrote no artifacts"
    return b"\0".join(path.read_bytes() for path in files)


def test_a_run_knows_nothing_of_the_operator_and_leaves_nothing(state, tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATORS_OWN", CANARY)
    done = run(state, tmp_path)
    assert done.exit_code == 0, done.message
    private = Path((tmp_path / "kept/private").read_text().strip())
    assert private.is_relative_to(RAM_ROOT)
    assert (tmp_path / "kept/mode").read_text() == "700\n"
    assert not private.exists()
    assert not state.ram.exists()
    content = kept(tmp_path)
    assert b"ANSIBLE_NO_TARGET_SYSLOG" in content
    assert CANARY.encode() not in content


def test_without_the_allow_list_the_run_writes_the_environment(state, tmp_path, monkeypatch):
    """Sabotage: ansible-runner keeps on disk whatever it is given."""
    monkeypatch.setenv("OPERATORS_OWN", CANARY)
    inherited = dict(os.environ)
    monkeypatch.setattr(shell, "environment", lambda **extra: {**inherited, **extra})
    assert run(state, tmp_path).exit_code == 0
    assert CANARY.encode() in kept(tmp_path)


def left_behind(state: State, owner: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start what stands for a run of somebody: a process in its group, a private directory."""
    name = f"ansible-{owner}@0123abcd"
    group = f"toolkit-{state.id}/{name}"
    code = f"from toolkit.machines import cgroups; cgroups.join({group!r}); print(flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}import time; time.sleep(300)"], stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    return process, make_private(make_private(state.ram) / name)


def test_a_bake_removes_what_a_killed_bake_left_and_no_hook_of_a_roll(state):
    """A roll may run its hooks while a bake begins."""
    ours, our_directory = left_behind(state, BAKE)
    hook, hook_directory = left_behind(state, "test")
    other, other_directory = left_behind(state, "test-2")
    try:
        with bake_lock(state, doing="a bake"):
            assert ours.wait(10.0) == -9
            assert not our_directory.exists()
            assert hook.poll() is None
            assert hook_directory.exists()
        time.sleep(0.2)
        assert hook.poll() is None
        sweep(state, "test")
        assert hook.wait(10.0) == -9
        assert not hook_directory.exists()
        assert other.poll() is None
        assert other_directory.exists()
    finally:
        sweep(state, "test-2")
        for process in (ours, hook, other):
            process.kill()
            process.wait()
    assert cgroups.groups_below(f"toolkit-{state.id}") == []
