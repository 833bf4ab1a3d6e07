"""Runs the load generator as a process of its own, so that it does not share a loop or a core."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.load.report import Report
from bench.load.settings import LoadSettings
from toolkit import shell
from toolkit.errors import DeadlineExceeded, OutsideError

_CHECKOUT = Path(__file__).resolve().parents[2]
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of a run that may still go on; `versions` by value of the counted header."""

    requests: int = 0
    ok: int = 0
    failed: int = 0
    seconds: float = 0.0
    versions: Mapping[str, int] = field(default_factory=dict)


class LoadProcess:
    """A load run in the background: `with LoadProcess(settings, directory) as load: ...`.

    Leaving the block stops the process if it still runs.

    Args:
        settings: What to do.
        directory: An existing directory of the caller's; takes the report and the log.
    """

    def __init__(self, settings: LoadSettings, directory: Path) -> None:
        self._settings = settings
        self.log = directory / "load.log"
        self._report_file = directory / "load-report.json"
        self._progress_file = directory / "load-progress.json"
        self._pid = 0
        self._pidfd = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(self._settings.grace_s + 5.0)

    def start(self) -> None:
        """Start sending; returns at once."""
        for leftover in (self._report_file, self._progress_file):
            leftover.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "bench.load", *self._settings.arguments()]
        argv += ["--report", str(self._report_file.absolute())]
        argv += ["--progress", str(self._progress_file.absolute())]
        self._pid = shell.spawn(argv, env=shell.environment(), log=self.log, cwd=_CHECKOUT)
        self._pidfd = os.pidfd_open(self._pid)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._pidfd >= 0 and not self._has_ended(0.0)

    def snapshot(self) -> Snapshot:
        """Return the counts so far, at most 0.1 s old while it runs."""
        try:
            return Snapshot(**json.loads(self._progress_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Snapshot()

    def wait_for(
        self, *, requests_done: int = 1, version: str | None = None, deadline_s: float = 30.0
    ) -> Snapshot:
        """Wait until so many requests have an outcome, good or bad.

        Args:
            requests_done: How many.
            version: If given, wait also for a response with this value of the counted header.
            deadline_s: Seconds for the whole wait.

        Raises:
            DeadlineExceeded: It did not come so far in time.
            OutsideError: The run ended before.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            has_ended = self._has_ended(_POLL_S)
            seen = self.snapshot()
            is_seen = version is None or seen.versions.get(version, 0) > 0
            if seen.ok + seen.failed >= requests_done and is_seen:
                return seen
            if has_ended:
                raise OutsideError(
                    f"the load run ended after {seen.requests} requests", hint=self._tail()
                )
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"the load run had {seen.ok + seen.failed} outcomes after {deadline_s:g} s"
                )

    def wait(self, *, deadline_s: float | None = None) -> Report:
        """Wait until the run ends by its own bounds, and return its report.

        Args:
            deadline_s: Seconds; by default a little more than the run may take.

        Raises:
            DeadlineExceeded: It still runs.
            OutsideError: It left no report.
        """
        if deadline_s is None:
            deadline_s = self._settings.max_seconds + self._settings.timeout_s + 10.0
        if not self._has_ended(deadline_s):
            raise DeadlineExceeded(f"the load run goes on after {deadline_s:g} s")
        return self._report()

    def stop(self) -> Report:
        """Stop sending, let outstanding requests end within the grace time, return the report.

        Raises:
            OutsideError: It left no report.
        """
        self._end(self._settings.grace_s + 5.0)
        return self._report()

    def _end(self, patience_s: float) -> None:
        if self._pidfd < 0:
            return
        # A signal that comes before the handlers are there would end the process without a report.
        deadline = time.monotonic() + patience_s
        while not self._progress_file.exists() and time.monotonic() < deadline:
            if self._has_ended(_POLL_S):
                break
        if not self._has_ended(0.0):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            if not self._has_ended(patience_s):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                self._has_ended(patience_s)
        os.close(self._pidfd)
        self._pidfd = -1

    def _has_ended(self, patience_s: float) -> bool:
        """Wait at most so long for the end of the process, and reap it."""
        if self._pidfd < 0:
            return True
        if not select.select([self._pidfd], [], [], patience_s)[0]:
            return False
        try:
            os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pass  # Python's own subprocess module reaps abandoned children when it starts others.
        return True

    def _report(self) -> Report:
        try:
            text = self._report_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise OutsideError("the load run left no report", hint=self._tail()) from None
        return Report.from_json(text)

    def _tail(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return f"its log ends: {text[-1000:]}" if text else "its log is empty"
