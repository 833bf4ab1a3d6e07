"""`toolkit secrets`: make, set, edit, list and show secrets."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import click

from toolkit.cli.options import json_option
from toolkit.errors import ConfigurationError
from toolkit.project.load import load_environment
from toolkit.project.model import Project
from toolkit.secrets.change import apply_edit, parts_from_bytes, set_parts
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.document import Document, as_text
from toolkit.secrets.editor import edit_document
from toolkit.secrets.generate import Item, init
from toolkit.secrets.grants import Matrix
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.memory import VersionFile
from toolkit.secrets.survey import Status, find_entry, matrix_rows, survey
from toolkit.secrets.vaults import Vaults


class Session(Protocol):
    """What this group needs of the command line's context object."""

    state: Path
    as_json: bool

    @property
    def project(self) -> Project:
        """The project, read when first asked for."""

    def emit(self, data: Any, text: str) -> None:
        """Print a result."""

    def record(self, kind: str, **data: Any) -> None:
        """Add an entry to the ledger."""


_environment = click.argument("environment", metavar="ENV")
_role = click.argument("role", metavar="ROLE")
_name = click.argument("name", metavar="NAME")


@click.group(epilog="Example: toolkit secrets init development")
def secrets() -> None:
    """Make, set, edit, list and show the secrets of environments.

    Values come from standard input, a file or an editor, never from the command line.
    """


@secrets.command("init", epilog="Example: toolkit secrets init development")
@_environment
@json_option
@click.pass_obj
def init_command(session: Session, environment: str) -> None:
    """Make the passwords and values that ENV lacks.

    Passwords, tokens and certificates are made; files have to be set. What exists is kept.
    """

    vaults = _vaults(session, environment)
    outcome = init(session.project, vaults, VersionFile(session.state), now=time.time())
    if outcome.made or outcome.passwords:
        session.record(
            "secrets-made",
            environment=environment,
            secrets=_items(outcome.made),
            passwords=list(outcome.passwords),
        )
    lines = [f"made     the vault password of {environment}.{role}" for role in outcome.passwords]
    lines += [f"made     {_line(item)}" for item in outcome.made]
    lines += [f"kept     {_line(item)}" for item in outcome.kept]
    lines += [
        f"missing  {item.role} {item.name}: toolkit secrets import {environment} {item.role} "
        f"{item.name} FILE"
        for item in outcome.by_hand
    ]
    data = {
        "environment": environment,
        "made": _items(outcome.made),
        "kept": _items(outcome.kept),
        "by_hand": _items(outcome.by_hand),
        "passwords": list(outcome.passwords),
    }
    session.emit(data, "\n".join(lines) or f"no role of {environment} declares a secret")


@secrets.command("list", epilog="Example: toolkit secrets list production")
@_environment
@json_option
@click.pass_obj
def list_command(session: Session, environment: str) -> None:
    """List the secrets of ENV: names, versions, ages and expiry, never values."""

    matrix = load_matrix(session.project, [environment])
    found = survey(matrix, _vaults(session, environment), now=time.time())
    header = ("ROLE", "SECRET", "KIND", "STATE", "VERSION", "AGE", "EXPIRES")
    session.emit([s.as_data() for s in found], _table(header, [_row(s) for s in found]))


@secrets.command("matrix", epilog="Example: toolkit secrets matrix production --json")
@click.argument("environment", metavar="[ENV]", required=False)
@json_option
@click.pass_obj
def matrix_command(session: Session, environment: str | None) -> None:
    """Show who can read what, from the declarations; of ENV, or of all environments."""

    rows = matrix_rows(load_matrix(session.project, [environment] if environment else None))
    header = ("ENVIRONMENT", "ROLE", "SECRET", "KIND", "CREDENTIALS")
    table = [
        (
            *(r[key] for key in ("environment", "role", "secret", "kind")),
            ", ".join(r["credentials"]),
        )
        for r in rows
    ]
    session.emit(rows, _table(header, table))


@secrets.command("set", epilog="Example: pwgen 32 1 | toolkit secrets set production app api_token")
@_environment
@_role
@_name
@json_option
@click.pass_obj
def set_command(session: Session, environment: str, role: str, name: str) -> None:
    """Give a secret a new value, read from standard input.

    It gets the next version, in every role that declares the same name. A machine gets it with
    the next roll.
    """
    if sys.stdin.isatty():
        value = str(
            click.prompt("Value", hide_input=True, confirmation_prompt=True, err=True)
        ).encode()
    else:
        value = click.get_binary_stream("stdin").read()
    _set(session, environment, role=role, name=name, content=value, where="standard input")


