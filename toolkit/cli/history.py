"""`toolkit history`."""

from __future__ import annotations

import time
from typing import Any

import click

from toolkit.cli.context import Context, json_option, short, table

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
    from toolkit.errors import ToolkitError
    from toolkit.wiring import open_ledger

    with open_ledger(context.state, is_looking=True) as ledger:
        if verify:
            broken = ledger.first_break()
            if broken is not None:
                raise ToolkitError(
                    f"the ledger's chain is broken at entry {broken}",
                    hint="somebody changed the database by hand; restore it from a backup",
                )
        found = ledger.entries(
            environment=environment, role=role, without=() if steps else STEPS, limit=limit
        )
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["time"])),
            entry["kind"],
            " ".join(filter(None, (entry["environment"], entry["role"]))) or "-",
            _what(entry["data"]),
            entry["by"],
        )
        for entry in found
    ]
    text = table(
        ("TIME (UTC)", "WHAT", "WHERE", "DETAIL", "BY"), rows, empty="nothing was done yet"
    )
    context.emit(found, text)


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
    return ", ".join(words) or "-"
