"""`toolkit history`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.context import Context, json_option, short, table
from toolkit.errors import NotFound, ToolkitError

if TYPE_CHECKING:
    from toolkit.ledger.ledger import Ledger

STEPS = (
    "effect.intent",
    "effect.done",
    "effect.failed",
    "roll.switched",
    "roll.watching",
    "secrets-changing",
)
"""Kinds that say how something was done; what became of it is another entry."""


@click.command()
@click.argument("environment", required=False)
@click.argument("role", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=20,
    show_default=True,
    help="Most entries shown.",
)
@click.option("--steps", is_flag=True, help="Show every step of every roll too.")
@click.option("--verify", is_flag=True, help="Check the whole chain of hashes first.")
@json_option
@click.pass_obj
def history(
    context: Context,
    environment: str | None,
    role: str | None,
    limit: int,
    steps: bool,
    verify: bool,
) -> None:
    """Show what was done, newest first: when, by whom, from which release and commit.

    \b
    Example:
      toolkit history production
      toolkit history --verify --json
    """
    from toolkit.wiring import open_ledger

    with open_ledger(context.state, is_looking=True) as ledger:
        if verify:
            _verify(context, ledger)
        found = ledger.entries(
            environment=environment, role=role, without=() if steps else STEPS, limit=limit
        )
        if not found and environment:
            _need_known(context, ledger, environment)
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["time"])),
            entry["kind"],
            " ".join(filter(None, (entry["environment"], entry["role"]))) or "-",
            entry["roll"] or "-",
            entry["by"],
            _what(entry["data"]),
        )
        for entry in found
    ]
    where = " ".join(filter(None, (environment, role)))
    text = table(
        ("TIME (UTC)", "WHAT", "WHERE", "ROLL", "BY", "DETAIL"),
        rows,
        empty=f"nothing was done yet in {where}" if where else "nothing was done yet",
    )
    context.emit(found, text)


def _verify(context: Context, ledger: Ledger) -> None:
    broken = ledger.first_break()
    if broken is not None:
        raise ToolkitError(
            f"the ledger's chain is broken at entry {broken}",
            hint="somebody changed the database by hand; restore it from a backup",
        )
    newest = ledger.entries(limit=1)
    count = newest[0]["sequence"] if newest else 0
    context.progress.note(f"the ledger's chain is whole: {count} entries")


def _need_known(context: Context, ledger: Ledger, environment: str) -> None:
    """Refuse a name that is nobody's: that nothing is found would say nothing.

    Raises:
        NotFound: Neither the project nor the ledger has it.
    """
    from toolkit.project.load import environment_names

    known = {*ledger.environments()}
    with suppress(ToolkitError):
        # The ledger can be read without a project.
        known |= {*environment_names(context.project)}
    if environment not in known:
        raise NotFound(
            f"there is no environment {environment!r}",
            hint=f"there is: {', '.join(sorted(known)) or 'none'}",
        )


def _what(data: dict[str, Any]) -> str:
    words = []
    if data.get("release"):
        words.append(data["release"])
    if data.get("commit"):
        words.append(f"commit {data['commit'][:12]}")
    if data.get("image"):
        old = short(data["previous"]) if data.get("previous") else "nothing"
        word = "back: " if data.get("is_rollback") else ""
        words.append(f"{word}{old} → {short(data['image'])}")
    for secret in data.get("secrets", ()):
        words.append(f"{secret['role']} {secret['name']} (version {secret['version']})")
    if data.get("secret"):
        words.append(data["secret"])
    if data.get("effect") and "machines" in data:
        words.append(f"{data['effect']} {', '.join(data['machines'])}")
    if data.get("started_by"):
        words.append(f"started by {data['started_by']}")
    for why in ("reason", "error"):
        if isinstance(data.get(why), str):
            words.append(data[why].partition("\n")[0])
    return ", ".join(words) or "-"
