"""Roll, or rotate secrets, under load and count what fails: `python -m bench.roll`.

Two web and two app machines and a database, in an environment and a state directory of their own.
While requests come in at a fixed rate, whatever becomes of earlier ones, web and then app are
rolled from version 1 to 2, and back and again if more changes are asked for; or the database's
password, the web machines' certificate and the balancer's are rotated. Everything is removed at the
end.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.lab import ENVIRONMENT, Lab
from bench.load.process import LoadProcess
from bench.load.report import Report
from bench.load.settings import EVEN_MIX, parse_mix
from toolkit import shell
from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.progress import Lines, step

ROLLS = (("web", "v2"), ("app", "v2"), ("web", "v1"), ("app", "v1"))
"""Role and version."""

ROTATIONS = ("database_password", "web_tls", "edge_tls")
SLOWEST_S = 60.0
SLACK = 3.0
"""The load is bounded by so much time for each change, and so many times what the requests take."""

SUCCESSES = ("rolled", "rotated")


@dataclass(frozen=True, slots=True)
class Change:
    """One roll, or one rotation.

    Attributes:
        what: `web to v2`, or the secret's name.
        outcome: `rolled`, or `rotated` if the old value is proven dead; else what went wrong.
        seconds: Step to seconds; `total` is all of it within the command.
        command_s: Wall time of the command, its start included.
    """

    what: str
    outcome: str
    seconds: dict[str, float]
    command_s: float


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """Requests that were sent while changes were made, and the seconds that those took."""

    requests: int
    seconds: float


@click.command(context_settings={"show_default": True})
@click.option("--requests", default=20_000, type=click.IntRange(1000), help="How many to send.")
@click.option("--rate", default=320.0, type=click.FloatRange(1.0), help="Requests a second.")
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Image store with layers to use instead of baking them.",
)
@click.option(
    "--spinners",
    default=0,
    type=click.IntRange(0, 64),
    help="Processes that do nothing but take processor time meanwhile.",
)
@click.option("--rotate", is_flag=True, help="Rotate secrets instead of rolling versions.")
@click.option(
    "--changes",
    type=click.IntRange(1, 100),
    help="How many rolls or rotations, one after the other.  [default: each of them once]",
)
@click.option(
    "--mix",
    default=EVEN_MIX,
    help="Weight of each class of requests; those on new connections cost the most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    requests: int,
    rate: float,
    store: Path | None,
    spinners: int,
    rotate: bool,
    changes: int | None,
    mix: str,
    as_json: bool,
) -> None:
    """Roll web and app between two versions, or rotate secrets, under load.

    The load goes on until the changes are made, also when that takes more than the requests.

    Exit code: 0 when every request was answered and every change succeeded, 1 otherwise.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    count = changes or (len(ROTATIONS) if rotate else len(ROLLS) // 2)
    try:
        changed, meanwhile, report = measure(
            requests=requests,
            rate=rate,
            mix=parse_mix(mix),
            store=store,
            spinners=spinners,
            rotate=rotate,
            count=count,
        )
    except ToolkitError as error:
        raise click.ClickException(f"{error.message}\n{error.hint or ''}".strip()) from None
    if as_json:
        data = {
            "changes": [asdict(one) for one in changed],
            "meanwhile": asdict(meanwhile),
            "load": json.loads(report.to_json()),
            "processors": os.cpu_count(),
        }
        print(json.dumps(data))
    else:
        print(as_text(changed, meanwhile, report))
    is_good = (
        report.is_clean
        and report.requests >= requests
        and all(one.outcome in SUCCESSES for one in changed)
    )
    sys.exit(0 if is_good else 1)


def measure(
    *,
    requests: int,
    rate: float,
    mix: Mapping[str, float],
    store: Path | None,
    spinners: int,
    rotate: bool,
    count: int,
) -> tuple[list[Change], Meanwhile, Report]:
    """Bake, start, roll or rotate under load, and remove everything.

    Args:
        requests: How many at least.
        rate: Requests a second.
        mix: Weight of each class of requests.
        store: Image store with layers to use; None to bake everything.
        spinners: Processes that take processor time meanwhile.
        rotate: Whether to rotate secrets, and not to roll.
        count: How many rolls or rotations; the first that fails is the last.

    Raises:
        ToolkitError: It did not come to that.
    """
    if os.geteuid() != 0:
        raise ConfigurationError("this starts machines, which needs root")
    progress = Lines()
    with (
        tempfile.TemporaryDirectory(prefix="toolkit-bench-") as scratch,
        Lab(Path(scratch) / "lab", store=store, progress=progress) as lab,
    ):
        for version in ("v1", "v2"):
            with step(progress, f"bake {version}"):
                lab.bake(version)
        with step(progress, "start version 1"):
            lab.start("v1")
        bound_s = SLOWEST_S * count + SLACK * requests / rate
        settings = replace(lab.load(rate=rate, requests=None, max_seconds=bound_s), mix=mix)
        progress.note(f"{requests} requests, {rate:g} a second, to {lab.url}")
        changes: list[Change] = []
        with (
            spinning(spinners, Path(scratch), max_seconds=bound_s),
            LoadProcess(settings, Path(scratch)) as load,
        ):
            before = load.wait_for(requests_done=int(rate))
            turns = _rotations(lab) if rotate else _rolls(lab)
            for what, change in itertools.islice(turns, count):
                with step(progress, what):
                    changes.append(change())
                if changes[-1].outcome not in SUCCESSES:
                    break
            after = load.snapshot()
            load.wait_for(requests_done=requests, deadline_s=bound_s)
            report = load.stop()
        meanwhile = Meanwhile(
            after.requests - before.requests, round(after.seconds - before.seconds, 3)
        )
        return changes, meanwhile, report


def _rolls(lab: Lab) -> Iterator[tuple[str, Callable[[], Change]]]:
    for role, version in itertools.cycle(ROLLS):
        yield f"roll {role} to {version}", partial(_roll, lab, role, version)


def _rotations(lab: Lab) -> Iterator[tuple[str, Callable[[], Change]]]:
    for name in itertools.cycle(ROTATIONS):
        yield f"rotate {name}", partial(_rotate, lab, name)


@contextmanager
def spinning(count: int, scratch: Path, *, max_seconds: float) -> Iterator[None]:
    """Keep processors busy while the body runs, but not for longer than `max_seconds`."""
    program = (
        f"import time; end = time.monotonic() + {max_seconds}\nwhile time.monotonic() < end: pass"
    )
    pids = [
        shell.spawn(
            [sys.executable, "-I", "-c", program],
            env=shell.environment(),
            log=scratch / f"spinner-{number}.log",
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _roll(lab: Lab, role: str, version: str) -> Change:
    image = lab.bake(version)["images"][role]
    answer = lab.toolkit.run("roll", ENVIRONMENT, role, "--image", image)
    result: dict[str, Any] = answer.data if answer.stdout else {}
    outcome = result.get("outcome") or answer.error.get("error") or "failed"
    return Change(
        what=f"{role} to {version}",
        outcome=str(outcome),
        seconds=result.get("seconds", {}),
        command_s=round(answer.seconds, 3),
    )


def _rotate(lab: Lab, name: str) -> Change:
    answer = lab.toolkit.run("secrets", "rotate", ENVIRONMENT, name)
    is_good = answer.exit_code == 0 and answer.data["proofs"]
    return Change(
        what=name,
        outcome="rotated" if is_good else str(answer.error.get("error") or "not proven"),
        seconds={"total": answer.data["seconds"]} if is_good else {},
        command_s=round(answer.seconds, 3),
    )


def as_text(changes: list[Change], meanwhile: Meanwhile, report: Report) -> str:
    """Return the report for people."""
    steps = list(dict.fromkeys(name for one in changes for name in one.seconds if name != "total"))
    widths = {name: max(len(name), 6) for name in steps}
    heading = "  ".join(f"{name:>{widths[name]}}" for name in steps)
    lines = ["changes, in seconds", f"{'':<25}{'total':>8}  {heading}".rstrip()]
    for one in changes:
        cells = "  ".join(f"{one.seconds.get(name, 0):>{widths[name]}.2f}" for name in steps)
        total = one.seconds.get("total", one.command_s)
        lines.append(f"{one.what:<17} {one.outcome:<7}{total:>8.2f}  {cells}".rstrip())
    slowest = max((one.command_s for one in changes), default=0.0)
    lines += [
        f"{len(changes)} changes; the slowest command took {slowest:.1f} s from start to end, "
        f"on {os.cpu_count()} processors",
        f"{meanwhile.requests} requests were sent in the {meanwhile.seconds:.1f} s of the changes: "
        f"{meanwhile.requests / meanwhile.seconds:.1f}/s",
        "",
        "load",
        report.to_text(),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name="python -m bench.roll")
