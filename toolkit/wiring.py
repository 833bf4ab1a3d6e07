"""The only module that knows which providers there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toolkit.bake.run import Bake
from toolkit.errors import ConfigurationError
from toolkit.project import source
from toolkit.project.load import select_roles
from toolkit.state import State, exclusive
from toolkit.store.local import LocalStore

if TYPE_CHECKING:
    from toolkit.cli.context import Context

__all__ = ["bake_lock", "make_bake", "open_store", "select_roles"]

PROJECT_PARTS = ("service.yml", "roles", "playbooks")
"""What of a project decides about images."""


def open_store(state: State) -> LocalStore:
    """Return the image store of a state directory."""
    return LocalStore(state.store)


def make_bake(
    context: Context, *, ref: str | None, is_dirty_allowed: bool, is_refresh: bool = False
) -> Bake:
    """Put a bake together.

    Raises:
        ConfigurationError: The source or the project has changes that are not committed.
    """
    project, state = context.project, context.state
    state.prepare()
    checkout = source.checkout(
        project.source, ref, clones=state.sources, is_dirty_allowed=is_dirty_allowed
    )
    project_commit = source.project_commit(project.root)
    is_project_dirty = project_commit is not None and source.has_changes(
        project.root, PROJECT_PARTS
    )
    if is_project_dirty and not is_dirty_allowed:
        raise ConfigurationError(
            f"the project {project.root} has changes that are not committed in "
            f"{', '.join(PROJECT_PARTS)}",
            hint="commit them, or bake them with --allow-dirty, which is recorded",
        )
    store = open_store(state)
    if is_refresh:
        store.refresh()
    return Bake(
        project,
        checkout,
        store=store,
        state=state,
        progress=context.progress,
        project_commit=project_commit,
        is_project_dirty=is_project_dirty,
    )


@contextmanager
def bake_lock(state: State) -> Iterator[None]:
    """Let one bake at a time write; sweep what a killed one left behind, before and after."""
    from toolkit.bake.builder import sweep

    state.prepare()
    with exclusive(state.root / "bake.lock", doing="a bake"):
        sweep(state)
        try:
            yield
        finally:
            sweep(state)
