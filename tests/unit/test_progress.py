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
