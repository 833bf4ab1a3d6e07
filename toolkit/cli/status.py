"""`toolkit status`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli.context import Context, json_option, short


@click.command()
@click.argument("environments", nargs=-1, metavar="[ENVIRONMENT]...")
@json_option
@click.pass_obj
def status(context: Context, environments: tuple[str, ...]) -> None:
    """Show what runs and what serves, as machines and balancers report it now.

    Without an ENVIRONMENT, every environment that is up.

    \b
    Example:
      toolkit status
      toolkit status production --json
    """
    from toolkit import wiring
    from toolkit.project.load import environment_names
    from toolkit.roll.observe import drift, observe

    context.need_root()
    states: list[dict[str, Any]] = []
    names = environment_names(context.project)
    if not environments:
        with wiring.open_ledger(context.state, is_looking=True) as ledger:
            gone = [one for one in ledger.environments() if one not in names and ledger.is_up(one)]
        for name in gone:
            context.progress.note(
                f"{name} is up, and the project has no such environment: bring its directory "
                f"{context.project.root / 'inventories' / name} back, then 'toolkit down {name}'"
            )
    for name in environments or names:
        with wiring.open_site(context, name, is_looking=True) as site:
            if environments or site.ledger.is_up(name):
                states += [observe(site, role) for role in site.environment.deployments]
                for sentence in drift(site):
                    context.progress.note(f"{name}: {sentence}")
    context.emit(states, "\n".join(map(_as_text, states)) or "no environment is up")


def _as_text(state: dict[str, Any]) -> str:
    if not state["machines"]:
        return f"{state['environment']} {state['role']}: nothing runs"
    serving = len(state["pool"]["serving"])
    lines = [
        f"{state['environment']} {state['role']}: {serving} of {len(state['machines'])} serving, "
        f"image {short(state['image'] or '-')}, release {state['release'] or '-'}, "
        f"commit {(state['commit'] or '-')[:12]}, by {state['by'] or '-'}"
    ]
    lines += [
        f"  {one['name']:<24} {one['address']:<15} {one['state']:<11} "
        f"smoke {one['smoke']:<8} since {one['since']}"
        for one in state["machines"]
    ]
    return "\n".join(lines)
