"""Roll again and again while things break, and count what fails: `python -m bench.faults`.

Two machines of the service `echo` and a load at a fixed rate. In the first part every roll meets a
fault of the new machines or of the toolkit itself, and no request may fail. In the second part the
balancer and serving machines themselves are hit, one fault after the other: what each costs is
reported. Everything is removed at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench.echo import DOES_NOT_START, EchoLab
from bench.lab import ENVIRONMENT
from bench.load.process import LoadProcess
from bench.load.report import Report
from examples.command import Answer, Running, Toolkit
from toolkit import faults
from toolkit.errors import EXIT_INTERRUPTED, ConfigurationError, ToolkitError
from toolkit.machines.processes import children, read_pid_file
from toolkit.progress import Lines, Progress, step
from toolkit.state import State

ROLE = "echo"
MACHINES = 2
EFFECTS = (
    "launch", "smoke", "register", "await-healthy", "admit", "drain", "await-drained", "deregister",
    "destroy",
)  # fmt: skip
"""Of a roll of this service; the toolkit is killed before, within and after each."""

SETTLE_S = 3.0
STEP_DEADLINE_S = 120.0
MOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One roll, or one fault of the second part.

    Attributes:
        fault: What was done to it.
        outcome: How the last command ended.
        exit_codes: Of all commands, in order.
        seconds: Until the pool was settled again.
        problem: What is not as it should be afterwards, or empty.
    """

    fault: str
    outcome: str
    exit_codes: tuple[int, ...]
    seconds: float
    problem: str


Codes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Deed:
    """What was done to one roll.

    Attributes:
        fault: In words.
        answers: Of all commands, in order.
        allowed: The exit codes that they should have had, of one kind or another.
    """

    fault: str
    answers: Sequence[Answer]
    allowed: Sequence[Codes]


class Arena:
    """The environment under fire.

    Args:
        lab: It runs.
        chance: Chooses versions of faults.
    """

    def __init__(self, lab: EchoLab, chance: random.Random) -> None:
        self.lab = lab
        self._chance = chance
        self._version = "v1"

    def undisturbed(self) -> Deed:
        """Roll to the other version."""
        return Deed("none", [self._roll().wait()], [(0,)])

    def broken_version(self) -> Deed:
        """Roll to a version that does not start."""
        return Deed("version does not start", [self._roll(DOES_NOT_START).wait()], [(4,)])

    def dying_machine(self) -> Deed:
        """Kill a new machine while it is tested, or while the balancer checks it."""
        moment = self._chance.choice(["smoke", "await-healthy"])
        running = self._roll()
        machines = _await_step(running, moment)
        self._end_machine(self._chance.choice(machines))
        # Whether it was known to the balancer when it died is a matter of a moment.
        allowed = [(4,)] if moment == "smoke" else [(4,), (5,)]
        return Deed(f"new machine dies in {moment}", [running.wait()], allowed)

    def killed(self) -> Deed:
        """Kill the toolkit at a failpoint; then go on, or go back."""
        effect, moment = self._chance.choice(EFFECTS), self._chance.choice(faults.MOMENTS)
        way = self._chance.choice(["resume", "abort"])
        point = f"roll.{effect}.{moment}"
        prefix = ["env", f"{faults.VARIABLE}={point}"]
        tool = Toolkit(self.lab.project.root, self.lab.state, prefix=prefix)
        killed = self._roll(tool=tool).wait()
        answers = [killed, self.lab.toolkit.run(way, ENVIRONMENT)]
        return Deed(f"killed at {point}, {way}", answers, [(-signal.SIGKILL, 0)])

    def interrupted(self) -> Deed:
        """Press Ctrl-C once or twice at some step; then go on."""
        times, effect = self._chance.choice([1, 2]), self._chance.choice(EFFECTS)
        running = self._roll()
        _await_step(running, effect)
        for _ in range(times):
            running.send(signal.SIGINT)
        answers = [running.wait(), self.lab.toolkit.run("resume", ENVIRONMENT)]
        # In its last steps the roll may have ended before it came to a safe point.
        allowed = [(EXIT_INTERRUPTED, 0), *([(0, 0)] if effect in EFFECTS[-3:] else [])]
        return Deed(f"Ctrl-C {times}x in {effect}", answers, allowed)

    def contended(self) -> Deed:
        """Have two operators roll at once."""
        both = [self._roll(), self._roll()]
        answers = sorted((one.wait() for one in both), key=lambda a: a.exit_code)
        # One that comes when the other is done has nothing to do.
        return Deed("two operators", answers, [(0, 6), (0, 0)])

    def problem(self) -> str:
        """Return what is wrong with the environment at rest, or an empty text."""
        state = self.status()
        serving = state["pool"]["serving"]
        if len(serving) != MACHINES or len(state["machines"]) != MACHINES:
            return f"{len(serving)} of {len(state['machines'])} machines serve, not {MACHINES}"
        good = {self._image(version): version for version in ("v1", "v2")}
        if state["image"] not in good:
            return f"image {state['image']} serves, which is no good version"
        self._version = good[state["image"]]
        return ""

    def status(self) -> dict[str, Any]:
        """Return what `toolkit status` says about the role."""
        states = self.lab.toolkit.result("status", ENVIRONMENT)
        found: dict[str, Any] = next(one for one in states if one["role"] == ROLE)
        return found

    def end_serving_machine(self) -> None:
        """Kill a machine that serves; `up` brings it back."""
        self._end_machine(self.status()["pool"]["serving"][0])
        time.sleep(SETTLE_S)
        self.lab.toolkit.result("up", ENVIRONMENT)

    def kill_balancer(self) -> None:
        """Kill the balancer; `up` brings it back."""
        for pid in self._balancer():
            os.kill(pid, signal.SIGKILL)
        time.sleep(SETTLE_S)
        self.lab.toolkit.result("up", ENVIRONMENT)

    def stop_balancer(self) -> None:
        """Stop the balancer for a moment."""
        pids = self._balancer()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SETTLE_S)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def reload_balancer(self) -> None:
        """Have the balancer load its configuration anew."""
        os.kill(self._balancer()[0], signal.SIGUSR2)
        time.sleep(SETTLE_S)

    def _roll(self, version: str | None = None, *, tool: Toolkit | None = None) -> Running:
        version = version or ("v2" if self._version == "v1" else "v1")
        image = self._image(version)
        return (tool or self.lab.toolkit).start("roll", ENVIRONMENT, ROLE, "--image", image)

    def _image(self, version: str) -> str:
        return str(self.lab.bake(version)["images"][ROLE])

    @property
    def _runtime(self) -> Path:
        return State(self.lab.state).runtime / ENVIRONMENT

    def _end_machine(self, name: str) -> None:
        """Kill a machine's init, and with it the machine."""
        supervisor = read_pid_file(self._runtime / "machines" / f"{name}.pid")
        for pid in children(supervisor.pid) if supervisor else ():
            os.kill(pid, signal.SIGKILL)

    def _balancer(self) -> list[int]:
        """Return the process ids of the balancer's master and workers."""
        master = int((self._runtime / "balancer" / "haproxy.pid").read_text().split()[0])
        return [master, *children(master)]