@secrets.command(
    "import", epilog="Example: toolkit secrets import production web web_tls /run/keys/bundle.pem"
)
@_environment
@_role
@_name
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def import_command(session: Session, environment: str, role: str, name: str, file: Path) -> None:
    """Give a secret the content of FILE, such as a PEM bundle of key and certificates."""
    content = file.read_bytes()
    _set(session, environment, role=role, name=name, content=content, where=str(file))


@secrets.command("edit", epilog="Example: EDITOR=nano toolkit secrets edit development app")
@_environment
@_role
@json_option
@click.pass_obj
def edit_command(session: Session, environment: str, role: str) -> None:
    """Edit the secrets of ROLE in ENV with $VISUAL or $EDITOR, in memory."""

    vaults = _vaults(session, environment)
    matrix = load_matrix(session.project, [environment])
    _require_role(matrix.roles(environment), role, environment)
    before = vaults.read(role) or Document(environment, role, {})
    after = edit_document(before, ask_again=_ask_again)
    items = apply_edit(
        matrix,
        vaults,
        VersionFile(session.state),
        before=before,
        after=after,
        now=time.time(),
    )
    _report_change(session, environment, items)


@secrets.command("show", epilog="Example: toolkit secrets show development app database_password")
@_environment
@_role
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def show_command(session: Session, environment: str, role: str, name: str, yes: bool) -> None:
    """Print one secret, after a question; the ledger records that it was shown."""

    _confirm(f"Print the secret {name} of {environment}.{role} here?", is_confirmed=yes)
    entry = find_entry(_vaults(session, environment), role, name)
    session.record(
        "secret-shown", environment=environment, role=role, name=name, version=entry.version
    )
    if session.as_json:
        session.emit(_revealed(entry.name, entry.version, entry.parts), "")
        return
    value = b"".join(entry.parts.values())
    click.echo(value, nl=sys.stdout.isatty() and not value.endswith(b"\n"))


def _vaults(session: Session, environment: str) -> Vaults:

    loaded = load_environment(session.project, environment)
    return Vaults(loaded, KeyRing(loaded, session.state))


def _set(
    session: Session, environment: str, *, role: str, name: str, content: bytes, where: str
) -> None:

    matrix = load_matrix(session.project, [environment])
    secret = matrix.secret(environment, role, name)
    items = set_parts(
        matrix,
        _vaults(session, environment),
        VersionFile(session.state),
        role=role,
        name=name,
        parts=parts_from_bytes(secret, content, where),
        now=time.time(),
    )
    _report_change(session, environment, items)


def _report_change(session: Session, environment: str, items: Sequence[Item]) -> None:
    if items:
        session.record("secrets-changed", environment=environment, secrets=_items(items))
    text = "\n".join(f"changed  {_line(item)}" for item in items) or "nothing was changed"
    session.emit({"environment": environment, "changed": _items(items)}, text)


def _confirm(question: str, *, is_confirmed: bool) -> None:
    if is_confirmed:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "a secret is only shown after a question, and this is not a terminal",
            hint="add --yes",
        )
    click.confirm(question, abort=True, err=True)


def _ask_again(problem: str) -> bool:
    if not sys.stdin.isatty() or not os.isatty(2):
        return False
    return click.confirm(f"{problem}\nEdit it again?", default=True, err=True)


def _require_role(known: Sequence[str], role: str, environment: str) -> None:
    if role not in known:
        raise ConfigurationError(
            f"no role {role!r} of {environment} declares secrets",
            hint=f"roles that do: {', '.join(known) or 'none'}",
        )


def _revealed(name: str, version: int, parts: Any) -> dict[str, Any]:

    texts = {part: as_text(value) for part, value in parts.items()}
    if all(text is not None for text in texts.values()):
        return {"name": name, "version": version, **texts}
    encoded = {part: base64.b64encode(value).decode() for part, value in parts.items()}
    return {"name": name, "version": version, "encoding": "base64", **encoded}


def _items(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [{"role": i.role, "name": i.name, "version": i.version} for i in items]


def _line(item: Item) -> str:
    return f"{item.role} {item.name} (version {item.version})"


def _row(status: Status) -> tuple[str, ...]:
    expires = datetime.fromtimestamp(status.expires, UTC).date() if status.expires else "-"
    age = "-" if status.age_days is None else f"{status.age_days:.0f} d"
    return (
        status.role,
        status.name,
        status.kind or "-",
        str(status.presence),
        str(status.version or "-"),
        f"{age} (overdue)" if status.is_overdue else age,
        str(expires),
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
