"""`toolkit secrets rotate`."""

from __future__ import annotations

import time

import click

from toolkit.cli.context import Context, given_value, json_option, wait_option


@click.command("rotate", epilog="Example: toolkit secrets rotate production database_password")
@click.argument("environment", metavar="ENV")
@click.argument("name", metavar="NAME")
@click.option("--stdin", "is_given", is_flag=True, help="Take the new value from standard input.")
@click.option(
    "--back", "is_back", is_flag=True, help="Return to the old value: the new one does not work."
)
@wait_option
@json_option
@click.pass_obj
def rotate_command(
    context: Context, environment: str, name: str, is_given: bool, is_back: bool, wait: float
) -> None:
    """Replace a secret in use.

    Make a new value, bring it to every machine that knows the old one, and prove at the services
    themselves that the old one is dead. No request fails. Interrupted, the same command goes on;
    so it does after --back, which brings the old value out again as a version of its own and has
    the other one die.
    """
    from toolkit import wiring
    from toolkit.roll import rotate
    from toolkit.secrets.change import parts_from_bytes
    from toolkit.secrets.declarations import load_matrix
    from toolkit.secrets.memory import VersionFile
    from toolkit.secrets.rotate import begin, find_spec, finish, maker
    from toolkit.state import exclusive, make_private

    if is_given and is_back:
        raise click.UsageError("--back returns to the value that there was; --stdin gives another")
    context.need_root()
    vaults = context.vaults(environment)
    matrix = load_matrix(context.project, [environment])
    spec = find_spec(matrix, environment, name)
    given = parts_from_bytes(spec, given_value(), "standard input") if is_given else None
    make = maker(context.project, vaults, now=time.time())
    directory = make_private(context.state.environment(environment))
    with (
        exclusive(directory / "rotate.lock", doing=f"a rotation in {environment}"),
        wiring.open_site(context, environment) as site,
    ):
        rotation = rotate.start(
            site,
            name,
            matrix.sharers(environment, name),
            lambda announce: begin(
                matrix,
                vaults,
                VersionFile(context.state),
                name=name,
                make=make,
                given=given,
                is_back=is_back,
                announce=announce,
                now=time.time(),
            ),
            wait_s=wait,
        )
        if rotation.is_resumed:
            direction = "back to the old value, as" if rotation.is_back else "to"
            context.progress.note(
                f"the rotation goes on {direction} version {rotation.new.version}"
            )
        report = rotate.carry_out(
            site,
            matrix,
            rotation,
            namespace=context.state.namespace(environment),
            wait_s=wait,
        )
        finish(vaults, rotation)
    lines = [f"{name} of {environment} is version {report.version} ({report.seconds:.1f} s)"]
    lines += [f"  {role:<12} {what}" for role, what in report.roles.items()]
    lines += [f"  proof        {p['role']} {p['place']}: {p['observed']}" for p in report.proofs]
    if not report.proofs:
        lines.append("  proof        none: no role has a way to ask its service about it")
    context.emit(report.as_data(), "\n".join(lines))
