"""`toolkit secrets audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli.context import Context, json_option, size, table
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.secrets.audit import AuditReport, Cell


@click.command("audit", epilog="Example: toolkit secrets audit production")
@click.argument("environment", metavar="ENV")
@json_option
@click.pass_obj
def audit_command(context: Context, environment: str) -> None:
    """Prove who knows what, on the live machines.

    Every machine of ENV is tried for every secret of every role and environment whose key you
    hold. Exit code 1 when one is missing, wrong, or anywhere it should not be, or when a vault of
    ENV is missing or damaged, so that nothing could be compared with it.
    """
    from toolkit import wiring

    context.need_root()
    report = wiring.audit_environment(context, environment)
    context.emit(report.as_data(), _audit_table(report))
    problems = []
    if report.failures:
        problems += [
            f"{len(report.failures)} of {len(report.cells)} cells are not as they should be:",
            *(f"  {cell}" for cell in report.failures),
        ]
    if report.broken:
        problems += [
            f"without these vaults nothing is proven about {environment}:",
            *(f"  {one}" for one in report.broken),
        ]
    if problems:
        raise ToolkitError("\n".join(problems))


def _audit_table(report: AuditReport) -> str:
    """Return machines × secrets: ✓ granted and right, · nowhere, ? there but not compared.

    What is not as it should be is a word.
    """
    columns = list(dict.fromkeys((cell.environment, cell.secret) for cell in report.cells))
    rows = []
    for machine in dict.fromkeys(cell.machine for cell in report.cells):
        cells = {(c.environment, c.secret): c for c in report.cells if c.machine == machine}
        signs = [_sign(cells[column]) if column in cells else "-" for column in columns]
        rows.append((machine, *signs))
    text = [table(("MACHINE", *map("/".join, columns)), rows, empty="nothing runs")]
    text += [f"not opened: {one}" for one in report.unopened]
    text += [f"warning: {one}" for one in report.warnings]
    text.append(
        f"{len(report.cells)} cells, {len(report.failures)} wrong, "
        f"{size(report.searched_bytes)} searched in {report.seconds:.1f} s"
    )
    return "\n".join(text)


def _sign(cell: Cell) -> str:
    if cell.is_failure:
        return cell.state.upper()
    return "?" if not cell.is_well else "✓" if cell.is_granted else "·"
