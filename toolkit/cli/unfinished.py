"""`toolkit resume`, `toolkit abort` and `toolkit rollback`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from toolkit.cli.context import Context, json_option, wait_option
from toolkit.cli.roll import PlanView, emit_plans, emit_results, in_turn, not_begun
from toolkit.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from toolkit.roll.conduct import RollResult

ROLL_PREFIX = "roll-"


@click.command()
@click.argument("what", required=False, metavar="[ENVIRONMENT|ROLL]")
@wait_option
@json_option
@click.pass_obj
def resume(context: Context, what: str | None, wait: float) -> None:
    """Go on with a roll that was cut short: of ENVIRONMENT, or the one called ROLL.

    Without either, the one there is. Machines and balancer are looked at afresh. A roll that was
    on its way back goes on that way. Where a command that rolls several roles was cut short, this
    ends the one that was under way, and names those that are left.

    \b
    Exit codes: those of 'roll'; 0 also when nothing was cut short.
    \b
    Example:
      toolkit resume
      toolkit resume production
    """
    from toolkit.roll import command

    _take_up(context, what, command.resume, doing="resume", wait_s=wait)


@click.command()
@click.argument("what", required=False, metavar="[ENVIRONMENT|ROLL]")
@click.option("--leave", is_flag=True, help="End it as it stands: what serves stays.")
@wait_option
@json_option
@click.pass_obj
def abort(context: Context, what: str | None, leave: bool, wait: float) -> None:
    """Go back from a roll that was cut short, to the version that served before.

    It is the one of ENVIRONMENT, or the one called ROLL; without either, the one there is.

    With --leave, for when neither version can be had in full: machines that serve stay, of both
    versions, and the next roll replaces them. All others of the roll go.

    \b
    Exit codes: 0 it has ended, or nothing was cut short; 1, 3 or 4 it could not go back.
    \b
    Example:
      toolkit abort
      toolkit abort production
      toolkit abort production --leave
    """
    from toolkit.roll import command

    act = command.leave if leave else command.abort
    _take_up(context, what, act, doing="abort", wait_s=wait)


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
    Exit codes: those of 'roll'; 2 when there is nothing to go back to.
    \b
    Example:
      toolkit rollback production web
      toolkit rollback production app --to 3f2a90c1d2e4
    """
    from toolkit import wiring
    from toolkit.roll import command
    from toolkit.roll.group import new_group
    from toolkit.roll.observe import unfinished
    from toolkit.roll.wanted import need_role, previous_roll

    if to == "":
        raise click.UsageError("--to needs the digest of an image")
    if to and not role:
        raise click.UsageError("--to needs a ROLE: an image is for one role")
    context.need_root()
    is_single = role is not None
    with wiring.open_site(context, environment, is_looking=dry_run) as site:
        if role:
            need_role(site, role)
        command.need_up(site)
        roles = [role] if role else list(reversed(list(site.environment.deployments)))
        remarks = []
        if not role:
            able = [one for one in roles if previous_roll(site.ledger, environment, one)]
            if not able:
                raise NotFound(
                    f"{environment} has no earlier version to go back to",
                    hint="name a ROLE and an image with --to; 'toolkit images list' shows them",
                )
            if stay := [one for one in roles if one not in able]:
                remarks = [f"{', '.join(stay)} had no earlier version, and stay as they are"]
            roles = able
        if dry_run:
            for sentence in (*(one.text for one in unfinished(site)), *remarks):
                context.progress.note(sentence)
            plans = {name: command.plan_back(site, name, to) for name in roles}
            views = [
                PlanView(name, wanted.image.digest, order, command.estimate(site, name, order))
                for name, (wanted, order) in plans.items()
            ]
            emit_plans(context, views, is_single=role is not None, empty="nothing to go back to")
            return
        group = new_group(roles)
        leaving = {name: command.serving_image(site, name) for name in roles}
        results = in_turn(
            context,
            roles,
            lambda name: command.roll_back(
                site, name, to, wait_s=wait, leaving=leaving[name], group=group
            ),
            is_single=is_single,
        )
    remarks += not_begun(roles, results)
    emit_results(context, environment, results, is_single=is_single, remarks=remarks)


def _take_up(
    context: Context,
    what: str | None,
    act: Callable[..., list[RollResult]],
    *,
    doing: str,
    wait_s: float,
) -> None:
    from toolkit import wiring
    from toolkit.roll.command import need_up
    from toolkit.roll.group import rest_of_group

    context.need_root()
    environment = _environment_of(context, what)
    results: list[RollResult] = []
    remarks: list[str] = []
    if environment is not None:
        with wiring.open_site(context, environment) as site:
            need_up(site)
            results = act(site, wait_s=wait_s)
            remarks = rest_of_group(site, results)
    if not results or environment is None:
        context.emit([], f"no roll was cut short: there is nothing to {doing}")
        return
    emit_results(context, environment, results, is_single=False, remarks=remarks)


def _environment_of(context: Context, what: str | None) -> str | None:
    """Return the environment that an operator means, or None when nothing is unfinished.

    Raises:
        NotFound: No unfinished roll has that name.
        ConfigurationError: Several environments have one, and none was named.
    """
    from toolkit.project.load import environment_names
    from toolkit.wiring import open_ledger

    names = environment_names(context.project)
    if what in names or (what is not None and not what.startswith(ROLL_PREFIX)):
        # One that does not exist is refused where it is opened.
        return what
    with open_ledger(context.state, is_looking=True) as ledger:
        unfinished = {roll.id: name for name in names for roll in ledger.unfinished_rolls(name)}
    if what is not None:
        if what not in unfinished:
            raise NotFound(
                f"there is no unfinished roll {what!r}",
                hint=f"unfinished rolls: {', '.join(unfinished) or 'none'}",
            )
        return unfinished[what]
    found = sorted(set(unfinished.values()))
    if len(found) > 1:
        raise ConfigurationError(
            f"rolls were cut short in several environments: {', '.join(found)}",
            hint="name the one that is meant",
        )
    return found[0] if found else None
