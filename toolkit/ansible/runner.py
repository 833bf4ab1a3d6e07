"""The only module that runs playbooks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import shell
from toolkit.machines import cgroups
from toolkit.progress import Progress, printable
from toolkit.state import State, make_private, remove_if_empty

PLUGINS = Path(__file__).parent / "plugins"

BAKE = "@bake"
"""Owner of the runs of a bake, which is no environment's name."""


@dataclass(frozen=True, slots=True)
class PlaybookResult:
    """How a playbook ended.

    Attributes:
        exit_code: Of `ansible-playbook`: 0 when every task succeeded.
        failed_task: Name of the first task that failed, or empty.
        message: What the machine said about it. It may say anything: never decide by it.
    """

    exit_code: int
    failed_task: str
    message: str


def run_playbook(
    playbook: Path,
    *,
    state: State,
    owner: str,
    roles_path: Path,
    host: str,
    host_variables: Mapping[str, Any],
    variables: Mapping[str, Any],
    timeout_s: float,
    progress: Progress,
) -> PlaybookResult:
    """Run a playbook against one host in a child that knows nothing else.

    Args:
        playbook: Absolute path.
        state: Whose RAM directory is used.
        owner: In whose name: `BAKE` or an environment; see `sweep`.
        roles_path: Where Ansible finds roles.
        host: Inventory name.
        host_variables: How to reach it.
        variables: Extra variables; they must not hold a secret.
        timeout_s: For the whole run.
        progress: Hears of every task.

    Raises:
        DeadlineExceeded: The time limit passed.
    """
    name = f"{_prefix(owner)}{secrets.token_hex(4)}"
    private = make_private(make_private(state.ram) / name)
    # An empty file of its own, or Ansible looks for one around the working directory.
    (private / "ansible.cfg").touch()
    group = f"toolkit-{state.id}/{name}"
    order = {
        "private": str(private),
        "playbook": str(playbook),
        "inventory": {"all": {"hosts": {host: dict(host_variables)}}},
        "variables": dict(variables),
        "cgroup": group,
    }
    reader = _Reader(progress)
    try:
        done = shell.run(
            [sys.executable, "-I", "-m", "toolkit.ansible.child"],
            env=_environment(private, roles_path),
            timeout_s=timeout_s,
            stdin=json.dumps(order).encode(),
            cwd=private,
            is_checked=False,
            on_output=reader.feed,
        )
    finally:
        cgroups.remove(group)
        shutil.rmtree(private, ignore_errors=True)
        remove_if_empty(state.ram)
    message = reader.message or done.error_text or reader.output or "Ansible said nothing"
    return PlaybookResult(done.exit_code, reader.failed_task, message.strip())


def sweep(state: State, owner: str) -> None:
    """End and remove what killed runs have left; no other runs in that name."""
    group = f"toolkit-{state.id}"
    for name in cgroups.groups_below(group):
        if name.startswith(_prefix(owner)):
            cgroups.remove(f"{group}/{name}")
    for leftover in state.ram.glob(f"{_prefix(owner)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _prefix(owner: str) -> str:
    # No name of an environment has an @, so none is the beginning of another's.
    return f"ansible-{owner}@"


def _environment(private: Path, roles_path: Path) -> dict[str, str]:
    bin_directory = str(Path(sys.executable).parent)
    return shell.environment(
        PATH=f"{bin_directory}{os.pathsep}{shell.MINIMAL_ENVIRONMENT['PATH']}",
        HOME=str(private),
        ANSIBLE_CONFIG=str(private / "ansible.cfg"),
        ANSIBLE_HOME=str(private / "home"),
        ANSIBLE_LOCAL_TEMP=str(private / "tmp"),
        ANSIBLE_ROLES_PATH=str(roles_path),
        ANSIBLE_CONNECTION_PLUGINS=str(PLUGINS / "connection"),
        ANSIBLE_PIPELINING="1",
        ANSIBLE_NO_TARGET_SYSLOG="1",
        ANSIBLE_CACHE_PLUGIN="memory",
        ANSIBLE_DIFF_ALWAYS="false",
        ANSIBLE_VAULT_ID_MATCH="true",
        ANSIBLE_RETRY_FILES_ENABLED="false",
        ANSIBLE_DEPRECATION_WARNINGS="false",
        ANSIBLE_NOCOWS="1",
    )


class _Reader:
    """Turns the child's lines into progress and the first failure."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._pending = b""
        self.failed_task = ""
        self.message = ""
        self.output = ""

    def feed(self, chunk: bytes) -> None:
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
                kind, task, message = event["event"], event["task"], event["message"]
            except (ValueError, KeyError, TypeError):
                continue
            if kind == "task":
                self._progress.note(f"ansible: {task}")
            elif kind == "failed" and not self.failed_task:
                self.failed_task, self.message = printable(task), printable(message)
            elif kind == "output":
                self.output = printable(message)
