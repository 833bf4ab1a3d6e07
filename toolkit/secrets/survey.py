"""What can be said about the secrets of an environment without saying them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from toolkit.errors import NotFound
from toolkit.project.model import SecretSpec
from toolkit.secrets import certificates
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.grants import Matrix, credential_names
from toolkit.secrets.keys import MissingKey
from toolkit.secrets.vaults import Vaults

_DAY_S = 86400.0


class Presence(StrEnum):
    """Whether a secret is where it should be."""

    SET = "set"
    MISSING = "missing"
    NO_KEY = "no-key"
    """This operator does not hold the vault's password."""
    UNDECLARED = "undeclared"
    """It is in the vault, and no machine gets it."""


@dataclass(frozen=True, slots=True)
class Status:
    """One secret of one role; times in seconds since the epoch."""

    role: str
    name: str
    kind: str | None
    presence: Presence
    version: int | None = None
    created: float | None = None
    age_days: float | None = None
    expires: float | None = None
    is_overdue: bool = False

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "presence": str(self.presence)}


def survey(matrix: Matrix, vaults: Vaults, *, now: float) -> tuple[Status, ...]:
    """Return the status of every secret of an environment, as far as this operator may look."""
    name = vaults.environment.name
    roles = matrix.roles(name)
    held = [role for role in roles if _is_held(vaults, role)]
    documents = vaults.read_all(held)
    found: list[Status] = []
    for role in roles:
        declared = matrix.secrets(name, role)
        if role in documents:
            found += describe(role, documents[role], declared, now=now)
        else:
            found += [Status(role, s.name, s.kind, Presence.NO_KEY) for s in declared]
    return tuple(found)


def describe(
    role: str, document: Document | None, declared: Iterable[SecretSpec], *, now: float
) -> tuple[Status, ...]:
    """Return the status of what one vault holds and should hold. Pure."""
    entries = dict(document.entries) if document else {}
    found = []
    for secret in declared:
        entry = entries.pop(secret.name, None)
        if entry is None:
            found.append(Status(role, secret.name, secret.kind, Presence.MISSING))
        else:
            found.append(_status(role, entry, secret, now))
    found += [_status(role, entry, None, now) for entry in entries.values()]
    return tuple(found)


def matrix_rows(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every grant for JSON."""
    return [
        {
            "environment": grant.environment,
            "role": grant.role,
            "secret": grant.secret.name,
            "kind": grant.secret.kind,
            "credentials": list(credential_names(grant.secret).values()),
        }
        for grant in matrix.grants
    ]


def find_entry(vaults: Vaults, role: str, name: str) -> Entry:
    """Return one secret.

    Raises:
        NotFound: The vault does not hold it.
    """
    document = vaults.read(role)
    entries: Mapping[str, Entry] = document.entries if document else {}
    if name not in entries:
        raise NotFound(
            f"{vaults.path(role)}: there is no secret {name!r}",
            hint=f"it holds: {', '.join(entries) or 'nothing'}",
        )
    return entries[name]


def _is_held(vaults: Vaults, role: str) -> bool:
    if not vaults.exists(role):
        return True
    try:
        vaults.keys.password(role)
    except MissingKey:
        return False
    return True


def _status(role: str, entry: Entry, secret: SecretSpec | None, now: float) -> Status:
    age_days = (now - entry.created) / _DAY_S
    certificate = entry.parts.get("certificate")
    return Status(
        role=role,
        name=entry.name,
        kind=secret.kind if secret else None,
        presence=Presence.SET if secret else Presence.UNDECLARED,
        version=entry.version,
        created=entry.created,
        age_days=round(age_days, 2),
        expires=certificates.expiry(certificate) if certificate else None,
        is_overdue=bool(secret and secret.rotate_days and age_days > secret.rotate_days),
    )
