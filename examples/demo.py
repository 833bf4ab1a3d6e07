"""The toolkit at work on the example service: `make demo`, or `python -m examples.demo`.

Bakes two versions and a broken third one, starts an environment, rolls version 1, then version 2
while requests come in, then the broken version, which is discarded. Run again, it reuses what is
there. It does what an operator would: it runs the `toolkit` command and reads its JSON.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.load.process import LoadProcess
from bench.load.report import Report
from bench.load.settings import LoadSettings
from examples.command import Toolkit
from examples.versions import NO_DATABASE, ScratchProject, ensure_project, free_port
from toolkit.errors import EXIT_INTERRUPTED, ConfigurationError, ToolkitError
from toolkit.progress import Lines
from toolkit.state import State

ENVIRONMENT = "development"
PORT = 8443
RATE = 300.0
VERSION_HEADER = "X-Guestbook-Version"
LOAD_LIMIT_S = 600.0
SETTLE_S = 2.0
"""Load before the first roll and after the last, so that it is seen to go on."""

EXIT_DISCARDED = 4

PLAIN_WIDTH = 120
"""Columns of the summary in a file or a pipe."""


@dataclass(slots=True)
class Story:
    """What happened.

    Attributes:
        seconds: What was done, to wall time.
        releases: Version to what `toolkit bake` printed.
        rolls: What was rolled, to what `toolkit roll` printed and its exit code.
        broken: What is not as promised.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    releases: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rolls: dict[str, tuple[Mapping[str, Any], int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Note what is not as promised."""
        if not is_so:
            self.broken.append(otherwise)


class Demo:
    """One run.

    Args:
        state: State directory; made if it does not exist.
        console: Where headings go, on standard error.

    Raises:
        ConfigurationError: The directory cannot be used.
    """

    def __init__(self, state: Path, console: Console) -> None:
        self._state = state
        self._console = console
        self.story = Story()
        # Before anything is put there, or it would be a directory that holds other things.
        State(state).prepare()
        self.project, aside = ensure_project(
            state / "demo", ports={ENVIRONMENT: free_port(preferred=PORT)}
        )
        if aside:
            console.print(f"This repository has changed; the project made of it before is {aside}.")
        progress = Lines(has_colour=console.is_terminal and not console.no_color)
        self._toolkit = Toolkit(self.project.root, state, progress=progress)

    def run(self) -> Report:
        """Do everything; return what the load saw."""
        with self._chapter("check this host"):
            self._toolkit.result("doctor")
        with self._chapter("make secrets and an authority"):
            self._toolkit.result("secrets", "init", ENVIRONMENT)
        for version in ("v1", "v2", NO_DATABASE):
            with self._chapter(f"bake {version}"):
                self.project.check_out(version)
                self.story.releases[version] = self._toolkit.result("bake", "--ref", version)
        with self._chapter(f"start {ENVIRONMENT}"):
            self._toolkit.result("up", ENVIRONMENT)
        with self._chapter("roll version 1"):
            release = self.story.releases["v1"]["release"]
            self._toolkit.result("roll", ENVIRONMENT, "--release", release)
        self._console.rule(f"{RATE:g} requests a second from here on", align="left")
        settings = LoadSettings(
            url=f"https://{self.project.public(ENVIRONMENT)}",
            cafile=self.project.authority(ENVIRONMENT),
            rate=RATE,
            max_seconds=LOAD_LIMIT_S,
            by_header=VERSION_HEADER,
        )
        directory = self._state / "demo" / "load"
        directory.mkdir(exist_ok=True)
        with LoadProcess(settings, directory) as load:
            load.wait_for(requests_done=int(SETTLE_S * RATE), version="1")
            for role in ("web", "app"):
                self._roll(role, "v2", exit_code=0, outcome="rolled")
            load.wait_for(version="2")
            before = self._serving()
            self._roll("app", NO_DATABASE, exit_code=EXIT_DISCARDED, outcome="discarded")
            self.story.expect(self._serving() == before, "the broken version changed the pool")
            time.sleep(SETTLE_S)
            report = load.stop()
        self.story.expect(report.failed == 0, f"{report.failed} requests failed")
        self.story.expect("3" not in report.versions, "the broken version answered requests")
        self.story.expect("2" in report.versions, "version 2 answered no request")
        self.story.expect(self._seen_version() == "2", "version 2 does not answer")
        return report

    def status(self) -> list[dict[str, Any]]:
        """Return what runs and what serves."""
        states: list[dict[str, Any]] = self._toolkit.result("status", ENVIRONMENT)
        return states

    def take_down(self) -> None:
        """Remove the environment; its volumes stay."""
        with self._chapter(f"take {ENVIRONMENT} down"):
            self._toolkit.result("down", ENVIRONMENT)

    def _roll(self, role: str, version: str, *, exit_code: int, outcome: str) -> None:
        what = f"roll {role} to {version}"
        image = self.story.releases[version]["images"][role]
        with self._chapter(what):
            answer = self._toolkit.run("roll", ENVIRONMENT, role, "--image", image)
        if not answer.stdout:
            raise ToolkitError(
                f"{what}: {answer.error.get('error') or answer.stderr[-2000:]}",
                hint=answer.error.get("hint"),
            )
        self.story.rolls[what] = (answer.data, answer.exit_code)
        seen = f"{answer.data['outcome']} with exit code {answer.exit_code}"
        self.story.expect(
            answer.exit_code == exit_code and answer.data["outcome"] == outcome,
            f"{what}: {seen}, not {outcome} with {exit_code}",
        )

    def _serving(self) -> list[tuple[str, list[str]]]:
        return [(state["role"], state["pool"]["serving"]) for state in self.status()]

    def _seen_version(self) -> str:
        trust = ssl.create_default_context(cafile=self.project.authority(ENVIRONMENT))
        url = f"https://{self.project.public(ENVIRONMENT)}/"
        with httpx.Client(verify=trust, trust_env=False, timeout=10.0) as client:
            return str(client.get(url).raise_for_status().headers.get(VERSION_HEADER, ""))

    @contextmanager
    def _chapter(self, what: str) -> Iterator[None]:
        self._console.rule(what, align="left")
        began = time.monotonic()
        yield
        self.story.seconds[what] = time.monotonic() - began


@click.command()
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default="/var/lib/toolkit",
    envvar="TOOLKIT_STATE",
    show_default=True,
    help="State directory; also TOOLKIT_STATE.",
)
@click.option("--keep/--down", default=True, help="Whether the environment goes on running.")
def main(state: Path, keep: bool) -> None:
    """Bake, roll and break the example service.

    Exit code: 0 when everything went as promised.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, output = Console(stderr=True, highlight=False), Console(highlight=False)
    if not output.is_terminal:
        output.width = PLAIN_WIDTH
    try:
        if os.geteuid() != 0:
            raise ConfigurationError(
                "the demo starts machines, which needs root", hint="sudo make demo"
            )
        demo = Demo(state.resolve(), console)
        report = demo.run()
        tell(output, demo, report)
        if keep:
            output.print(advice(demo.project, state.resolve()), soft_wrap=True)
        else:
            demo.take_down()
    except ToolkitError as error:
        console.print(f"the demo failed: {error.message}", markup=False, soft_wrap=True)
        if error.hint:
            console.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print(
            "interrupted; what was made stays, and the next run reuses it. "
            f"To remove machines and network: {_toolkit()} --project {state}/demo/project "
            f"--state {state} down {ENVIRONMENT}",
            soft_wrap=True,
        )
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(1 if demo.story.broken else 0)


def tell(output: Console, demo: Demo, report: Report) -> None:
    """Print what happened."""
    story = demo.story
    output.print()
    _print(
        output, "Images",
        ("version", "release", "role", "image", "layers built", "bake s"),
        [
            (
                version if not number else "",
                baked["release"] if not number else "",
                role,
                _short(image),
                ", ".join(one["layer"] for one in baked["layers"][role] if not one["reused"])
                or "none",
                f"{story.seconds[f'bake {version}']:.1f}" if not number else "",
            )
            for version, baked in story.releases.items()
            for number, (role, image) in enumerate(baked["images"].items())
        ],
    )  # fmt: skip
    _print(
        output, "Rolls under load",
        ("roll", "outcome", "exit code", "smoke tests", "seconds", "most of it"),
        [
            (
                what,
                result["outcome"],
                str(exit_code),
                f"{result['smoke']['passed']} passed, {result['smoke']['failed']} failed",
                f"{result['seconds']['total']:.1f}",
                _longest(result["seconds"]),
            )
            for what, (result, exit_code) in story.rolls.items()
        ],
    )  # fmt: skip
    _print(
        output, f"Requests, {report.achieved_rate:.0f} a second over {report.seconds:.0f} s",
        ("answered by version", "requests", "from s", "to s"),
        [
            *(
                (version, str(seen.count), f"{seen.first_s:.1f}", f"{seen.last_s:.1f}")
                for version, seen in report.versions.items()
            ),
            ("failed", str(report.failed), "", ""),
        ],
    )  # fmt: skip
    for failure in report.first_failures[:5]:
        output.print(f"  {failure.at_s:.2f} s {failure.traffic} {failure.kind}: {failure.detail}")
    _print(
        output, "Machines",
        ("role", "machine", "address", "state", "image"),
        [
            (state["role"], one["name"], one["address"], one["state"], _short(state["image"]))
            for state in demo.status()
            for one in state["machines"]
        ],
    )  # fmt: skip
    _print(
        output, "Time",
        ("what", "seconds"),
        [
            *((what, f"{seconds:.1f}") for what, seconds in story.seconds.items()),
            ("all of it", f"{sum(story.seconds.values()):.1f}"),
        ],
    )  # fmt: skip
    if story.broken:
        output.print("Not as promised:")
        for line in story.broken:
            output.print(f"  {line}", markup=False)
        return
    output.print(
        f"Version 2 serves. It came while {report.requests} requests were answered, none failed; "
        "the broken version was discarded before the balancer heard of it.\n",
        soft_wrap=True,
    )


def advice(project: ScratchProject, state: Path) -> str:
    """Return what to look at, what to try next, and how to take it down."""
    public, authority = project.public(ENVIRONMENT), project.authority(ENVIRONMENT)
    return f"""\
Look at it:
  https://{public}/
  A browser will warn: the certificate comes from the environment's own authority. Go on all the
  same, or import the authority below. On the command line:
  curl --cacert {authority} -i https://{public}/

Try next:
  cd {project.root}
  export TOOLKIT_STATE={state} PATH={_toolkit().parent}:$PATH
  toolkit status
  toolkit history
  toolkit plan {ENVIRONMENT} app        # after a change, what a roll would do
  sed -i 's/#c2410c/#15803d/' {project.source}/guestbook/page.py
  git -C {project.source} commit -am 'Green' && toolkit bake app && toolkit roll {ENVIRONMENT} app

Take it down:
  toolkit down {ENVIRONMENT}            # --volumes removes the guestbook's entries too"""


def _print(
    output: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in headings:
        is_number = heading in {"seconds", "requests", "from s", "to s", "bake s", "exit code"}
        table.add_column(heading, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    output.print(table)


def _longest(seconds: Mapping[str, float]) -> str:
    steps = sorted(
        ((value, name) for name, value in seconds.items() if name != "total"), reverse=True
    )
    return ", ".join(f"{name} {value:.1f}" for value, name in steps[:2])


def _short(digest: str | None) -> str:
    return (digest or "-").removeprefix("sha256:")[:12]


def _toolkit() -> Path:
    return Path(sys.executable).with_name("toolkit")


if __name__ == "__main__":
    main(prog_name="python -m examples.demo")
