"""`toolkit secrets`: make, set, edit, list and show secrets."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from toolkit.cli.audit import audit_command
from toolkit.cli.context import Context, given_value, json_option, table
from toolkit.cli.rotate import rotate_command
from toolkit.errors import ConfigurationError
from toolkit.secrets.change import apply_edit, edited_names, parts_from_bytes, set_parts
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.document import Document, as_text
from toolkit.secrets.editor import edit_document
from toolkit.secrets.generate import Announce, Item, init
from toolkit.secrets.grants import BALANCER, Matrix
from toolkit.secrets.memory import VersionFile
from toolkit.secrets.survey import Status, find_entry, matrix_rows, survey

_NOTHING = "no role declares a secret"

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
def init_command(context: Context, environment: str) -> None:
    """Make the passwords and values that ENV lacks.

    Passwords, tokens and certificates are made; files have to be set. What exists is kept.
    """
    context.prepare()
    vaults = context.vaults(environment)
    outcome = init(
        context.project,
        vaults,
        VersionFile(context.state),
        announce=_announcer(context, environment),
        now=time.time(),
    )
    if outcome.made or outcome.passwords:
        context.record(
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
    context.emit(data, "\n".join(lines) or f"no role of {environment} declares a secret")


@secrets.command("list", epilog="Example: toolkit secrets list production")
@_environment
@json_option
@click.pass_obj
def list_command(context: Context, environment: str) -> None:
    """List names, versions, ages and expiry.

    Of all secrets of ENV, as far as you hold its keys; never a value.
    """
    matrix = load_matrix(context.project, [environment])
    found = survey(matrix, context.vaults(environment), now=time.time())
    header = ("ROLE", "SECRET", "KIND", "STATE", "VERSION", "AGE", "EXPIRES")
    context.emit(
        [s.as_data() for s in found], table(header, [_row(s) for s in found], empty=_NOTHING)
    )


@secrets.command("matrix", epilog="Example: toolkit secrets matrix production --json")
@click.argument("environment", metavar="[ENV]", required=False)
@json_option
@click.pass_obj
def matrix_command(context: Context, environment: str | None) -> None:
    """Show who can read what.

    From the declarations; in ENV, or in every environment.
    """
    rows = matrix_rows(load_matrix(context.project, [environment] if environment else None))
    header = ("ENVIRONMENT", "ROLE", "SECRET", "KIND", "CREDENTIALS")
    cells = [
        (
            *(r[key] for key in ("environment", "role", "secret", "kind")),
            ", ".join(r["credentials"]),
        )
        for r in rows
    ]
    context.emit(rows, table(header, cells, empty=_NOTHING))


@secrets.command("set", epilog="Example: pwgen 32 1 | toolkit secrets set production app api_token")
@_environment
@_role
@_name
@json_option
@click.pass_obj
def set_command(context: Context, environment: str, role: str, name: str) -> None:
    """Set a secret from standard input.

    It becomes the next version, in every role that declares the same name. A machine gets it with
    the next roll, the balancer with the next 'toolkit up'.
    """
    value = given_value()
    _set(context, environment, role=role, name=name, content=value, where="standard input")


@secrets.command(
    "import", epilog="Example: toolkit secrets import production web web_tls /run/keys/bundle.pem"
)
@_environment
@_role
@_name
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def import_command(context: Context, environment: str, role: str, name: str, file: Path) -> None:
    """Set a secret from a file.

    For a certificate, FILE is a PEM bundle of the key and its certificates.
    """
    content = file.read_bytes()
    _set(context, environment, role=role, name=name, content=content, where=str(file))


@secrets.command("edit", epilog="Example: EDITOR=nano toolkit secrets edit development app")
@_environment
@_role
@json_option
@click.pass_obj
def edit_command(context: Context, environment: str, role: str) -> None:
    """Edit a role's secrets in memory.

    With $VISUAL or $EDITOR. Nothing is written unless all of it is valid.
    """
    vaults = context.vaults(environment)
    matrix = load_matrix(context.project, [environment])
    _require_role(matrix.roles(environment), role, environment)
    before = vaults.read(role) or Document(environment, role, {})
    declared = matrix.secrets(environment, role)
    after = edit_document(
        before,
        check=lambda after: edited_names(before, after, declared),
        ask_again=_ask_again,
    )
    items = apply_edit(
        matrix,
        vaults,
        VersionFile(context.state),
        before=before,
        after=after,
        announce=_announcer(context, environment),
        now=time.time(),
    )
    _report_change(context, matrix, environment, items)


@secrets.command("show", epilog="Example: toolkit secrets show development app database_password")
@_environment
@_role
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def show_command(context: Context, environment: str, role: str, name: str, yes: bool) -> None:
    """Print one secret, after a question.

    The ledger records that it was shown.
    """
    _confirm(f"Print the secret {name} of {environment}.{role} here?", is_confirmed=yes)
    entry = find_entry(context.vaults(environment), role, name)
    context.record(
        "secret-shown", environment=environment, role=role, name=name, version=entry.version
    )
    if context.as_json:
        context.emit(_revealed(entry.name, entry.version, entry.parts), "")
        return
    value = b"".join(entry.parts.values())
    context.put(value, has_line_end=sys.stdout.isatty() and not value.endswith(b"\n"))


secrets.add_command(rotate_command)
secrets.add_command(audit_command)


def _set(
    context: Context, environment: str, *, role: str, name: str, content: bytes, where: str
) -> None:
    matrix = load_matrix(context.project, [environment])
    secret = matrix.secret(environment, role, name)
    items = set_parts(
        matrix,
        context.vaults(environment),
        VersionFile(context.state),
        role=role,
        name=name,
        parts=parts_from_bytes(secret, content, where),
        announce=_announcer(context, environment),
        now=time.time(),
    )
    _report_change(context, matrix, environment, items)


def _announcer(context: Context, environment: str) -> Announce:
    return lambda items: context.record(
        "secrets-changing", environment=environment, secrets=_items(items)
    )


def _report_change(
    context: Context, matrix: Matrix, environment: str, items: Sequence[Item]
) -> None:
    if items:
        context.record("secrets-changed", environment=environment, secrets=_items(items))
    lines = [f"changed  {_line(item)}" for item in items] or ["nothing was changed"]
    if any(item.role == BALANCER for item in items):
        lines.append(f"the balancer takes it up with 'toolkit up {environment}'")
    if any(item.role != BALANCER for item in items):
        lines.append(f"machines get it with the next 'toolkit roll {environment}'")
    renewable = [i.name for i in items if matrix.secret(environment, i.role, i.name).renew]
    lines += [
        f"the old {name} stays valid after that: "
        f"'toolkit secrets rotate {environment} {name}' ends it"
        for name in dict.fromkeys(renewable)
    ]
    context.emit({"environment": environment, "changed": _items(items)}, "\n".join(lines))


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
