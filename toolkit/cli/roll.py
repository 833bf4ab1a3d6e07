"""`toolkit roll` and `toolkit plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.context import Context, json_option, short, wait_option

if TYPE_CHECKING:
    from toolkit.roll.command import RollResult
    from toolkit.roll.effects import RollOrder


def _what(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that say what is rolled where."""
    command = click.option("--release", help="Roll the images of this release.")(command)
    command = click.option("--image", metavar="DIGEST", help="Roll this image; needs a ROLE.")(
        command
    )
    command = click.argument("role", required=False)(command)
    return click.argument("environment")(command)


@click.command()
@_what
@wait_option
@json_option
@click.pass_obj
def roll(
    context: Context,
    environment: str,
    role: str | None,
    image: str | None,
    release: str | None,
    wait: float,
) -> None:
    """Replace the machines of ROLE (default: every role) in ENVIRONMENT.

    New machines start, pass their smoke tests, pass the balancer's own check and are admitted;
    then the old ones drain and go. Machines that fail are discarded and the pool never hears of
    them. Without --image or --release the newest release is rolled.

    \b
    Exit codes: 0 rolled or unchanged; 4 discarded; 5 rolled back.
    \b
    Example:
      toolkit roll development
      toolkit roll production web --image 3f2a90c1d2e4 --json
    """
    from toolkit import wiring
    from toolkit.roll.command import need_up, roll_role
    from toolkit.roll.prepare import choose

    _check(role, image, release)
    context.need_root()
    results: list[RollResult] = []
    with wiring.open_site(context, environment) as site:
        chosen = choose(site, [role] if role else [], image, release)
        need_up(site)
        for name, wanted in chosen.items():
            results.append(roll_role(site, name, wanted, wait_s=wait))
            if results[-1].error is not None:
                break
    emit_results(context, environment, results, is_single=role is not None)


def emit_results(
    context: Context, environment: str, results: Sequence[RollResult], *, is_single: bool
) -> None:
    """Print how rolls ended, and raise the error of the one that ended badly.

    Raises:
        ToolkitError: Of the class that has the right exit code.
    """
    data = [result.as_data() for result in results]
    context.emit(data[0] if is_single else data, "\n".join(map(_as_text, results)))
    error = results[-1].error
    if error is not None:
        raise type(error)(f"{environment} {results[-1].role}: {error.message}", hint=error.hint)


@click.command()
@_what
@json_option
@click.pass_obj
def plan(
    context: Context, environment: str, role: str | None, image: str | None, release: str | None
) -> None:
    """Print the steps that a roll would take, and change nothing.

    \b
    Example:
      toolkit plan development web
    """
    from toolkit import wiring
    from toolkit.roll.command import need_up, plan_only
    from toolkit.roll.prepare import choose

    _check(role, image, release)
    context.need_root()
    with wiring.open_site(context, environment) as site:
        chosen = choose(site, [role] if role else [], image, release)
        need_up(site)
        orders = {name: plan_only(site, name, wanted) for name, wanted in chosen.items()}
        images = {name: wanted.image.digest for name, wanted in chosen.items()}
    data = [plan_data(name, images[name], order) for name, order in orders.items()]
    text = "\n".join(plan_text(name, images[name], order) for name, order in orders.items())
    context.emit(data[0] if role else data, text)


def _check(role: str | None, image: str | None, release: str | None) -> None:
    if image and release:
        raise click.UsageError("--image and --release exclude each other")
    if image and not role:
        raise click.UsageError("--image needs a ROLE: an image is for one role")


def _as_text(result: RollResult) -> str:
    if result.outcome == "unchanged":
        return f"{result.role}: unchanged, {short(result.image)} serves already"
    steps = ", ".join(f"{name} {value:.1f}" for name, value in result.report.seconds.items())
    passed = sum(check.is_passed for check in result.report.smoke)
    lines = [
        f"{result.role}: {result.outcome} in {result.seconds:.1f} s "
        f"({short(result.previous) if result.previous else 'nothing'} → {short(result.image)})",
        f"  machines  {', '.join(result.machines)}",
        f"  smoke     {passed} of {len(result.report.smoke)} passed",
        f"  seconds   {steps}",
    ]
    if result.report.downtime_s is not None:
        lines.append(f"  downtime  {result.report.downtime_s:.1f} s (a role with a volume)")
    return "\n".join(lines)


def plan_data(role: str, image: str, order: RollOrder | None) -> dict[str, Any]:
    """Return a plan as the contract's data."""
    from toolkit.roll.plan import step_to_data

    if order is None:
        return {"role": role, "image": image, "outcome": "unchanged", "steps": []}
    return {
        "role": role,
        "image": image,
        "strategy": order.plan.strategy,
        "steps": [step_to_data(step) for step in order.plan.steps],
    }


def plan_text(role: str, image: str, order: RollOrder | None) -> str:
    """Return a plan for people."""
    if order is None:
        return f"{role}: nothing to do, {short(image)} serves already"
    lines = [f"{role}: {order.plan.strategy}, to image {short(image)}"]
    for number, step in enumerate(order.plan.steps, start=1):
        argument = "" if step.argument is None else f"  ({step.argument})"
        lines.append(f"  {number:2}. {step.effect.value:<14} {', '.join(step.machines)}{argument}")
    return "\n".join(lines)
