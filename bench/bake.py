"""Measure bakes: `python -m bench.bake`.

In a state directory of its own: everything from nothing, then a change of the application alone,
then nothing changed. What a package mirror or a package index takes to answer is part of the first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench.lab import Lab
from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.progress import Lines, Progress, step

REPEATS = 3


@dataclass(frozen=True, slots=True)
class BakeTime:
    """One kind of bake.

    Attributes:
        what: Which.
        seconds: Wall time of the command; the best of several where nothing is built.
        limit_s: What it should stay under.
        built: Layers that were built.
        size_bytes: Of all images' layers together, each counted once.
    """

    what: str
    seconds: float
    limit_s: float
    built: tuple[str, ...]
    size_bytes: int

    @property
    def is_within(self) -> bool:
        """Whether it stayed under its limit."""
        return self.seconds < self.limit_s


@click.command()
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Image store with layers to use: leaves the cold bake out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(store: Path | None, as_json: bool) -> None:
    """Measure a cold bake, a change of the application, and nothing changed.

    Exit code: 0 when each stayed within its limit, 1 otherwise.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        times = measure(store)
    except ToolkitError as error:
        raise click.ClickException(f"{error.message}\n{error.hint or ''}".strip()) from None
    if as_json:
        data = {"bakes": [asdict(one) for one in times], "processors": os.cpu_count()}
        print(json.dumps(data))
    else:
        print(as_text(times))
    sys.exit(0 if all(one.is_within for one in times) else 1)


def measure(store: Path | None) -> list[BakeTime]:
    """Bake several times and remove everything.

    Raises:
        ToolkitError: A bake failed.
    """
    if os.geteuid() != 0:
        raise ConfigurationError("this starts machines, which needs root")
    progress = Lines()
    with (
        tempfile.TemporaryDirectory(prefix="toolkit-bench-") as scratch,
        Lab(Path(scratch) / "lab", store=store, progress=progress) as lab,
    ):
        # The project stays as it is; only the service's source goes on to its next version.
        lab.project.check_out("v1")
        first = _bake(lab, progress, "everything, from nothing", "v1", 240.0)
        return [
            *([first] if store is None else []),
            _bake(lab, progress, "only the application changed", "v2", 10.0),
            min(
                (_bake(lab, progress, "nothing changed", "v2", 1.5) for _ in range(REPEATS)),
                key=lambda one: one.seconds,
            ),
        ]


def _bake(lab: Lab, progress: Progress, what: str, ref: str, limit_s: float) -> BakeTime:
    with step(progress, what):
        answer = lab.toolkit.run("bake", "--ref", ref)
    if answer.exit_code != 0:
        raise ToolkitError(f"the bake failed: {answer.error.get('error') or answer.stderr}")
    layers: dict[str, list[dict[str, Any]]] = answer.data["layers"]
    built = {one["layer"]: None for role in layers.values() for one in role if not one["reused"]}
    images = lab.toolkit.result("images", "list")
    sizes = {
        layer["digest"]: layer["size_bytes"]
        for image in images
        if image["digest"] in answer.data["images"].values()
        for layer in image["layers"]
    }
    return BakeTime(what, round(answer.seconds, 3), limit_s, tuple(built), sum(sizes.values()))


def as_text(times: list[BakeTime]) -> str:
    """Return the report for people."""
    lines = [f"{'bake':<30}{'seconds':>9}{'limit':>8}  {'layers built'}"]
    lines += [
        f"{one.what:<30}{one.seconds:>9.2f}{one.limit_s:>8g}  {', '.join(one.built) or 'none'}"
        + ("" if one.is_within else "   OVER THE LIMIT")
        for one in times
    ]
    lines.append(
        f"three images, {times[-1].size_bytes / 1_000_000:.0f} MB of layers, "
        f"on {os.cpu_count()} processors"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name="python -m bench.bake")
