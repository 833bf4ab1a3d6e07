"""`toolkit doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.context import Context, has_colour, json_option
from toolkit.errors import OutsideError

if TYPE_CHECKING:
    from toolkit.doctor.checks import Check

MARKS = {"ok": ("✓", "\x1b[32m"), "warning": ("!", "\x1b[33m"), "missing": ("✗", "\x1b[31m")}


@click.command()
@json_option
@click.pass_obj
def doctor(context: Context) -> int:
    """Check that this host has what the toolkit needs, and say how to mend what it lacks.

    Ends with 3 when something needed is missing. What only some commands use is marked with `!`.

    \b
    Example:
      toolkit doctor
      toolkit --state /srv/toolkit doctor --json
    """
    from toolkit.doctor.checks import install_command, is_fit
    from toolkit.doctor.probe import examine

    checks = examine(context.state_root)
    install = install_command(checks)
    data = {"fit": is_fit(checks), "checks": [_as_data(one) for one in checks], "install": install}
    context.emit(data, _as_text(checks, install, is_fit=is_fit(checks)))
    return 0 if is_fit(checks) else OutsideError.exit_code


def _as_data(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "subject": check.subject,
        "needed": check.is_needed,
        "status": str(check.status),
        "found": check.found,
        "hint": check.hint,
        "packages": list(check.packages),
    }


def _as_text(checks: Sequence[Check], install: str | None, *, is_fit: bool) -> str:
    is_coloured = has_colour(sys.stdout)
    width = max(len(check.subject) for check in checks)
    lines = []
    for check in checks:
        mark, colour = MARKS[check.status]
        if is_coloured:
            mark = f"{colour}{mark}\x1b[0m"
        lines.append(f"{mark} {check.subject:<{width}}  {check.found}")
        if check.hint:
            lines.append(f"  {'':<{width}}  hint: {check.hint}")
    verdict = "this host is ready" if is_fit else "this host lacks what the toolkit needs"
    return "\n".join([*lines, "", f"{verdict}; to mend it: {install}" if install else verdict])
