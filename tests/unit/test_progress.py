"""Printing never decides: work goes on, and ends with its own code, where nobody can be told."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from toolkit.progress import JsonLines, Lines, Progress, step

TOOLKIT = (sys.executable, "-c", "from toolkit.cli.main import main; main()")


def closed_pipe() -> IO[bytes]:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb", buffering=0)


def full_disk() -> IO[bytes]:
    """Return a file that takes nothing."""
    return Path("/dev/full").open("wb", buffering=0)


@pytest.mark.parametrize("kind", [Lines, JsonLines])
@pytest.mark.parametrize("make", [closed_pipe, full_disk])
def test_work_goes_on_where_progress_cannot_be_printed(kind, make):
    with make() as sink:
        stream = io.TextIOWrapper(sink, write_through=True)
        progress: Progress = kind(stream)
        done = []
        for name in ("drain", "destroy"):
            with step(progress, name):
                done.append(name)
        assert done == ["drain", "destroy"]
        stream.detach()


def toolkit(tmp_path: Path, *arguments: str, stdout: object, stderr: object) -> int:
    """Run the command; return its exit code."""
    command = [*TOOLKIT, "--state", str(tmp_path / "state"), *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=stderr, timeout=120, check=False
    ).returncode


@pytest.mark.parametrize("arguments", [("images", "list"), ("--debug", "images", "list", "--json")])
def test_a_reader_who_has_seen_enough_is_no_failure(tmp_path, arguments):
    with closed_pipe() as nobody:
        assert toolkit(tmp_path, *arguments, stdout=nobody, stderr=None) == 0


def test_a_result_that_is_lost_is_a_failure(tmp_path):
    command = [*TOOLKIT, "--state", str(tmp_path / "state"), "images", "list", "--json"]
    with full_disk() as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=120
        )
    assert done.returncode == 3
    assert "could not be printed" in json.loads(done.stderr)["error"]


@pytest.mark.parametrize("make", [closed_pipe, full_disk])
@pytest.mark.parametrize("option", ["--debug", "--quiet"])
def test_an_error_that_nobody_hears_keeps_its_exit_code(tmp_path, make, option):
    with make() as sink:
        arguments = (option, "images", "show", "0123456789")
        assert toolkit(tmp_path, *arguments, stdout=None, stderr=sink) == 2


INTERRUPTED = """
import os, signal, sys
from toolkit import interrupt
from toolkit.cli import main
from toolkit.progress import JsonLines, Lines, Silence, step

@main.click.command()
@main.click.option("--json", is_flag=True)
def work(json):
    quiet = Silence(Lines())
    progress = {"json": JsonLines(), "lines": Lines(), "silence": quiet}[sys.argv[1]]
    with interrupt.at_safe_points("'toolkit resume' goes on", tell=progress.urge):
        with step(progress, "drain"):
            for _ in range(int(sys.argv[2])):
                os.kill(os.getpid(), signal.SIGINT)
        interrupt.check("'toolkit resume' goes on")

main.LazyGroup.get_command = lambda *_: work
sys.exit(main.run(["work", *sys.argv[3:]]))
"""


def interrupted(writer: str, times: int, *words: str) -> tuple[int, list[str]]:
    """Press Ctrl-C so many times in the midst of a step; return exit code and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, writer, str(times), *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("times", [1, 2])
def test_whoever_presses_ctrl_c_is_told_how_to_go_on(times):
    code, lines = interrupted("lines", times)
    assert code == 130
    assert any("once more stops now" in line for line in lines)
    assert lines[-1] == "hint: 'toolkit resume' goes on"
    assert not any("\u2717" in line for line in lines)


def test_also_without_progress():
    _, lines = interrupted("silence", 1)
    assert any("once more stops now" in line for line in lines)


@pytest.mark.parametrize("times", [1, 2])
def test_json_lines_stay_json_lines_when_somebody_presses_ctrl_c(times):
    code, lines = interrupted("json", times, "--json")
    assert code == 130
    events = [json.loads(line) for line in lines]
    assert "once more stops now" in next(
        one["step"] for one in events if one.get("event") == "note"
    )
    assert not any(one.get("event") == "failed" for one in events)
    assert events[-1]["hint"] == "'toolkit resume' goes on"
