"""What long work tells its observer.

Work takes a `Progress` as an argument and calls it; the command line decides whether that is a
terminal writer, a JSON-lines writer or nothing. All writers print on standard error.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """An observer of long work. Implementations are safe to call from several threads."""

    def started(self, what: str) -> None:
        """A step begins."""

    def finished(self, what: str, seconds: float) -> None:
        """A step ended well."""

    def failed(self, what: str, seconds: float) -> None:
        """A step ended badly; the error follows on its own way."""

    def note(self, message: str) -> None:
        """Something worth knowing that is not a step."""


class Silence:
    """A `Progress` that says nothing."""

    def started(self, what: str) -> None: ...
    def finished(self, what: str, seconds: float) -> None: ...
    def failed(self, what: str, seconds: float) -> None: ...
    def note(self, message: str) -> None: ...


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Report the body as one step with its duration."""
    began = time.monotonic()
    progress.started(what)
    try:
        yield
    except BaseException:
        progress.failed(what, time.monotonic() - began)
        raise
    progress.finished(what, time.monotonic() - began)


class Lines:
    """One line for each finished step, with the seconds since the command began.

    Args:
        stream: Where to write; standard error by default.
        has_colour: Whether to use colours.
    """

    def __init__(self, stream: TextIO | None = None, *, has_colour: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._has_colour = has_colour
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def started(self, what: str) -> None:
        self._write("·", "2", what)

    def finished(self, what: str, seconds: float) -> None:
        self._write("✓", "32", f"{what} ({seconds:.1f} s)")

    def failed(self, what: str, seconds: float) -> None:
        self._write("✗", "31", f"{what} ({seconds:.1f} s)")

    def note(self, message: str) -> None:
        self._write("→", "36", message)

    def _write(self, sign: str, colour: str, text: str) -> None:
        elapsed = time.monotonic() - self._began
        if self._has_colour:
            sign = f"\x1b[{colour}m{sign}\x1b[0m"
        with self._lock:
            print(f"{elapsed:7.1f}s {sign} {printable(text)}", file=self._stream, flush=True)


class JsonLines:
    """One JSON object for each event: `{"event", "step", "seconds", "elapsed"}`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def started(self, what: str) -> None:
        self._write("started", what, None)

    def finished(self, what: str, seconds: float) -> None:
        self._write("finished", what, seconds)

    def failed(self, what: str, seconds: float) -> None:
        self._write("failed", what, seconds)

    def note(self, message: str) -> None:
        self._write("note", message, None)

    def _write(self, event: str, what: str, seconds: float | None) -> None:
        record: dict[str, object] = {"event": event, "step": what}
        if seconds is not None:
            record["seconds"] = round(seconds, 3)
        record["elapsed"] = round(time.monotonic() - self._began, 3)
        with self._lock:
            print(json.dumps(record), file=self._stream, flush=True)


def printable(text: str) -> str:
    """Return `text` without control characters, so that a machine cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
