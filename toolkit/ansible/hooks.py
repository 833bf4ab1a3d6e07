"""A project's own playbooks in the course of a roll: a database migration, say."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.ansible.runner import run_playbook, sweep
from toolkit.errors import ConfigurationError, OutsideError, ToolkitError
from toolkit.progress import Progress
from toolkit.project.model import Project
from toolkit.state import State

HOOK_TIMEOUT_S = 600.0


class PlaybookHooks:
    """Runs playbooks of the project against one machine.

    Args:
        project: Where the playbooks are.
        environment: Whose machines; one roll at a time runs hooks there.
        state: Whose RAM directory is used.
        init_pid: Returns the host's process id of a machine's init.
        progress: Hears of every task.
    """

    def __init__(
        self,
        project: Project,
        environment: str,
        *,
        state: State,
        init_pid: Callable[[str], int | None],
        progress: Progress,
    ) -> None:
        self._project = project
        self._owner = hook_owner(environment)
        self._state = state
        self._init_pid = init_pid
        self._progress = progress

    def run(self, playbook: str, machine: str) -> None:
        """Run a playbook against a machine."""
        path = self._project.root / "playbooks" / playbook
        if not path.is_file():
            raise ConfigurationError(f"{path}: there is no such file")
        pid = self._init_pid(machine)
        if pid is None:
            raise OutsideError(f"{machine} is not running")
        sweep(self._state, self._owner)
        result = run_playbook(
            path,
            owner=self._owner,
            state=self._state,
            roles_path=self._project.root / "roles",
            host=machine,
            host_variables=machine_variables(pid),
            variables={},
            timeout_s=HOOK_TIMEOUT_S,
            progress=self._progress,
        )
        if result.exit_code != 0:
            task = f", task {result.failed_task!r}" if result.failed_task else ""
            raise ToolkitError(f"hook {playbook}{task} failed on {machine}: {result.message}")


def hook_owner(environment: str) -> str:
    """Return whom the runs of an environment's hooks belong to."""
    return f"hook-{environment}"


def machine_variables(init_pid: int) -> dict[str, object]:
    """Return the inventory variables with which Ansible reaches a machine."""
    return {
        "ansible_connection": "toolkit_nsenter",
        "ansible_python_interpreter": "/usr/bin/python3",
        "toolkit_init_pid": init_pid,
    }
