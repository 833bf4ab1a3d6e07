"""The command line: `python -m bench.load --url https://127.0.0.1:8443/ --cafile ca.pem`."""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

import click

from bench.load.engine import LoadRun, write_whole
from bench.load.settings import EVEN_MIX, LoadSettings, parse_mix
from toolkit.errors import ConfigurationError

_FILE = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--url", required=True, help="Scheme, loopback address and port.")
@click.option("--path", "paths", multiple=True, default=("/",), help="Repeat to take turns.")
@click.option("--server-name", help="Name in the certificate.  [default: the address]")
@click.option("--cafile", type=_FILE, help="PEM file of the authorities to trust.")
@click.option("--rate", type=float, default=320.0, help="Requests a second.")
@click.option("--requests", type=int, help="Stop after so many.  [default: time alone]")
@click.option("--max-seconds", type=float, default=60.0, help="Stop sending after this.")
@click.option("--until-file", type=_FILE, help="Stop sending once this file exists.")
@click.option("--by-header", help="Count responses by the value of this header.")
@click.option("--mix", default=EVEN_MIX, help="Weight of each class.")
@click.option("--timeout-seconds", "timeout_s", type=float, default=10.0, help="For one request.")
@click.option("--grace-seconds", "grace_s", type=float, default=3.0, help="After a signal.")
@click.option("--kept-connections", type=int, default=8, help="Held open by each kept class.")
@click.option("--idle-seconds", "idle_s", type=float, default=4.0, help="Close if unused.")
@click.option("--late-ms", type=float, default=100.0, help="Count starts later than this as late.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--report", "report_file", type=_FILE, help="Write the JSON report here as well.")
@click.option("--progress", "progress_file", type=_FILE, help="Keep counts so far in this file.")
def main(
    as_json: bool,
    report_file: Path | None,
    progress_file: Path | None,
    mix: str,
    **wanted: object,
) -> None:
    """Send GET requests at a fixed rate and count everything that goes wrong.

    Nothing is ever retried. Exit code: 0 every request succeeded, 1 otherwise, 2 wrong usage.
    """
    try:
        settings = LoadSettings(mix=parse_mix(mix), **wanted)  # type: ignore[arg-type]
    except ConfigurationError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        raise click.UsageError(f"{error.message}{hint}") from None
    for file in (report_file, progress_file):
        if file is not None and not file.parent.is_dir():
            raise click.UsageError(f"{file}: no such directory")
    # Requests to a server that never answers pile up: rate x time-out descriptors.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run = LoadRun(settings, progress_file=progress_file, has_terminal=sys.stderr.isatty())
    report = asyncio.run(run.run())
    if report_file is not None:
        write_whole(report_file, report.to_json())
    print(report.to_json() if as_json else report.to_text())
    sys.exit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main(prog_name="python -m bench.load")
