"""The vaults' part of a rotation: a new value beside the old one, until the old one is dead.

While a rotation is under way the old value is kept in the vault under a name that no role can
declare, since its death is to be proven with it. That it is there is also how an interrupted
rotation is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from toolkit.errors import ConfigurationError
from toolkit.project.model import Project, SecretSpec
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.generate import AuthoritySource, make_parts
from toolkit.secrets.grants import Matrix
from toolkit.secrets.memory import VersionMemory
from toolkit.secrets.source import refuse_replay
from toolkit.secrets.vaults import Vaults

PREVIOUS_SUFFIX = ".previous"

Announce = Callable[[bool], None]
"""Is told whether the rotation began in an earlier command; where it fails, nothing is written."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation that is under way.

    Attributes:
        name: Of the secret.
        spec: Its declaration.
        roles: Who knows it.
        new: The value that everybody is to have.
        old: The value that has to die.
        is_resumed: Whether it began in an earlier command.
    """

    name: str
    spec: SecretSpec
    roles: tuple[str, ...]
    new: Entry = field(repr=False)
    old: Entry = field(repr=False)
    is_resumed: bool


def find_spec(matrix: Matrix, environment: str, name: str) -> SecretSpec:
    """Return the declaration of a secret by its name alone.

    Raises:
        NotFound: No role of the environment declares it.
    """
    roles = matrix.sharers(environment, name) or matrix.roles(environment)
    return matrix.secret(environment, roles[0] if roles else "", name)


def begin(
    matrix: Matrix,
    vaults: Vaults,
    memory: VersionMemory,
    *,
    name: str,
    make: Callable[[SecretSpec], Mapping[str, bytes] | None],
    given: Mapping[str, bytes] | None = None,
    announce: Announce,
    now: float,
) -> Rotation:
    """Write a new value beside the old one; find the rotation that was begun before.

    Args:
        matrix: The grants.
        vaults: Those of the environment.
        memory: Of versions.
        name: Of the secret.
        make: Returns the parts of a new value; None where only people can make one.
        given: The parts of a new value that a person gave instead.
        announce: Writes down that a rotation begins, or goes on.
        now: Seconds since the epoch.

    Raises:
        NotFound: No role declares it.
        ConfigurationError: There is no value yet, it cannot be made, another one than is given is
            being brought out already, or a vault is older than one that was seen before.
        MissingKey: This operator does not hold the password of a role that shares it.
    """
    environment = vaults.environment.name
    spec = find_spec(matrix, environment, name)
    roles = matrix.sharers(environment, name)
    with vaults.locked():
        documents = vaults.read_all(roles)
        known = [d.entries for d in documents.values() if d and name in d.entries]
        if not known:
            raise ConfigurationError(
                f"{environment} has no value of {name} yet",
                hint=f"run 'toolkit secrets init {environment}'",
            )
        for role, document in documents.items():
            if document and name in document.entries:
                refuse_replay(document, [spec], memory, str(vaults.path(role)))
        new = max((entries[name] for entries in known), key=lambda entry: entry.version)
        previous = name + PREVIOUS_SUFFIX
        begun = [entries[previous] for entries in known if previous in entries]
        if begun:
            old = begun[0]
            if given is not None and dict(given) != dict(new.parts):
                raise ConfigurationError(
                    f"a rotation of {name} in {environment} to another value was begun before and "
                    "has to be finished first; the value that was given is not used",
                    hint=f"run 'toolkit secrets rotate {environment} {name}' without --stdin, then "
                    "this again",
                )
        else:
            old = replace(new, name=previous)
            parts = make(spec) if given is None else given
            if parts is None:
                raise ConfigurationError(
                    f"a new value of {name} can only be given by people",
                    hint=f"pipe it into 'toolkit secrets rotate {environment} {name} --stdin'",
                )
            highest = max(memory.highest(environment, role, name) or 0 for role in roles)
            new = Entry(name, 1 + max(highest, new.version), now, parts)
        # Also when it was begun before: the vaults are several files, one may have been left.
        changed = [
            Document(
                environment,
                role,
                {**(document.entries if document else {}), name: new, previous: old},
            )
            for role, document in documents.items()
        ]
        is_changed = any(documents[one.role] != one for one in changed)
        if is_changed:
            memory.prepare()
        announce(bool(begun))
        if is_changed:
            vaults.write(changed)
        for role in roles:
            memory.remember(environment, role, name, new.version)
    return Rotation(name, spec, roles, new, old, is_resumed=bool(begun))


def finish(vaults: Vaults, rotation: Rotation) -> None:
    """Forget the old value; harmless when that was done before."""
    previous = rotation.name + PREVIOUS_SUFFIX
    with vaults.locked():
        documents = vaults.read_all(rotation.roles)
        vaults.write(
            [
                replace(one, entries={key: e for key, e in one.entries.items() if key != previous})
                for one in documents.values()
                if one and previous in one.entries
            ]
        )


def need_finished(documents: Iterable[Document | None], name: str) -> None:
    """Refuse to change a secret whose rotation is under way: its old value would never die.

    Args:
        documents: What the vaults of the roles that share it hold.
        name: Of the secret.

    Raises:
        ConfigurationError: One still holds the old value.
    """
    for document in documents:
        if document and name + PREVIOUS_SUFFIX in document.entries:
            raise ConfigurationError(
                f"a rotation of {name} in {document.environment} is not finished",
                hint=f"finish it with 'toolkit secrets rotate {document.environment} {name}', then "
                "run this again",
            )


def maker(
    project: Project, vaults: Vaults, *, now: float
) -> Callable[[SecretSpec], Mapping[str, bytes] | None]:
    """Return what makes new values with the environment's own authority."""
    authority = AuthoritySource(project, vaults.environment, vaults, now=now)
    return lambda spec: make_parts(spec, authority=authority.get, now=now)
