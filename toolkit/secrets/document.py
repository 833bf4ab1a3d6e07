"""The plaintext of a vault file. Pure.

    environment: production
    role: app
    secrets:
      database_password:
        name: database_password
        version: 3
        created: '2026-01-31T12:00:00Z'
        value: …

A TLS secret has `certificate` and `key` instead of `value`; `encoding: base64` marks values that
YAML cannot hold as text. Everything is repeated inside what the password protects, since the
file's name and the vault's label are not protected. No message ever quotes the document.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from toolkit.errors import ConfigurationError

_COMMON = {"name", "version", "created", "encoding"}
_SHAPES: tuple[frozenset[str], ...] = (frozenset({"value"}), frozenset({"certificate", "key"}))


@dataclass(frozen=True, slots=True)
class Entry:
    """One secret in a vault.

    Attributes:
        name: Of the secret.
        version: Counts up from 1 with every change.
        created: When this version was made, seconds since the epoch.
        parts: `value`, or `certificate` and `key`.
    """

    name: str
    version: int
    created: float
    parts: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """Everything that one role knows in one environment."""

    environment: str
    role: str
    entries: Mapping[str, Entry]


def parse(plaintext: bytes, *, environment: str, role: str, where: str) -> Document:
    """Read a document and check that it is the one that was asked for.

    Args:
        plaintext: As decrypted.
        environment: Whose it must be.
        role: Whose it must be.
        where: The vault file, for messages.

    Raises:
        ConfigurationError: It is of another environment or role, or not a document at all.
    """
    content = _mapping(_load(plaintext, where), where)
    if set(content) != {"environment", "role", "secrets"}:
        raise ConfigurationError(f"{where}: must have exactly environment, role and secrets")
    for key, wanted in (("environment", environment), ("role", role)):
        if content[key] != wanted:
            raise ConfigurationError(
                f"{where}: its content was made for {key} {_shown(content[key])}, not for "
                f"{wanted!r}",
                hint="restore it from version control",
            )
    entries = _mapping(content["secrets"], f"{where}:secrets")
    return Document(
        environment,
        role,
        {str(name): _entry(str(name), entry, where) for name, entry in entries.items()},
    )


def serialise(document: Document) -> bytes:
    """Return the plaintext of a document; `parse` returns the same document again."""
    content = {
        "environment": document.environment,
        "role": document.role,
        "secrets": {name: _written(entry) for name, entry in sorted(document.entries.items())},
    }
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=4096).encode()


def as_text(value: bytes) -> str | None:
    """Return a value as text that YAML keeps as it is; None for anything else."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    is_plain = all(c.isprintable() or c in "\n\t" for c in text)
    return text if is_plain else None


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, which people can read and edit."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if not text.isalnum() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _load(plaintext: bytes, where: str) -> Any:
    line = None
    try:
        return yaml.load(plaintext, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
    except (yaml.YAMLError, ValueError):
        pass
    # Raised outside of the handlers: YAML's own errors quote the text.
    raise ConfigurationError(f"{where}: its content is not YAML" + (f", line {line}" * bool(line)))


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: its content must be a mapping")
    return value


def _entry(name: str, value: Any, where: str) -> Entry:
    where = f"{where}:secrets.{_shown(name)}"
    fields = _mapping(value, where)
    parts = set(fields) - _COMMON
    if parts not in _SHAPES:
        raise ConfigurationError(f"{where}: must have a value, or a certificate and a key")
    if fields.get("name") != name:
        raise ConfigurationError(
            f"{where}: its content is the secret {_shown(fields.get('name'))}",
            hint="a value was moved to another name; set it with 'toolkit secrets set'",
        )
    version = fields.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigurationError(f"{where}.version: must be a whole number from 1")
    encoding = fields.get("encoding")
    if encoding not in {None, "base64"}:
        raise ConfigurationError(f"{where}.encoding: must be base64, or not there")
    return Entry(
        name,
        version,
        _time(fields.get("created"), where),
        {part: _decoded(fields[part], encoding, f"{where}.{part}") for part in sorted(parts)},
    )


def _time(value: Any, where: str) -> float:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        moment = None
    if moment is None:
        raise ConfigurationError(f"{where}.created: must be a time such as 2026-01-31T12:00:00Z")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _decoded(value: Any, encoding: str | None, where: str) -> bytes:
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}: must be text; put it in quotes")
    if encoding is None:
        return value.encode("utf-8", errors="surrogatepass")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ConfigurationError(f"{where}: is not base64")


def _written(entry: Entry) -> dict[str, Any]:
    texts = {part: as_text(value) for part, value in entry.parts.items()}
    created = datetime.fromtimestamp(entry.created, UTC)
    head: dict[str, Any] = {
        "name": entry.name,
        "version": entry.version,
        "created": created.isoformat().replace("+00:00", "Z"),
    }
    if all(text is not None for text in texts.values()):
        return {**head, **texts}
    encoded = {part: base64.b64encode(value).decode() for part, value in entry.parts.items()}
    return {**head, "encoding": "base64", **encoded}


def _shown(name: Any) -> str:
    """Quote a name, but not what cannot be one: it may be a value in the wrong place."""
    text = str(name)
    is_name = len(text) <= 64 and text.replace("_", "").replace("-", "").isalnum()
    return repr(text) if is_name else "(unreadable)"
