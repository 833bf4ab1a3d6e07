"""`toolkit roll` and `toolkit plan`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.context import Context, json_option, short, wait_option

if TYPE_CHECKING:
    from toolkit.roll.conduct import RollResult
    from toolkit.roll.order import RollOrder
    from toolkit.roll.past import Estimate


WIDTH = 80
"""Columns that the text of a result keeps to."""


def _what(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that say what is rolled where."""
    command = click.option("--release", metavar="ID", help="Roll the images of this release.")(
        command
    )
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
    Exit codes: 0 rolled or unchanged; 4 new machines failed and were discarded; 5 rolled back.
    \b
    Example:
      toolkit roll development
      toolkit roll production web --image 3f2a90c1d2e4 --json
    """
    from toolkit import wiring
    from toolkit.roll.command import need_up, roll_role
    from toolkit.roll.group import new_group
    from toolkit.roll.wanted import choose

    _check(role, image, release)
    context.need_root()
    is_single = role is not None
    with wiring.open_site(context, environment) as site:
        chosen = choose(site, [role] if role else [], image, release)
        need_up(site)
        group = new_group(list(chosen))
        results = in_turn(
            context,
            chosen,
            lambda name: roll_role(site, name, chosen[name], wait_s=wait, group=group),
            is_single=is_single,
        )
    remarks = not_begun(group.roles, results)
    emit_results(context, environment, results, is_single=is_single, remarks=remarks)


def in_turn(
    context: Context,
    roles: Iterable[str],
    act: Callable[[str], RollResult],
    *,
    is_single: bool,
) -> list[RollResult]:
    """Roll one role after the other, until one ends badly.

    When a later one does not even begin, what became of the earlier ones is printed all the same.
    """
    results: list[RollResult] = []
    try:
        for role in roles:
            results.append(act(role))
            if results[-1].error is not None:
                break
    except BaseException:
        if results:
            _print(context, results, is_single=is_single)
        raise
    return results


def not_begun(roles: Sequence[str], results: Sequence[RollResult]) -> list[str]:
    """Return which roles were not rolled, since one before them ended badly, as sentences."""
    left = roles[len(results) :]
    return [f"{', '.join(left)} did not begin"] if left else []


def emit_results(
    context: Context,
    environment: str,
    results: Sequence[RollResult],
    *,
    is_single: bool,
    remarks: Sequence[str] = (),
) -> None:
    """Print how rolls ended, and raise the error of the one that ended badly.

    Args:
        context: Where.
        environment: In which environment.
        results: How they ended, in order.
        is_single: Whether one was asked for: its result is no list.
        remarks: What else the operator should know.

    Raises:
        ToolkitError: Of the class that has the right exit code.
    """
    _print(context, results, is_single=is_single, remarks=remarks)
    error = results[-1].error
    if error is not None:
        raise type(error)(f"{environment} {results[-1].role}: {error.message}", hint=error.hint)


def _print(
    context: Context,
    results: Sequence[RollResult],
    *,
    is_single: bool,
    remarks: Sequence[str] = (),
) -> None:
    data = [result.as_data() for result in results]
    text = "\n".join(map(_as_text, results))
    context.emit(data[0] if is_single else data, text, remarks=remarks)


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
    from toolkit.roll.command import estimate, need_up, plan_only
    from toolkit.roll.observe import unfinished
    from toolkit.roll.wanted import choose

    _check(role, image, release)
    context.need_root()
    with wiring.open_site(context, environment, is_looking=True) as site:
        chosen = choose(site, [role] if role else [], image, release)
        need_up(site)
        for remark in unfinished(site):
            context.progress.note(remark.text)
        orders = {name: plan_only(site, name, wanted) for name, wanted in chosen.items()}
        views = [
            PlanView(name, chosen[name].image.digest, order, estimate(site, name, order))
            for name, order in orders.items()
        ]
    emit_plans(context, views, is_single=role is not None, empty="no role to roll")


def _check(role: str | None, image: str | None, release: str | None) -> None:
    if image and release:
        raise click.UsageError("--image and --release exclude each other")
    if image and not role:
        raise click.UsageError("--image needs a ROLE: an image is for one role")


def _as_text(result: RollResult) -> str:
    if result.outcome == "unchanged":
        return f"{result.role}: unchanged, {short(result.image)} serves already"
    if result.outcome == "left":
        return f"{result.role}: left as it stood, with {', '.join(result.machines)}"
    passed = sum(check.is_passed for check in result.report.smoke)
    smoke = f"{passed} of {len(result.report.smoke)} passed" if result.report.smoke else ""
    steps = ", ".join(f"{name} {value:.1f}" for name, value in result.report.seconds.items())
    lines = [f"{result.role}: {result.outcome} in {result.seconds:.1f} s ({_change(result)})"]
    for name, value in (
        ("machines", ", ".join(result.machines)), ("smoke", smoke), ("seconds", steps),
    ):  # fmt: skip
        lines += textwrap.wrap(
            value, WIDTH, initial_indent=f"  {name:<8}  ", subsequent_indent=" " * 12,
            break_on_hyphens=False,
        )  # fmt: skip
    if result.report.downtime_s is not None:
        lines.append(f"  downtime  {result.report.downtime_s:.1f} s (a role with a volume)")
    return "\n".join(lines)


def _change(result: RollResult) -> str:
    """Return which image gave way to which."""
    old, new = short(result.previous) if result.previous else "nothing", short(result.image)
    if result.previous == result.image:
        # Settings, secrets, or the number of machines have changed.
        return f"{new} again"
    if result.outcome == "rolled":
        return f"{old} → {new}"
    return f"{old} stays, not {new}"


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan as it is shown.

    Attributes:
        role: Which role.
        image: Digest of what is to serve.
        order: What would be done; None when the image serves already.
        estimate: About how long that takes; None when there is nothing to go by.
    """

    role: str
    image: str
    order: RollOrder | None
    estimate: Estimate | None

    def as_data(self) -> dict[str, Any]:
        """Return the plan as the contract's data."""
        from toolkit.roll.plan import step_to_data

        if self.order is None:
            return {"role": self.role, "image": self.image, "outcome": "unchanged", "steps": []}
        plan = self.order.plan
        return {
            "role": self.role,
            "image": self.image,
            "strategy": plan.strategy,
            "is_warm": plan.is_warm,
            "estimate": asdict(self.estimate) if self.estimate else None,
            "steps": [step_to_data(step) for step in plan.steps],
        }

    def as_text(self) -> str:
        """Return the plan for people."""
        if self.order is None:
            return f"{self.role}: nothing to do, {short(self.image)} serves already"
        plan, about = self.order.plan, "no earlier roll to go by"
        if self.estimate:
            by = f"by {self.estimate.rolls} earlier roll{'s' if self.estimate.rolls > 1 else ''}"
            about = f"about {self.estimate.seconds:.1f} s, {by}"
        start = "warm: its machines run" if plan.is_warm else "cold: machines start from it"
        lines = [
            f"{self.role}: {plan.strategy}, to image {short(self.image)}",
            f"  {start}; {about}",
        ]
        for number, step in enumerate(plan.steps, start=1):
            argument = "" if step.argument is None else f"  ({step.argument})"
            machines = ", ".join(step.machines)
            lines.append(f"  {number:2}. {step.effect.value:<14} {machines}{argument}")
        return "\n".join(lines)


def emit_plans(context: Context, views: Sequence[PlanView], *, is_single: bool, empty: str) -> None:
    """Print plans: one, or a list of them."""
    data = [view.as_data() for view in views]
    text = "\n".join(view.as_text() for view in views)
    context.emit(data[0] if is_single else data, text or empty)