def _await_step(running: Running, effect: str) -> list[str]:
    """Wait until a roll begins with an effect; return the machines that it concerns.

    Raises:
        ToolkitError: It ended before that.
    """
    deadline = time.monotonic() + STEP_DEADLINE_S
    while running.is_running and time.monotonic() < deadline:
        for line in running.stderr.splitlines():
            record = json.loads(line) if line.startswith("{") else {}
            words = str(record.get("step", "")).replace(",", "").split()
            if record.get("event") == "started" and words[:1] == [effect]:
                return words[1:]
        time.sleep(0.02)
    running.send(signal.SIGKILL)
    running.wait()
    raise ToolkitError(f"the roll did not come to {effect}: {running.stderr[-500:]}")


@click.command(context_settings={"show_default": True})
@click.option("--requests", default=100_000, type=click.IntRange(1000), help="How many to send.")
@click.option("--rolls", default=50, type=click.IntRange(1), help="How many rolls at least.")
@click.option("--rate", default=320.0, type=click.FloatRange(1.0), help="Requests a second.")
@click.option("--seed", default=1, type=int, help="Repeats a choice of faults.")
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Image store with layers to use instead of baking them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    requests: int, rolls: int, rate: float, seed: int, store: Path | None, as_json: bool
) -> None:
    """Roll under load while new machines and the toolkit fail; then let others fail.

    Exit code: 0 when no request of the first part failed and every roll ended as it should.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Lines()
    try:
        if os.geteuid() != 0:
            raise ConfigurationError("this starts machines, which needs root")
        with (
            tempfile.TemporaryDirectory(prefix="toolkit-bench-") as scratch,
            EchoLab(Path(scratch) / "lab", store=store, progress=progress) as lab,
        ):
            for version in ("v1", "v2", DOES_NOT_START):
                with step(progress, f"bake {version}"):
                    lab.bake(version)
            with step(progress, "start version 1"):
                lab.start("v1")
            arena = Arena(lab, random.Random(seed))
            turns, report = first_part(
                arena, Path(scratch), progress, requests=requests, rolls=rolls, rate=rate
            )
            costs: dict[str, Report] = {}
            trouble = ""
            try:
                second_part(arena, Path(scratch), progress, costs, rate=rate)
            except ToolkitError as error:
                # What the first part has found is not lost for that.
                trouble = error.message
    except ToolkitError as error:
        raise click.ClickException(f"{error.message}\n{error.hint or ''}".strip()) from None
    if as_json:
        data = {
            "turns": [asdict(one) for one in turns],
            "load": json.loads(report.to_json()),
            "trouble": trouble,
            "costs": {fault: json.loads(one.to_json()) for fault, one in costs.items()},
        }
        print(json.dumps(data))
    else:
        print(as_text(turns, report, costs))
        if trouble:
            print(f"  the second part ended early: {trouble}")
    is_good = report.is_clean and report.requests >= requests and len(turns) >= rolls
    is_good = is_good and not trouble
    sys.exit(0 if is_good and not any(one.problem for one in turns) else 1)


def first_part(
    arena: Arena, scratch: Path, progress: Progress, *, requests: int, rolls: int, rate: float
) -> tuple[list[Turn], Report]:
    """Roll through faults that no request may notice, until both bounds are reached."""
    kinds = itertools.cycle(
        [arena.killed, arena.dying_machine, arena.interrupted, arena.killed, arena.broken_version,
         arena.killed, arena.contended, arena.undisturbed]
    )  # fmt: skip
    settings = arena.lab.load(rate=rate, requests=None, max_seconds=MOST_SECONDS)
    turns: list[Turn] = []
    directory = scratch / "first"
    directory.mkdir()
    with LoadProcess(settings, directory) as load:
        load.wait_for(requests_done=int(rate))
        while load.is_running and (len(turns) < rolls or load.snapshot().requests < requests):
            turns.append(_turn(arena, next(kinds)))
            progress.note(f"{len(turns):3} {turns[-1].fault}: {turns[-1].outcome}")
        report = load.stop()
    return turns, report


def second_part(
    arena: Arena, scratch: Path, progress: Progress, costs: dict[str, Report], *, rate: float
) -> None:
    """Let what serves fail, one after the other; what the clients saw each time goes to `costs`."""
    for name, act in (
        ("balancer reloaded", arena.reload_balancer),
        (f"balancer stopped for {SETTLE_S:g} s", arena.stop_balancer),
        (f"balancer killed, 'up' {SETTLE_S:g} s later", arena.kill_balancer),
        (f"serving machine killed, 'up' {SETTLE_S:g} s later", arena.end_serving_machine),
    ):
        directory = scratch / name.split("'")[0].replace(" ", "-")
        directory.mkdir()
        settings = arena.lab.load(rate=rate, requests=None, max_seconds=120.0)
        with LoadProcess(settings, directory) as load:
            load.wait_for(requests_done=int(rate))
            with step(progress, name):
                act()
            time.sleep(SETTLE_S)
            costs[name] = load.stop()


def _turn(arena: Arena, act: Callable[[], Deed]) -> Turn:
    began = time.monotonic()
    try:
        deed = act()
        fault, outcome = deed.fault, _outcome(deed.answers)
        codes = tuple(one.exit_code for one in deed.answers)
        problem = arena.problem()
        if codes not in deed.allowed:
            problem = f"exit codes {codes}, not {' or '.join(map(str, deed.allowed))}; {problem}"
    except ToolkitError as error:
        fault, outcome, codes, problem = act.__name__, "?", (), error.message
    return Turn(fault, outcome, codes, round(time.monotonic() - began, 2), problem)


def _outcome(answers: Sequence[Answer]) -> str:
    for answer in reversed(answers):
        if answer.stdout:
            data = answer.data
            rolls = data if isinstance(data, list) else [data]
            if rolls:
                return str(rolls[0]["outcome"])
    return "nothing was left to do"


def as_text(turns: Sequence[Turn], report: Report, costs: Mapping[str, Report]) -> str:
    """Return the report for people."""
    lines = ["rolls"]
    lines += [
        f"{number:4}  {one.fault:<44} {one.outcome:<12} {one.seconds:6.1f} s  "
        f"{' '.join(map(str, one.exit_codes)):<8} {one.problem}".rstrip()
        for number, one in enumerate(turns, start=1)
    ]
    lines += ["", f"load during {len(turns)} rolls", report.to_text(), ""]
    lines.append("what it costs when that which serves is hit, apart from the above")
    lines += [
        f"  {fault:<44} {one.failed:6} of {one.requests} requests failed, "
        f"the slowest answer took {one.latency_ms.max:.0f} ms"
        for fault, one in costs.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name="python -m bench.faults")
