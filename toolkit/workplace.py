"""Where a command works: a project, a state directory, and who hears of its progress."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ConfigurationError
from toolkit.progress import Progress, Silence
from toolkit.state import State

if TYPE_CHECKING:
    from toolkit.project.model import Environment, Project


class Workplace:
    """What `toolkit.wiring` puts everything together from.

    Args:
        project_root: Directory of `service.yml`.
        state_root: The state directory.
    """

    def __init__(self, project_root: Path, state_root: Path) -> None:
        self.project_root = project_root
        self.state_root = state_root

    @cached_property
    def state(self) -> State:
        """The state directory, which need not exist yet.

        Raises:
            ConfigurationError: This user may not look into it.
        """
        root = self.state_root
        if root.exists() and not os.access(root, os.R_OK | os.X_OK):
            raise ConfigurationError(
                f"the state directory {root} belongs to another user, and only they may look into "
                "it",
                hint="run it with sudo, or name another directory with --state or TOOLKIT_STATE",
            )
        return State(root)

    @cached_property
    def project(self) -> Project:
        """The project; read when first asked for.

        Raises:
            ConfigurationError: It is wrong, or the state directory belongs to another service.
        """
        from toolkit.project.load import load_project  # noqa: PLC0415 - not every command reads it

        project = load_project(self.project_root)
        State(self.state_root).need_service(project.name)
        return project

    def prepare(self) -> None:
        """Make the state directory, which is the project's own from then on.

        Raises:
            ConfigurationError: It cannot be made, or belongs to another service.
        """
        self.state.prepare_for(self.project.name)

    def environment(self, name: str) -> Environment:
        """Read an environment of the project."""
        from toolkit.project.load import load_environment  # noqa: PLC0415

        return load_environment(self.project, name)

    @property
    def progress(self) -> Progress:
        """Who hears of long work: nobody, unless a subclass knows better."""
        return Silence()
