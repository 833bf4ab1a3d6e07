"""`toolkit up` and `toolkit down`."""

from __future__ import annotations

import click

from toolkit.cli.context import Context, json_option, wait_option


@click.command()
@click.argument("environment")
@click.option(
    "--repair",
    is_flag=True,
    help="Put places right that were changed by hand, and start members anew that hang.",
)
@wait_option
@json_option
@click.pass_obj
def up(context: Context, environment: str, repair: bool, wait: float) -> None:
    """Start the network and the balancer of ENVIRONMENT.

    Machines that are meant to run, but do not (the host has restarted, say), start again from
    their images and are admitted after their smoke tests. Safe to repeat.

    \b
    Example:
      toolkit up development
    """
    from toolkit import wiring
    from toolkit.roll.lifecycle import bring_up

    context.need_root()
    with wiring.open_site(context, environment) as site:
        machines = bring_up(site, is_repair=repair, wait_s=wait)
        public = {
            role: f"https://{deployment.public}/"
            for role, deployment in site.environment.deployments.items()
            if deployment.public
        }
        is_empty = not site.ledger.machines(environment)
    lines = [f"{environment} is up", *(f"  {role}: {url}" for role, url in public.items())]
    if machines:
        lines.append(f"  brought back: {', '.join(machines)}")
    if is_empty:
        lines.append(f"  nothing runs in it yet: toolkit roll {environment}")
    data = {"environment": environment, "public": public, "machines": machines}
    context.emit(data, "\n".join(lines))


@click.command()
@click.argument("environment")
@click.option(
    "--volumes",
    is_flag=True,
    help="Remove the data volumes and their copies too. There is no way back.",
)
@wait_option
@json_option
@click.pass_obj
def down(context: Context, environment: str, volumes: bool, wait: float) -> None:
    """Remove the machines, the balancer and the network of ENVIRONMENT; volumes stay.

    \b
    Example:
      toolkit down development
    """
    from toolkit import wiring
    from toolkit.roll.lifecycle import take_down

    context.need_root()
    kept = context.state.volumes(environment)
    with wiring.open_site(context, environment) as site:
        doomed = (kept, context.state.snapshots(environment)) if volumes else ()
        machines = take_down(site, data=doomed, wait_s=wait)
    lines = [f"{environment} is down, {len(machines)} machines removed"]
    if kept.is_dir():
        lines.append(f"  its volumes are kept in {kept}")
    data = {
        "environment": environment,
        "machines": machines,
        "volumes": str(kept) if kept.is_dir() else None,
    }
    context.emit(data, "\n".join(lines))
