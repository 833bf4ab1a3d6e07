"""A project's own playbooks in the course of a roll: a database migration, say."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.ansible import runner
from toolkit.errors import ConfigurationError, OutsideError, ToolkitError
from toolkit.progress import Progress
from toolkit.project.model import Project
from toolkit.state import State

HOOK_TIMEOUT_S = 600.0


class PlaybookHooks:
    """Runs playbooks of the project against one machine.

    Args:
        project: Where the playbooks are.
        state: Whose RAM directory is used.
        environment: Whose machines they are run against.
        init_pid: Returns the host's process id of a machine's init.
        progress: Hears of every task.
    """

    def __init__(
        self,
        project: Project,
        *,
        state: State,
        environment: str,
        init_pid: Callable[[str], int | None],
        progress: Progress,
    ) -> None:
        self._project = project
        self._state = state
        self._environment = environment
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
        result = runner.run_playbook(
            path,
            state=self._state,
            owner=self._environment,
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

    def sweep(self) -> None:
        """End and remove what a killed command's hook has left; nobody else runs one here."""
        runner.sweep(self._state, self._environment)


def machine_variables(init_pid: int) -> dict[str, object]:
    """Return the inventory variables with which Ansible reaches a machine."""
    return {
        "ansible_connection": "toolkit_nsenter",
        "ansible_python_interpreter": "/usr/bin/python3",
        "toolkit_init_pid": init_pid,
    }
