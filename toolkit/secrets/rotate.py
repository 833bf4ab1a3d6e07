"""The vaults' part of a rotation: a new value beside the old one, until the old one is dead.

While a rotation is under way the value that has to die is kept in the vault under a name that no
role can declare, since its death is to be proven with it. That it is there is also how an
interrupted rotation is recognised. Going back is a rotation too: the old value is brought out once
more, as a version of its own, and the one that did not work has to die.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from toolkit.errors import ConfigurationError
from toolkit.project.model import Project, SecretSpec
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.generate import AuthoritySource, make_parts
from toolkit.secrets.grants import Matrix
from toolkit.secrets.memory import VersionMemory
from toolkit.secrets.source import refuse_replay
from toolkit.secrets.vaults import Vaults

_PREVIOUS = ".previous"
"""After the name of a secret: the value that a new one replaces."""

_ABANDONED = ".abandoned"
"""The same: a new value that the old one replaces again."""


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

    @property
    def is_back(self) -> bool:
        """Whether it brings an old value out again, since a new one did not work."""
        return self.old.name.endswith(_ABANDONED)


Announce = Callable[[Rotation], None]
"""Is told of a rotation that begins or goes on; where it fails, nothing is written."""


def is_dying(name: str) -> bool:
    """Whether an entry of a vault is a value that has to die before its rotation is finished."""
    return name.endswith((_PREVIOUS, _ABANDONED))


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
    is_back: bool = False,
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
        given: The parts of a new value that a person gave instead. Where a rotation is under way,
            they take the place of its value, but not where services are told values while they run.
        is_back: Whether a rotation that was begun before shall go back to the old value.
        announce: Writes down that a rotation begins, or goes on.
        now: Seconds since the epoch.

    Raises:
        NotFound: No role declares it.
        ConfigurationError: There is no value yet, it cannot be made, another one than is given is
            being brought out already, there is nothing to go back from, or a vault is older than
            one that was seen before.
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
        newest = max((entries[name] for entries in known), key=lambda entry: entry.version)
        highest = max(memory.highest(environment, role, name) or 0 for role in roles)
        version = 1 + max(highest, newest.version)
        dying = {key: e for entries in known for key, e in entries.items() if key in _dying(name)}

        if is_back and not dying:
            raise ConfigurationError(
                f"no rotation of {name} in {environment} is under way: there is nothing to go back "
                "from"
            )
        if given is not None and dying and dict(given) != dict(newest.parts) and spec.renew:
            raise ConfigurationError(
                f"a rotation of {name} in {environment} to another value was begun before and "
                "has to be finished first; the value that was given is not used",
                hint=f"run 'toolkit secrets rotate {environment} {name}' without --stdin, or with "
                "--back where its value does not work, then this again",
            )

        def make_parts() -> Mapping[str, bytes]:
            parts = make(spec) if given is None else given
            return _another(parts, [newest, *dying.values()], environment)

        new, old = _values(
            newest, dying, version, make_parts, given=given, is_back=is_back, now=now
        )
        rotation = Rotation(name, spec, roles, new, old, is_resumed=bool(dying))
        # Also when it was begun before: the vaults are several files, one may have been left.
        changed = [
            Document(environment, role, {**_living(document, name), name: new, old.name: old})
            for role, document in documents.items()
        ]
        is_changed = any(documents[one.role] != one for one in changed)
        if is_changed:
            memory.prepare()
        announce(rotation)
        if is_changed:
            vaults.write(changed)
        for role in roles:
            memory.remember(environment, role, name, new.version)
    return rotation


def finish(vaults: Vaults, rotation: Rotation) -> None:
    """Forget the old value; harmless when that was done before."""
    with vaults.locked():
        documents = vaults.read_all(rotation.roles)
        vaults.write(
            [
                replace(one, entries=_living(one, rotation.name))
                for one in documents.values()
                if one and _dying(rotation.name).intersection(one.entries)
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
        if document and _dying(name).intersection(document.entries):
            raise ConfigurationError(
                f"a rotation of {name} in {document.environment} is not finished",
                hint=f"finish it with 'toolkit secrets rotate {document.environment} {name}', with "
                "--back where the new value does not work, then run this again",
            )


def maker(
    project: Project, vaults: Vaults, *, now: float
) -> Callable[[SecretSpec], Mapping[str, bytes] | None]:
    """Return what makes new values with the environment's own authority."""
    authority = AuthoritySource(project, vaults.environment, vaults, now=now)
    return lambda spec: make_parts(spec, authority=authority.get, now=now)


def _values(
    newest: Entry,
    dying: Mapping[str, Entry],
    version: int,
    make_parts: Callable[[], Mapping[str, bytes]],
    *,
    given: Mapping[str, bytes] | None,
    is_back: bool,
    now: float,
) -> tuple[Entry, Entry]:
    """Return the value that everybody is to have, and the one that has to die."""
    name = newest.name
    abandoned, previous = dying.get(name + _ABANDONED), dying.get(name + _PREVIOUS)
    old = abandoned or previous
    if previous and not abandoned and is_back:
        # As old as it was: how long a value may be used goes by that.
        new = replace(previous, name=name, version=version)
        return new, replace(newest, name=name + _ABANDONED)
    if old and (given is None or dict(given) == dict(newest.parts)):
        return newest, old
    return Entry(name, version, now, make_parts()), old or replace(newest, name=name + _PREVIOUS)


def _another(
    parts: Mapping[str, bytes] | None, known: Sequence[Entry], environment: str
) -> Mapping[str, bytes]:
    """Return the parts of a new value.

    Raises:
        ConfigurationError: There are none, or they are those of a value that is known.
    """
    name = known[0].name
    command = f"'toolkit secrets rotate {environment} {name}"
    if parts is None:
        raise ConfigurationError(
            f"a new value of {name} can only be given by people",
            hint=f"pipe it into {command} --stdin'",
        )
    for entry in known:
        if dict(parts) == dict(entry.parts):
            raise ConfigurationError(
                f"{name} of {environment} has or had that value: it could not die",
                hint=f"{command} --back' returns to it"
                if entry.name.endswith(_PREVIOUS)
                else f"pipe another one into {command} --stdin'",
            )
    return parts


def _dying(name: str) -> frozenset[str]:
    """Return what a value of a secret is called that has to die."""
    return frozenset({name + _PREVIOUS, name + _ABANDONED})


def _living(document: Document | None, name: str) -> dict[str, Entry]:
    """Return what a vault holds without the values of a secret that have to die."""
    entries = document.entries if document else {}
    return {key: entry for key, entry in entries.items() if key not in _dying(name)}
