"""Makes an environment's vault passwords and every secret that can be made. Repeatable."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.errors import ConfigurationError
from toolkit.project.model import Environment, Project, SecretSpec
from toolkit.secrets.authority import (
    Authority,
    create_authority,
    issue,
    load_authority,
    outside_names,
)
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.files import replace_all
from toolkit.secrets.grants import Matrix
from toolkit.secrets.keys import MissingKey
from toolkit.secrets.memory import VersionMemory, remember_documents
from toolkit.secrets.source import check_kind
from toolkit.secrets.vaults import Vaults

Parts = Mapping[str, bytes]
Maker = Callable[[SecretSpec], Parts | None]
Floor = Callable[[str, str], int]

VALUE_BYTES = 32
"""256 bits of randomness, written as 43 characters of base64url."""


@dataclass(frozen=True, slots=True)
class Item:
    """One secret in the vault of one role.

    Attributes:
        role: Whose vault.
        name: Of the secret.
        version: In the vault now; 0 for one that people have to set.
    """

    role: str
    name: str
    version: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `init` did.

    Attributes:
        made: Written now, also when only copied from a role that shares the name.
        kept: Found and left as they were.
        by_hand: Cannot be made, and are not there.
        passwords: Roles whose vault password was made.
    """

    made: tuple[Item, ...]
    kept: tuple[Item, ...]
    by_hand: tuple[Item, ...]
    passwords: tuple[str, ...]


Announce = Callable[[Sequence[Item]], None]
"""Is told what is about to be written; where it fails, nothing is."""


def init(
    project: Project, vaults: Vaults, memory: VersionMemory, *, announce: Announce, now: float
) -> Outcome:
    """Make whatever an environment lacks; what exists is kept.

    Args:
        project: Declares the secrets.
        vaults: Those of the environment.
        memory: A secret made anew after a loss gets a higher version than any seen before.
        announce: Writes down what is about to be made.
        now: Seconds since the epoch.

    Raises:
        MissingKey: A vault exists and this operator does not hold its password.
        ConfigurationError: A vault does not belong where it is, or two roles that share a
            secret disagree about it.
    """
    environment = vaults.environment
    matrix = load_matrix(project, [environment.name])
    with vaults.locked():
        passwords = _make_passwords(matrix.roles(environment.name), vaults)
        documents = vaults.read_all(matrix.roles(environment.name))
        authority = AuthoritySource(project, environment, vaults, now=now)
        changed, outcome = complete(
            matrix,
            environment.name,
            documents,
            make=partial(make_parts, authority=authority.get, now=now),
            floor=lambda role, name: memory.highest(environment.name, role, name) or 0,
            now=now,
        )
        memory.prepare()
        if changed:
            announce(outcome.made)
            vaults.write(changed)
            remember_documents(memory, changed)
    return Outcome(outcome.made, outcome.kept, outcome.by_hand, passwords)


def complete(
    matrix: Matrix,
    environment: str,
    documents: Mapping[str, Document | None],
    *,
    make: Maker,
    floor: Floor,
    now: float,
) -> tuple[tuple[Document, ...], Outcome]:
    """Plan what has to be in the vaults of an environment. Pure, but for `make`.

    Args:
        matrix: The grants.
        environment: Its name.
        documents: Role name to what its vault holds now.
        make: Makes the parts of a new secret; None for one that only people can make.
        floor: Returns the highest version ever seen of a role's secret, from 0.
        now: Seconds since the epoch.

    Returns:
        The documents that have to be written, and what is in them.

    Raises:
        ConfigurationError: Two roles hold different values of one version.
    """
    entries = {role: dict(d.entries) if d else {} for role, d in documents.items()}
    made, kept, by_hand = [], [], []
    specs = {g.secret.name: g.secret for g in matrix.grants if g.environment == environment}
    for name, spec in specs.items():
        roles = matrix.sharers(environment, name)
        for role in roles:
            if name in entries[role]:
                check_kind(entries[role][name], spec, f"the vault of {environment}.{role}")
        found = {role: entries[role][name] for role in roles if name in entries[role]}
        newest = _newest(environment, found)
        if newest is None:
            parts = make(spec)
            if parts is not None:
                version = 1 + max(floor(role, name) for role in roles)
                newest = Entry(name, version, now, parts)
        for role in roles:
            if newest is None:
                by_hand.append(Item(role, name, 0))
            elif entries[role].get(name) == newest:
                kept.append(Item(role, name, newest.version))
            else:
                entries[role][name] = newest
                made.append(Item(role, name, newest.version))
    changed = dict.fromkeys(item.role for item in made)
    return (
        tuple(Document(environment, role, entries[role]) for role in changed),
        Outcome(tuple(made), tuple(kept), tuple(by_hand), ()),
    )


