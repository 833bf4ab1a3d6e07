"""`toolkit status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.context import Context, aligned, json_option, marked, short

if TYPE_CHECKING:
    from toolkit.errors import ToolkitError


@click.command()
@click.argument("environments", nargs=-1, metavar="[ENVIRONMENT]...")
@json_option
@click.pass_obj
def status(context: Context, environments: tuple[str, ...]) -> None:
    """Show what runs and what serves, as machines and balancers report it now.

    Without an ENVIRONMENT, every environment that is up. Below each one is what differs from the
    ledger, and any roll that was cut short.

    \b
    Example:
      toolkit status
      toolkit status production --json
    """
    from toolkit import wiring
    from toolkit.errors import ToolkitError
    from toolkit.project.load import environment_names
    from toolkit.roll.observe import find_remarks, observe

    context.need_root()
    states: list[dict[str, Any]] = []
    parts: list[str] = []
    # What is of no environment that can be shown.
    loose: list[str] = []
    failure: ToolkitError | None = None
    names = environment_names(context.project)
    if not environments:
        with wiring.open_ledger(context.state, is_looking=True) as ledger:
            gone = [one for one in ledger.environments() if one not in names and ledger.is_up(one)]
        loose += [
            f"{name} is up, and the project has no such environment: bring its directory "
            f"{context.project.root / 'inventories' / name} back, then 'toolkit down {name}'"
            for name in gone
        ]
    for name in environments or names:
        try:
            with wiring.open_site(context, name, is_looking=True) as site:
                if environments or site.ledger.is_up(name) or site.balancer.is_running():
                    remarks = find_remarks(site)
                    found = [observe(site, role, remarks) for role in site.environment.deployments]
                    states += found
                    parts += map(_as_text, found)
                    parts += (marked(f"{name}: {one.text}") for one in remarks)
        except ToolkitError as error:
            # The others are shown all the same.
            if len(environments or names) == 1:
                raise
            loose.append(f"{name} cannot be looked at: {error.message}")
            failure = failure or error
    context.emit(states, "\n".join(parts) or "no environment is up", remarks=loose)
    if failure:
        raise failure


def _as_text(state: dict[str, Any]) -> str:
    if not state["machines"]:
        return f"{state['environment']} {state['role']}: nothing runs"
    serving = len(state["pool"]["serving"])
    lines = [
        f"{state['environment']} {state['role']}: {serving} of {state['wanted']} serving, "
        f"image {short(state['image'] or '-')}",
        f"  release {state['release'] or '-'}, commit {(state['commit'] or '-')[:12]}, "
        f"by {state['by'] or '-'}",
    ]
    rows = [
        (one["name"], one["address"], one["state"], f"smoke {one['smoke']}", f"{one['since']}")
        for one in state["machines"]
    ]
    return "\n".join([*lines, *(f"  {line}" for line in aligned(rows))])
