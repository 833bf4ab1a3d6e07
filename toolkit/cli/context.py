"""What every command shares: where things are, how results are printed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.progress import JsonLines, Lines, Progress, Silence, silence
from toolkit.workplace import Workplace

if TYPE_CHECKING:
    from toolkit.secrets.vaults import Vaults

Command = TypeVar("Command", bound=Callable[..., Any])


class Context(Workplace):
    """A workplace with a terminal.

    Args:
        project_root: Directory of `service.yml`.
        state_root: The state directory.
        is_quiet: Whether progress is left out.
    """

    def __init__(self, project_root: Path, state_root: Path, *, is_quiet: bool) -> None:
        super().__init__(project_root, state_root)
        self.as_json = False
        self.is_quiet = is_quiet

    @cached_property
    def progress(self) -> Progress:
        """The observer that suits the terminal and the options."""
        writer = JsonLines() if self.as_json else Lines(has_colour=has_colour(sys.stderr))
        return Silence(writer) if self.is_quiet else writer

    def emit(self, data: object, text: str, *, remarks: Sequence[str] = ()) -> None:
        """Print a result on standard output: JSON where asked for, else text.

        Args:
            data: For JSON.
            text: For people.
            remarks: Sentences that `data` has no place for: below the text, or else progress.
        """
        if self.as_json:
            for remark in remarks:
                self.progress.note(remark)
            self.put(json.dumps(data, indent=2))
        else:
            self.put("\n".join([text, *map(marked, remarks)]))

    def put(self, content: str | bytes, *, has_line_end: bool = True) -> None:
        """Write on standard output; a reader who has seen enough, as `head` has, is no failure.

        Raises:
            OutsideError: It cannot be written, on a full disk for instance.
        """
        try:
            click.echo(content, nl=has_line_end)
        except OSError as error:
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                raise OutsideError(f"the result could not be printed: {error.strerror}") from None

    def record(
        self, kind: str, *, environment: str | None = None, role: str | None = None, **data: Any
    ) -> None:
        """Write an entry into the ledger; `history` finds it by environment and role."""
        from toolkit.wiring import open_ledger

        with open_ledger(self.state) as ledger:
            ledger.append(kind, data, environment=environment, role=role)

    def vaults(self, environment: str) -> Vaults:
        """Return the vaults of an environment, with the passwords that are at hand."""
        from toolkit.secrets.keys import KeyRing
        from toolkit.secrets.vaults import Vaults

        loaded = self.environment(environment)
        return Vaults(loaded, KeyRing(loaded, self.state))

    def need_root(self) -> None:
        """Refuse to go on without the rights that machines need.

        Raises:
            ConfigurationError: The user is not root.
        """
        if os.geteuid() != 0:
            raise ConfigurationError(
                "this command starts machines and network namespaces, which needs root",
                hint="run it with sudo",
            )


def json_option(command: Command) -> Command:
    """Add `--json` to a command."""

    def take(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.find_root().obj.as_json = True

    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=take,
        help="Print the result as JSON; progress becomes JSON lines.",
    )
    return option(command)


def _a_number(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """Refuse what no comparison is true of; an infinite time is as good as a long one."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number")
    return value


def wait_option(command: Command) -> Command:
    """Add `--wait SECONDS` to a command that changes an environment."""
    option = click.option(
        "--wait",
        type=click.FloatRange(0),
        callback=_a_number,
        default=0.0,
        metavar="SECONDS",
        help="Queue so long when somebody else is changing the environment.",
    )
    return option(command)


def given_value() -> bytes:
    """Return what is piped in; a person at a terminal is asked twice, without an echo."""
    if not sys.stdin.isatty():
        return sys.stdin.buffer.read()
    return str(click.prompt("Value", hide_input=True, confirmation_prompt=True, err=True)).encode()


def has_colour(stream: Any) -> bool:
    """Whether a stream is a terminal that wants colour (see no-color.org)."""
    return not os.environ.get("NO_COLOR") and stream.isatty() and os.environ.get("TERM") != "dumb"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> str:
    """Return rows as aligned columns, or `empty` when there is none."""
    if not rows:
        return empty
    return "\n".join(aligned([headings, *rows]))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of one length as lines with columns, the last of which is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def age(seconds: float) -> str:
    """Return a duration as people say it: `12 s`, `5 min`, `3 h`, `9 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def size(count: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 1_000_000:.1f} MB"


def marked(remark: str) -> str:
    """Return a sentence as a line that stands out from a table."""
    return f"! {remark}"


def short(digest: str) -> str:
    """Return the beginning of a digest that commands accept in its place."""
    return digest.removeprefix("sha256:")[:12]


def fields(pairs: Mapping[str, str]) -> str:
    """Return names and values as aligned lines."""
    width = max(map(len, pairs)) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in pairs.items())
