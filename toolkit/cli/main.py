"""The `toolkit` command: options, sub-commands that load when they are used, exit codes."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from toolkit import __version__
from toolkit.cli.context import Context, has_colour
from toolkit.errors import EXIT_BUG, EXIT_INTERRUPTED, Interrupted, ToolkitError
from toolkit.progress import printable, silence

DEFAULT_STATE = "/var/lib/toolkit"

COMMANDS = {
    "abort": "toolkit.cli.unfinished:abort",
    "bake": "toolkit.cli.bake:bake",
    "doctor": "toolkit.cli.doctor:doctor",
    "down": "toolkit.cli.environment:down",
    "gc": "toolkit.cli.gc:gc",
    "history": "toolkit.cli.history:history",
    "images": "toolkit.cli.images:images",
    "plan": "toolkit.cli.roll:plan",
    "resume": "toolkit.cli.unfinished:resume",
    "roll": "toolkit.cli.roll:roll",
    "rollback": "toolkit.cli.unfinished:rollback",
    "secrets": "toolkit.cli.secrets:secrets",
    "smoke": "toolkit.cli.smoke:smoke",
    "status": "toolkit.cli.status:status",
    "up": "toolkit.cli.environment:up",
}
"""Name to where the command is: imported when used, so that starting stays quick."""

SUMMARIES = {
    "abort": "Go back from a roll that was cut short.",
    "bake": "Bake the service's images: a release.",
    "doctor": "Check that this host has what the toolkit needs.",
    "down": "Remove an environment's machines, network and balancer.",
    "gc": "Remove what nothing refers to.",
    "history": "Show what was done, from the ledger.",
    "images": "List, show and export images.",
    "plan": "Show what a roll would do.",
    "resume": "Go on with a roll that was cut short.",
    "rollback": "Return to the version that served before.",
    "roll": "Replace a role's machines by new ones that passed their tests.",
    "secrets": "Make, change and list secrets.",
    "smoke": "Run the smoke tests against live machines.",
    "status": "Show what runs and what serves, as observed now.",
    "up": "Start an environment's network and balancer.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; one that the operator stops ends as others do, and not in click's way.

        Raises:
            Interrupted: By SIGINT or SIGTERM.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            hint = str(stop.args[0]) if stop.args else None
            raise Interrupted("interrupted", hint=hint) from stop

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--project",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    envvar="TOOLKIT_PROJECT",
    help="Directory of service.yml. [default: the current one; TOOLKIT_PROJECT]",
)
@click.option(
    "--state",
    # Whether it can be read is seen when it is used, since 'doctor' and '--help' do not.
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    default=DEFAULT_STATE,
    envvar="TOOLKIT_STATE",
    help=f"Where everything is kept. [default: {DEFAULT_STATE}; TOOLKIT_STATE]",
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="toolkit")
@click.pass_context
def cli(context: click.Context, project: Path, state: Path, quiet: bool, debug: bool) -> None:
    """Bake machine images, smoke-test them, roll them into load-balancer pools.

    \b
    Example:
      toolkit doctor
      toolkit secrets init development
      toolkit bake
      toolkit up development
      toolkit roll development
      toolkit status
    """
    del debug  # read from the arguments where errors are printed, also when parsing failed
    context.obj = Context(project.resolve(), state.resolve(), is_quiet=quiet)


def main() -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, _interrupt)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter would try again, and replace the exit code by one of its own.
            silence(stream)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code."""
    is_debug, is_json = "--debug" in arguments, "--json" in arguments
    try:
        result: Any = cli.main(arguments, prog_name="toolkit", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        _print(error.format_message())
        return 2
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx:
            hint = f"'{error.ctx.command_path} --help' shows how it is used"
        _complain(error.format_message(), hint, 2, is_json=is_json)
        return 2
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", None, EXIT_INTERRUPTED, is_json=is_json)
        return EXIT_INTERRUPTED
    except ToolkitError as error:
        if is_debug:
            _print_traceback()
        _complain(error.message, error.hint, error.exit_code, is_json=is_json)
        return error.exit_code
    except Exception as error:
        if is_debug:
            _print_traceback()
        hint = "this is a bug; 'toolkit --debug …' shows where"
        _complain(f"{type(error).__name__}: {error}", hint, EXIT_BUG, is_json=is_json)
        return EXIT_BUG
    return result if isinstance(result, int) else 0


def _complain(message: str, hint: str | None, code: int, *, is_json: bool) -> None:
    if is_json:
        record = {"error": message, "hint": hint, "exit_code": code}
        _print(json.dumps(record))
        return
    red, cyan, plain = ("\x1b[31m", "\x1b[36m", "\x1b[0m") if has_colour(sys.stderr) else ("",) * 3
    _print(f"{red}error:{plain} {printable(message)}")
    if hint:
        _print(f"{cyan}hint:{plain} {printable(hint)}")


def _print_traceback() -> None:
    _print(traceback.format_exc().rstrip())


def _print(line: str) -> None:
    """Write on standard error; where that cannot be, the exit code has to say it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
