"""What of a project's own files goes into a layer: roles, what they include, playbooks.

Digests over it, and whether it is what is committed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from toolkit.canonical import add_file
from toolkit.errors import ConfigurationError
from toolkit.project import source
from toolkit.project.model import Project

UNBAKED = ("smoke", "molecule", "README.md", "meta/secrets.yml")
"""Parts of a role that do not go into an image."""

ROLE_TASKS = frozenset(
    f"{collection}{name}"
    for collection in ("", "ansible.builtin.", "ansible.legacy.")
    for name in ("include_role", "import_role")
)
ROLE_LISTS = ("roles", "dependencies")
FREE_FORMS = ("action", "local_action")
OWN_ROLE = "{{toolkit_role}}"
UNKNOWN = "{{ unknown }}"
"""Stands for a name in a form that is not read here."""

YAML_SUFFIXES = (".yml", ".yaml", ".json")
NEVER_TASKS = ("files", "templates", "library")

PROJECT_PARTS = ("service.yml", "leak-exceptions.yml", "roles", "playbooks")
"""What of a project decides about images, with what links in it lead to."""

LINKING_PARTS = ("roles", "playbooks")

SHOWN = 5
"""Of the files that git ignores, in a message."""


def role_digests(project: Project, role: str) -> dict[str, str]:
    """Return the digests of the role and of every role that applying it may bring in.

    Those are what it, and what `playbooks/` says beside it, depend on or include by name; where a
    name is known only when Ansible runs, all of `roles/`.

    Raises:
        ConfigurationError: A link leads out of the project.
    """
    others = _closure(project.root, role, _hooks(project)) - {role}
    digests = {"role files": digest_directory(project.root, f"roles/{role}", UNBAKED)}
    for name in sorted(others):
        digests[f"role {name}"] = digest_directory(project.root, f"roles/{name}", UNBAKED)
    return digests


def playbooks_digest(project: Project) -> str:
    """Return the digest of `playbooks/` without the hooks, which run in a roll and not in a bake.

    Raises:
        ConfigurationError: A link leads out of the project.
    """
    return digest_directory(project.root, "playbooks", _hooks(project))


@cache
def digest_directory(root: Path, directory: str, excluded: tuple[str, ...] = ()) -> str:
    """Return a digest over names, modes that git knows, and content, through links.

    Args:
        root: What no link may lead out of.
        directory: Below it.
        excluded: Files and directories that do not count.

    Raises:
        ConfigurationError: A link leads out of the root, or to a directory that it is in.
    """
    total = hashlib.sha256()
    for name, path in sorted(_files(root, root / directory, excluded)):
        if path.is_symlink():
            add_file(total, "link", name, os.fsencode(path.readlink()))
        if path.is_file():
            is_executable = path.stat().st_mode & 0o100
            add_file(total, "exec" if is_executable else "file", name, path.read_bytes())
    return total.hexdigest()


def is_baked(file: str) -> bool:
    """Whether a file of a project, by its path there, may decide about a layer."""
    top, *below = file.split("/")
    inside = "/".join(below[1:])
    return "__pycache__" not in below and not (
        top == "roles" and any(inside == one or inside.startswith(f"{one}/") for one in UNBAKED)
    )


def changed_parts(root: Path) -> str | None:
    """Return where a project that decides about images is not what is committed, for people."""
    parts = [*PROJECT_PARTS, *map(str, linked_places(root, LINKING_PARTS))]
    if source.has_changes(root, parts):
        return ", ".join(PROJECT_PARTS)
    # Git keeps silent about these, but Ansible copies them all the same.
    ignored = [file for file in source.ignored_files(root, parts) if is_baked(file)]
    if not ignored:
        return None
    more = f" and {len(ignored) - SHOWN} more" if len(ignored) > SHOWN else ""
    return f"files that git ignores: {', '.join(ignored[:SHOWN])}{more}"


def linked_places(root: Path, parts: tuple[str, ...]) -> list[Path]:
    """Return what links below the parts of a project lead to.

    Raises:
        ConfigurationError: A link leads out of the project.
    """
    found = {
        path.resolve()
        for part in parts
        for _, path in _files(root, root / part, ())
        if path.is_symlink()
    }
    return sorted(path for path in found if path.exists())


def _hooks(project: Project) -> tuple[str, ...]:
    hooks = {
        hook for one in project.roles.values() for hook in (one.before_hook, one.after_hook) if hook
    }
    return tuple(sorted(hooks))


def _files(root: Path, top: Path, excluded: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield files, links, and what is below directories that links lead to; by relative name."""
    if top.is_symlink():
        _check_link(root, top)
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        for path in directory.iterdir() if directory.is_dir() else ():
            name = str(path.relative_to(top))
            if path.name == "__pycache__" or name in excluded:
                continue
            if path.is_symlink():
                _check_link(root, path)
                yield name, path
            if path.is_dir():
                waiting.append(path)
            elif path.is_file() and not path.is_symlink():
                yield name, path


