"""`toolkit resume`, `toolkit abort` and `toolkit rollback`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from toolkit.cli.context import Context, json_option, wait_option
from toolkit.cli.roll import PlanView, emit_plans, emit_results

if TYPE_CHECKING:
    from toolkit.roll.command import RollResult


@click.command()
@click.argument("environment")
@wait_option
@json_option
@click.pass_obj
def resume(context: Context, environment: str, wait: float) -> None:
    """Go on with a roll of ENVIRONMENT that was cut short.

    Machines and balancer are looked at afresh. A roll that was on its way back goes on that way.

    \b
    Example:
      toolkit resume production
    """
    from toolkit import wiring
    from toolkit.roll import command

    context.need_root()
    with wiring.open_site(context, environment) as site:
        command.need_up(site)
        results = command.resume(site, wait_s=wait)
    _emit(
        context, environment, results, nothing="no roll was cut short: there is nothing to resume"
    )


@click.command()
@click.argument("environment")
@wait_option
@json_option
@click.pass_obj
def abort(context: Context, environment: str, wait: float) -> None:
    """Go back from a roll of ENVIRONMENT that was cut short, to the version that served before.

    \b
    Example:
      toolkit abort production
    """
    from toolkit import wiring
    from toolkit.roll import command

    context.need_root()
    with wiring.open_site(context, environment) as site:
        command.need_up(site)
        results = command.abort(site, wait_s=wait)
    _emit(context, environment, results, nothing="no roll is under way: there is nothing to abort")


@click.command()
@click.argument("environment")
@click.argument("role", required=False)
@click.option("--to", metavar="DIGEST", help="Go back to this image; needs a ROLE.")
@click.option("--dry-run", is_flag=True, help="Print the steps and change nothing.")
@wait_option
@json_option
@click.pass_obj
def rollback(
    context: Context, environment: str, role: str | None, to: str | None, dry_run: bool, wait: float
) -> None:
    """Return ROLE (default: every role that can) to the image that served before.

    Machines that are kept warm serve again at once; otherwise new ones start from the image.
    Either way they pass their smoke tests first. A second rollback goes further back: a version
    that was left by a rollback is returned to only when --to names it.

    \b
    Example:
      toolkit rollback production web
      toolkit rollback production app --to 3f2a90c1d2e4
    """
    from toolkit import wiring
    from toolkit.roll import command
    from toolkit.roll.prepare import need_role, previous_roll

    if to and not role:
        raise click.UsageError("--to needs a ROLE: an image is for one role")
    context.need_root()
    results: list[RollResult] = []
    with wiring.open_site(context, environment) as site:
        if role:
            need_role(site, role)
        command.need_up(site)
        roles = [role] if role else list(reversed(list(site.environment.deployments)))
        if not role:
            roles = [one for one in roles if previous_roll(site.ledger, environment, one)]
        if dry_run:
            plans = {name: command.plan_back(site, name, to) for name in roles}
            views = [
                PlanView(name, wanted.image.digest, order, command.estimate(site, name, order))
                for name, (wanted, order) in plans.items()
            ]
            emit_plans(context, views, is_single=role is not None, empty="nothing to go back to")
            return
        for name in roles:
            results.append(command.roll_back(site, name, to, wait_s=wait))
            if results[-1].error is not None:
                break
    if not results:
        context.emit([], f"{environment} has no earlier version to go back to")
        return
    emit_results(context, environment, results, is_single=role is not None)


def _emit(
    context: Context, environment: str, results: Sequence[RollResult], *, nothing: str
) -> None:
    if not results:
        context.emit([], nothing)
        return
    emit_results(context, environment, results, is_single=False)
