"""Runs as a process of its own: one ansible-runner run in a minimal environment.

ansible-runner writes its whole environment to disk, so it gets one that holds nothing. The order
comes as JSON on standard input:

    {"private", "playbook", "inventory", "variables", "cgroup"}

Standard output is one JSON object a line, for people to follow; the exit code alone decides.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from toolkit.machines import cgroups

EVENT_NAME = re.compile(r"[0-9a-f-]{1,64}")
MESSAGE_LIMIT = 2000


def main() -> None:
    """Carry out the order and exit with what `ansible-playbook` exited with."""
    order: dict[str, Any] = json.load(sys.stdin)
    # ansible-runner starts its workers in sessions of their own: only a group holds them all.
    cgroups.join(order["cgroup"])
    private = Path(order["private"])
    # Without a settings file ansible-runner 2.4 drops the settings it is given.
    (private / "env").mkdir()
    (private / "env" / "settings").write_text(json.dumps({"fact_cache_type": "memory"}))

    import ansible_runner  # noqa: PLC0415 - a third of a second, in this process only

    _ignore_forged_events(ansible_runner.runner.Runner)
    try:
        result = ansible_runner.run(
            private_data_dir=str(private),
            playbook=order["playbook"],
            inventory=order["inventory"],
            extravars=order["variables"],
            quiet=True,
            event_handler=_report,
            check_job_event_data=True,
        )
    except ansible_runner.exceptions.AnsibleRunnerException as error:
        # It failed before it began.
        _say("output", "", _tail(private) or str(error))
        os._exit(1)
    if result.config.settings.get("fact_cache_type") != "memory":
        _say("failed", "ansible-runner", "it did not read its settings")
        sys.exit(1)
    if result.rc:
        _say("output", "", _tail(private))
    os._exit(int(result.rc or 0) & 0xFF)


def _ignore_forged_events(runner: Any) -> None:
    """Have ansible-runner pass over events that no callback of this run's own has announced.

    It finds events in what Ansible prints, which a target can add to, and reads and removes the
    file that an event's `uuid` names, wherever that leads.
    """
    accept = runner.event_callback

    def event_callback(self: Any, event: dict[str, Any]) -> None:
        name = str(event.get("uuid", ""))
        announced = Path(self.config.artifact_dir, "job_events", f"{name}-partial.json")
        if EVENT_NAME.fullmatch(name) and announced.is_file():
            accept(self, event)

    runner.event_callback = event_callback


def _report(event: dict[str, Any]) -> bool:
    """Pass on what an operator wants to see; return whether ansible-runner keeps the event."""
    kind, data = event.get("event"), event.get("event_data") or {}
    if kind == "playbook_on_task_start":
        _say("task", str(data.get("task", "")), "")
    elif kind in {"runner_on_failed", "runner_on_unreachable"} and not data.get("ignore_errors"):
        result = data.get("res") or {}
        parts = [str(result[k]) for k in ("msg", "stderr", "stdout") if result.get(k)]
        for item in result.get("results") or []:
            if isinstance(item, dict) and item.get("failed"):
                parts.append(str(item.get("msg", "")))
        message = "\n".join(parts) or "it gave no message"
        _say("failed", str(data.get("task", "")), message[-MESSAGE_LIMIT:])
    return False


def _tail(private: Path) -> str:
    for path in private.glob("artifacts/*/stdout"):
        return path.read_text(errors="replace")[-MESSAGE_LIMIT:]
    return ""


def _say(event: str, task: str, message: str) -> None:
    print(json.dumps({"event": event, "task": task, "message": message}), flush=True)


if __name__ == "__main__":
    main()