def _check_link(root: Path, path: Path) -> None:
    target, home = Path(os.path.realpath(path)), root.resolve()
    if not target.is_relative_to(home):
        raise ConfigurationError(
            f"{path}: links to {target}, outside of the project",
            hint="a bake would not see what changes there: put the file into the project",
        )
    if path.parent.resolve().is_relative_to(target):
        raise ConfigurationError(f"{path}: links to {target}, a directory that it is in")


@cache
def _closure(root: Path, role: str, hooks: tuple[str, ...]) -> frozenset[str]:
    roles = root / "roles"
    known = frozenset(path.name for path in roles.iterdir() if path.is_dir())
    found, waiting = {role}, [role]
    named = _named_below(root, "playbooks", hooks)
    while named is not None:
        waiting += sorted({one for one in named if (roles / one).is_dir()} - found)
        found |= named & {*waiting}
        if not waiting:
            return frozenset(found)
        named = _named_below(root, f"roles/{waiting.pop()}", UNBAKED)
    return known | found


def _named_below(root: Path, directory: str, excluded: tuple[str, ...]) -> set[str] | None:
    """Return the names of roles in YAML files, or None when one cannot be known."""
    names: set[str] = set()
    for name, path in _files(root, root / directory, excluded):
        is_yaml = path.suffix in YAML_SUFFIXES or path.name == "main"
        if not path.is_file() or not is_yaml or name.split("/")[0] in NEVER_TASKS:
            continue
        try:
            documents = list(yaml.load_all(path.read_bytes(), Loader=_Loader))
        except (yaml.YAMLError, ValueError):
            return None
        for one in _named(documents):
            if one.replace(" ", "") == OWN_ROLE:
                continue
            if "{{" in one or "{%" in one:
                return None
            names.add(one)
    return names


def _named(document: Any) -> Iterator[str]:
    """Yield every name of a role in a playbook, a list of tasks, or a role's metadata."""
    if isinstance(document, list):
        for one in document:
            yield from _named(one)
    if not isinstance(document, Mapping):
        return
    for key, value in document.items():
        if key in ROLE_TASKS:
            yield _role_name(value)
        elif key in FREE_FORMS and any(name in str(value) for name in ROLE_TASKS):
            yield UNKNOWN
        elif key in ROLE_LISTS and isinstance(value, list):
            yield from (_role_name(one) for one in value)
        yield from _named(value)


def _role_name(entry: Any) -> str:
    """Return the name in one of the forms that Ansible reads."""
    if isinstance(entry, Mapping):
        name = entry.get("role") or entry.get("name")
        return name if isinstance(name, str) else UNKNOWN
    if not isinstance(entry, str):
        return UNKNOWN
    pairs = dict(word.split("=", 1) for word in entry.split() if "=" in word)
    return pairs.get("name") or pairs.get("role") or entry


class _Loader(yaml.SafeLoader):
    """Reads what is tagged for Ansible, `!vault` and `!unsafe`, as plain text."""


def _plain(_loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> str:
    return str(node.value)


_Loader.add_multi_constructor("!", _plain)