def make_parts(
    secret: SecretSpec, *, authority: Callable[[], Authority | None], now: float
) -> Parts | None:
    """Make a new value of a secret; None when only people can.

    Args:
        secret: Says what is needed.
        authority: Returns who signs certificates; None when they have to be imported.
        now: Seconds since the epoch.
    """
    if secret.kind in {"password", "token"}:
        return {"value": secrets.token_urlsafe(VALUE_BYTES).encode()}
    if secret.kind != "tls" or not secret.dns_names or outside_names(secret.dns_names):
        return None
    signer = authority()
    if signer is None:
        return None
    certificate, key = issue(signer, secret.dns_names, now=now)
    return {"certificate": certificate, "key": key}


def _newest(environment: str, found: Mapping[str, Entry]) -> Entry | None:
    """Return the newest of the entries that roles share; older ones are to be replaced by it."""
    if not found:
        return None
    newest = max(found.values(), key=lambda entry: entry.version)
    for role, entry in found.items():
        if entry.version == newest.version and entry.parts != newest.parts:
            raise ConfigurationError(
                f"{' and '.join(found)} share {newest.name}, but hold different values of its "
                f"version {newest.version}",
                hint=f"set it anew with 'toolkit secrets set {environment} {role} {newest.name}'",
            )
    return newest


def _make_passwords(roles: tuple[str, ...], vaults: Vaults) -> tuple[str, ...]:
    """Make the passwords that are missing; check that no two roles have the same."""
    made = []
    for role in roles:
        # An existing vault has a password already, which a new one could never open.
        if vaults.keys.is_directory and not vaults.exists(role) and vaults.keys.make_password(role):
            made.append(role)
    seen: dict[bytes, str] = {}
    for role in roles:
        other = seen.setdefault(vaults.keys.password(role).reveal(), role)
        if other != role:
            raise ConfigurationError(
                f"{vaults.environment.name}: {other} and {role} have the same vault password, so "
                "that each could read the other's secrets",
                hint="give each environment and role a password of its own",
            )
    return tuple(made)


class AuthoritySource:
    """Finds the environment's certificate authority when the first certificate needs it."""

    def __init__(
        self, project: Project, environment: Environment, vaults: Vaults, *, now: float
    ) -> None:
        self._service = project.name
        self._environment = environment
        self._keys = vaults.keys
        self._now = now

    def get(self) -> Authority | None:
        """Return the authority, a new one if there is none.

        Raises:
            MissingKey: There is one, and this operator does not hold its key.
        """
        if not self._keys.is_directory:
            return None
        path = self._environment.directory / "authority.pem"
        key = self._keys.authority_key()
        name = self._environment.name
        if path.exists():
            if key is None:
                raise MissingKey(
                    f"the key of the certificate authority of {name} is not held here",
                    hint="ask its owner for it, or import certificates with 'toolkit secrets "
                    "import'",
                )
            return load_authority(path.read_bytes(), key.reveal())
        authority = create_authority(
            self._service, name, now=self._now, key_pem=key.reveal() if key else None
        )
        if key is None and not self._keys.keep_authority_key(authority.key_pem()):
            raise ConfigurationError(f"somebody else is making the authority of {name}")
        replace_all({path: authority.certificate}, mode=0o644)
        return authority
