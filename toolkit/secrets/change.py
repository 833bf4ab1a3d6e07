"""Changes of secrets that people make. A secret that roles share changes in all their vaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from toolkit.errors import ConfigurationError
from toolkit.project.model import SecretSpec
from toolkit.secrets.certificates import check_pair, split_bundle
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.generate import Announce, Item
from toolkit.secrets.grants import Matrix
from toolkit.secrets.memory import VersionMemory, remember_documents
from toolkit.secrets.rotate import need_finished
from toolkit.secrets.source import check_kind
from toolkit.secrets.vaults import Vaults


def parts_from_bytes(secret: SecretSpec, content: bytes, where: str) -> Mapping[str, bytes]:
    """Make the parts of a secret from what a person handed over.

    A password's or token's last line end is not part of it, since `echo` and editors add one.

    Args:
        secret: Its kind decides: `tls` takes a PEM bundle of the key and its certificates.
        content: What was handed over.
        where: Where it came from, for messages.

    Raises:
        ConfigurationError: It is empty, or not what the kind needs.
    """
    if secret.kind == "tls":
        certificate, key = split_bundle(content, where)
        return {"certificate": certificate, "key": key}
    if secret.kind in {"password", "token"}:
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    if not content:
        raise ConfigurationError(f"{where}: there is no value for {secret.name}")
    return {"value": content}


def set_parts(
    matrix: Matrix,
    vaults: Vaults,
    memory: VersionMemory,
    *,
    role: str,
    name: str,
    parts: Mapping[str, bytes],
    announce: Announce,
    now: float,
) -> tuple[Item, ...]:
    """Give a secret a new value under the next version, in every role that shares it.

    Args:
        matrix: The grants.
        vaults: Those of the environment.
        memory: Of versions.
        role: Whose secret.
        name: Of the secret.
        parts: The new value.
        announce: Writes down what is about to change.
        now: Seconds since the epoch.

    Raises:
        NotFound: The role does not declare it.
        ConfigurationError: A rotation of it is not finished.
        MissingKey: This operator does not hold the password of a role that shares it.
    """
    environment = vaults.environment.name
    matrix.secret(environment, role, name)
    roles = matrix.sharers(environment, name)
    with vaults.locked():
        documents = vaults.read_all(roles)
        need_finished(documents.values(), name)
        changed = with_parts(
            environment,
            documents,
            name=name,
            parts=parts,
            floor=max(memory.highest(environment, each, name) or 0 for each in roles),
            now=now,
        )
        items = tuple(Item(d.role, name, d.entries[name].version) for d in changed)
        memory.prepare()
        announce(items)
        vaults.write(changed)
        remember_documents(memory, changed)
    return items


def with_parts(
    environment: str,
    documents: Mapping[str, Document | None],
    *,
    name: str,
    parts: Mapping[str, bytes],
    floor: int,
    now: float,
) -> tuple[Document, ...]:
    """Return the documents with a new value of one secret. Pure.

    Args:
        environment: Its name.
        documents: Role name to what its vault holds now, of every role that shares the secret.
        name: Of the secret.
        parts: Its new value.
        floor: The highest version ever seen of it, from 0.
        now: Seconds since the epoch.
    """
    known = [d.entries[name].version for d in documents.values() if d and name in d.entries]
    entry = Entry(name, 1 + max([floor, *known]), now, parts)
    return tuple(
        Document(environment, role, {**(document.entries if document else {}), name: entry})
        for role, document in documents.items()
    )


def apply_edit(
    matrix: Matrix,
    vaults: Vaults,
    memory: VersionMemory,
    *,
    before: Document,
    after: Document,
    announce: Announce,
    now: float,
) -> tuple[Item, ...]:
    """Write what a person changed in a role's document, each under its next version.

    Args:
        matrix: The grants.
        vaults: Those of the environment.
        memory: Of versions.
        before: As it was given to the editor.
        after: As it came back; versions and times in it do not count.
        announce: Writes down what is about to change.
        now: Seconds since the epoch.

    Raises:
        ConfigurationError: The result is not valid, somebody else changed the vault since, or a
            rotation of a changed secret is not finished.
    """
    environment, role = vaults.environment.name, before.role
    names = edited_names(before, after, matrix.secrets(environment, role))
    if not names:
        return ()
    sharers = {name: matrix.sharers(environment, name) or (role,) for name in names}
    roles = tuple(dict.fromkeys(each for name in names for each in sharers[name]))
    with vaults.locked():
        documents = dict(vaults.read_all({role: None, **dict.fromkeys(roles)}))
        if (documents[role] or replace(before, entries={})) != before:
            raise ConfigurationError(
                f"{vaults.path(role)}: was changed by somebody else during the edit",
                hint="edit it again",
            )
        items = []
        for name in names:
            need_finished((documents[each] for each in sharers[name]), name)
            changed = with_parts(
                environment,
                {each: documents[each] for each in sharers[name]},
                name=name,
                parts=after.entries[name].parts,
                floor=max(memory.highest(environment, each, name) or 0 for each in sharers[name]),
                now=now,
            )
            documents.update({document.role: document for document in changed})
            items += [Item(d.role, name, d.entries[name].version) for d in changed]
        written = [document for each in roles if (document := documents[each])]
        memory.prepare()
        announce(tuple(items))
        vaults.write(written)
        remember_documents(memory, written)
    return tuple(items)


def edited_names(
    before: Document, after: Document, declared: Collection[SecretSpec]
) -> tuple[str, ...]:
    """Return the secrets whose value was changed or added in an edit. Pure.

    Raises:
        ConfigurationError: One was removed, is not declared, or is not valid for its kind.
    """
    where = f"the edited secrets of {before.environment}.{before.role}"
    specs = {secret.name: secret for secret in declared}
    removed = set(before.entries) - set(after.entries)
    if removed:
        raise ConfigurationError(f"{where}: {', '.join(sorted(removed))} was removed")
    names = [
        name
        for name, entry in after.entries.items()
        if name not in before.entries or before.entries[name].parts != entry.parts
    ]
    for name in names:
        if name not in specs:
            raise ConfigurationError(f"{where}: {name} is not declared by the role")
        _check(after.entries[name], specs[name], where)
    return tuple(names)


def _check(entry: Entry, secret: SecretSpec, where: str) -> None:
    check_kind(entry, secret, where)
    if not all(entry.parts.values()):
        raise ConfigurationError(f"{where}: {entry.name} is empty")
    if secret.kind == "tls":
        check_pair(entry.parts["certificate"], entry.parts["key"], f"{where}: {entry.name}")
