"""Runs the `toolkit` command as any program would: a process, its JSON, its exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import shell
from toolkit.errors import ToolkitError
from toolkit.progress import Progress, Silence

TIMEOUT_S = 1800.0
INTERRUPT_PATIENCE_S = 120.0

PASSED_ON = ("HOME", "USER", "LOGNAME", "SUDO_USER")
"""Of the operator's environment: who it is that does something."""

_EXEC = (
    "import os, sys; error = int(sys.argv[1]); os.write(error, b'%d\\n' % os.getpid()); "
    "os.dup2(error, 2); os.close(error); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Gives the command a standard error that can be read while it runs, and tells its process id."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said.

    Attributes:
        exit_code: Its exit code; negative for a signal.
        stdout: Its result.
        stderr: Its progress, and its error if it failed.
        seconds: Wall time.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def data(self) -> Any:
        """The result as JSON.

        Raises:
            ToolkitError: It is none.
        """
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise ToolkitError(
                f"not JSON (exit code {self.exit_code}): {self.stdout!r}\n{self.stderr}"
            ) from None

    @property
    def error(self) -> dict[str, Any]:
        """The error as `{"error", "hint", "exit_code"}`; empty without one."""
        for line in reversed(self.stderr.splitlines()):
            record = _record(line)
            if "error" in record:
                return record
        return {}


class Running:
    """A command that was started.

    Args:
        argv: The command with its arguments.
        timeout_s: After so many seconds it is killed.
        progress: Hears of its steps.
    """

    def __init__(self, argv: Sequence[str], *, timeout_s: float, progress: Progress) -> None:
        self._argv = argv
        self._timeout_s = timeout_s
        self._progress = progress
        self._stderr: list[str] = []
        self._pid = 0
        self._has_pid = threading.Event()
        # Not Thread.join: interrupted, it takes the thread for ended (CPython 3.11).
        self._has_ended = threading.Event()
        self._is_read = threading.Event()
        self._outcome: shell.Completed | BaseException | None = None
        read, self._write = os.pipe()
        threading.Thread(target=self._read, args=(read,), daemon=True).start()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._has_ended.is_set()

    @property
    def stderr(self) -> str:
        """What it printed on standard error so far."""
        return "".join(self._stderr)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._has_pid.wait(timeout=10.0)
        if self._pid and self.is_running:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:
                pass

    def wait(self) -> Answer:
        """Wait for its end; pass an interruption on and let the command put things in order.

        Raises:
            ToolkitError: It could not be started, or did not end in time.
        """
        try:
            self._has_ended.wait()
            self._is_read.wait()
        except KeyboardInterrupt:
            self.send(signal.SIGTERM)
            self._has_ended.wait(INTERRUPT_PATIENCE_S)
            raise
        if isinstance(self._outcome, shell.Completed):
            done = self._outcome
            return Answer(done.exit_code, done.text, self.stderr, done.seconds)
        raise self._outcome or ToolkitError(f"{self._argv[0]} did not run")

    def _run(self) -> None:
        try:
            passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            self._outcome = shell.run(
                [sys.executable, "-I", "-c", _EXEC, str(self._write), *self._argv],
                env=shell.environment(**passed),
                timeout_s=self._timeout_s,
                pass_fds=(self._write,),
                is_checked=False,
                max_output_bytes=None,
            )
        except BaseException as error:
            self._outcome = error
        finally:
            os.close(self._write)
            self._has_ended.set()

    def _read(self, descriptor: int) -> None:
        try:
            with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
                self._pid = int(stream.readline().strip() or 0)
                self._has_pid.set()
                for line in stream:
                    self._stderr.append(line)
                    self._tell(_record(line))
        finally:
            self._is_read.set()

    def _tell(self, record: dict[str, Any]) -> None:
        match record.get("event"):
            case "started":
                self._progress.started(record["step"])
            case "finished":
                self._progress.finished(record["step"], record["seconds"])
            case "failed":
                self._progress.failed(record["step"], record["seconds"])
            case "note":
                self._progress.note(record["step"])


class Toolkit:
    """The `toolkit` command with a project and a state directory.

    Args:
        project: Directory of `service.yml`.
        state: State directory.
        progress: Hears of the steps of commands that print JSON.
        prefix: Put before the command, to run it as another user for instance.
        program: Another `toolkit` than the one of this Python.
    """

    def __init__(
        self,
        project: Path,
        state: Path,
        *,
        progress: Progress | None = None,
        prefix: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        self.project = project
        self.state = state
        self._progress = progress or Silence()
        self._prefix = prefix
        self._program = program or Path(sys.executable).with_name("toolkit")

    def start(
        self, *words: str | Path, is_json: bool = True, timeout_s: float = TIMEOUT_S
    ) -> Running:
        """Start a command; its arguments without `--project`, `--state` and `--json`."""
        argv = [
            *self._prefix,
            str(self._program),
            f"--project={self.project}",
            f"--state={self.state}",
            *map(str, words),
            *(["--json"] if is_json else []),
        ]
        return Running(_absolute(argv), timeout_s=timeout_s, progress=self._progress)

    def run(self, *words: str | Path, is_json: bool = True, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run a command to its end, whatever its exit code is."""
        return self.start(*words, is_json=is_json, timeout_s=timeout_s).wait()

    def result(self, *words: str | Path, timeout_s: float = TIMEOUT_S) -> Any:
        """Run a command that must succeed, and return its JSON.

        Raises:
            ToolkitError: It failed; the message has its own words.
        """
        answer = self.run(*words, timeout_s=timeout_s)
        if answer.exit_code != 0:
            message = answer.error.get("error") or answer.stderr[-2000:]
            raise ToolkitError(
                f"toolkit {' '.join(map(str, words))} exited with {answer.exit_code}: {message}",
                hint=answer.error.get("hint"),
            )
        return answer.data


def _absolute(argv: list[str]) -> list[str]:
    """Return the command with the full path of its program, which `execv` needs."""
    if "/" in argv[0]:
        return argv
    for directory in shell.MINIMAL_ENVIRONMENT["PATH"].split(os.pathsep):
        if (path := Path(directory) / argv[0]).is_file():
            return [str(path), *argv[1:]]
    raise ToolkitError(f"{argv[0]} is not installed")


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
