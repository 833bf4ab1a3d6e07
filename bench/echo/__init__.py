"""A service that does next to nothing, for measurements and tests that need many rolls.

DIRECTORY/project/   service.yml, roles/, inventories/, playbooks/: a git repository
DIRECTORY/echo/      the service's source, a single file: another one, a tag for each version
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.lab import ENVIRONMENT, Lab
from examples.versions import REPOSITORY, ScratchProject, commit_all, initialise
from toolkit.state import write_atomically

HERE = Path(__file__).parent
SHARED_PARTS = ("roles/base", "playbooks/bake.yml", "leak-exceptions.yml", ".gitignore")

DOES_NOT_START, ERRORS, SLOW, HOSTILE = "no-start", "errors", "slow", "hostile"
HANGS_UP, UNHEALTHY = "hangs-up", "unhealthy"
VERSIONS: Mapping[str, tuple[str, str]] = {
    "v1": ("1", ""),
    "v2": ("2", ""),
    DOES_NOT_START: ("3", "no-start"),
    ERRORS: ("3", "errors"),
    SLOW: ("3", "slow"),
    HOSTILE: ("3", "hostile"),
    HANGS_UP: ("3", "hangs-up"),
    UNHEALTHY: ("3", "unhealthy"),
}
"""Tag to the version that answers, and what is wrong with it; see `echo.py`."""


class EchoLab(Lab):
    """The service `echo` in an environment of its own; see `Lab`."""

    paths = ("/",)
    version_header = "X-Version"

    @staticmethod
    def make_project(directory: Path, *, ports: Mapping[str, int]) -> ScratchProject:
        """Make the project and its source, with a tag for each version."""
        project, source = directory / "project", directory / "echo"
        shutil.copytree(HERE / "project", project)
        for part in SHARED_PARTS:
            origin, target = REPOSITORY / part, project / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if origin.is_dir() else shutil.copy2)(origin, target)
        made = ScratchProject(project, source)
        for environment, port in ports.items():
            file = made.environment_file(environment)
            public = made.public(environment)
            file.write_text(file.read_text().replace(public, f"127.0.0.1:{port}"))
        initialise(project)
        commit_all(project, "The project", tag="v1")
        source.mkdir()
        initialise(source)
        for tag, (version, fault) in VERSIONS.items():
            document = json.dumps({"version": version, "fault": fault})
            (source / "version.json").write_text(f"{document}\n")
            # Two versions may differ in nothing but their fault.
            commit_all(source, f"Version {tag}", tag=tag)
        return made


def define(project: ScratchProject, **roles: Mapping[str, Any]) -> None:
    """Change how roles are deployed: `define(project, echo={"strategy": "canary"})`.

    Args:
        project: Whose environment.
        roles: Role to settings that are put over what is there; a value of None removes one.
    """
    file = project.environment_file(ENVIRONMENT)
    document = yaml.safe_load(file.read_text())
    for role, changes in roles.items():
        settings = {**document["roles"][role], **changes}
        document["roles"][role] = {k: v for k, v in settings.items() if v is not None}
    # Quoted, as `ScratchProject.public` expects it; and whole for whoever reads it just now.
    write_atomically(file, json.dumps(document, indent=1).encode())


def set_note(project: ScratchProject, role: str, note: str) -> None:
    """Change a setting of a role, so that a roll of the same image has something to do."""
    file = project.environment_file(ENVIRONMENT).parent / "group_vars" / role / "config.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"note: {json.dumps(note)}\n")
