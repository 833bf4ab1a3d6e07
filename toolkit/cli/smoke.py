"""`toolkit smoke`."""

from __future__ import annotations

from dataclasses import asdict

import click

from toolkit.cli.context import Context, json_option, table


@click.command()
@click.argument("environment")
@click.argument("role", required=False)
@json_option
@click.pass_obj
def smoke(context: Context, environment: str, role: str | None) -> None:
    """Run the smoke tests of ROLE (default: every role) against the live machines.

    \b
    Exit code 4 when a test fails, or a machine that is meant to run does not; nothing is changed.
    \b
    Example:
      toolkit smoke production web
    """
    from toolkit import wiring
    from toolkit.errors import SmokeTestsFailed
    from toolkit.roll.command import need_up, test_live

    context.need_root()
    with wiring.open_site(context, environment) as site:
        need_up(site)
        checks = test_live(site, role)
    failed = [check for check in checks if not check.is_passed]
    rows = [
        (
            "ok" if check.is_passed else "FAILED",
            check.machine,
            check.name,
            f"{check.seconds:.2f} s",
        )
        for check in checks
    ]
    data = {"passed": len(checks) - len(failed), "failed": len(failed)}
    context.emit(
        {**data, "checks": [asdict(check) for check in checks]},
        table(("", "MACHINE", "TEST", "TIME"), rows, empty=""),
    )
    if failed:
        messages = "\n".join(f"{one.machine}: {one.name}\n{one.message}" for one in failed)
        raise SmokeTestsFailed(f"{len(failed)} of {len(checks)} smoke tests failed\n{messages}")
