"""Reads what roles declare, and in which environments they are."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.project.load import environment_names, load_environment, load_secret_specs
from toolkit.project.model import Project, SecretSpec
from toolkit.secrets.grants import Matrix, compute_matrix


def load_matrix(project: Project, environments: Sequence[str] | None = None) -> Matrix:
    """Compute the grants of the named environments; of all of them by default.

    Raises:
        ConfigurationError: A file is wrong, or an environment is unknown.
    """
    names = environment_names(project) if environments is None else environments
    return compute_matrix(
        project.name,
        {role: _declared(project, role) for role in project.roles},
        [load_environment(project, name) for name in names],
    )


def _declared(project: Project, role: str) -> tuple[SecretSpec, ...]:
    """Return what a role's layers declare, and the Ansible role of its own name."""
    sources = dict.fromkeys([*(layer.role for layer in project.roles[role].layers), role])
    return tuple(secret for source in sources for secret in load_secret_specs(project, source))
