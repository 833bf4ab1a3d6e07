"""What long work tells its observer.

Work takes a `Progress` as an argument and calls it; the command line decides whether that is a
terminal writer, a JSON-lines writer or nothing. All writers print on standard error. Where nobody
can be told, because a pipe was closed or a disk is full, the work goes on in silence.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

STANDARD_ERROR = 2


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

    def urge(self, message: str) -> None:
        """Tell an operator who has just pressed Ctrl-C; safe to call from a signal's handler."""


class Silence:
    """A `Progress` that says nothing, unless somebody presses a key.

    Args:
        voice: Says it then.
    """

    def __init__(self, voice: Progress | None = None) -> None:
        self._voice = voice

    def started(self, what: str) -> None: ...
    def finished(self, what: str, seconds: float) -> None: ...
    def failed(self, what: str, seconds: float) -> None: ...
    def note(self, message: str) -> None: ...

    def urge(self, message: str) -> None:
        if self._voice:
            self._voice.urge(message)


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Report the body as one step with its duration."""
    began = time.monotonic()
    progress.started(what)
    try:
        yield
    except KeyboardInterrupt:
        progress.note(f"{what}: stopped in the middle")
        raise
    except BaseException:
        progress.failed(what, time.monotonic() - began)
        raise
    progress.finished(what, time.monotonic() - began)


class _Writer:
    """Writes lines from several threads; goes silent for good when one cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._is_heard = True

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _print(self, line: str) -> None:
        with self._lock:
            if not self._is_heard:
                return
            try:
                print(line, file=self._stream, flush=True)
            except OSError:
                self._is_heard = False


class Lines(_Writer):
    """One line for each finished step, with the seconds since the command began.

    Args:
        stream: Where to write; standard error by default.
        has_colour: Whether to use colours.
    """

    def __init__(self, stream: TextIO | None = None, *, has_colour: bool = False) -> None:
        super().__init__(stream)
        self._has_colour = has_colour

    def started(self, what: str) -> None:
        self._write("·", "2", what)

    def finished(self, what: str, seconds: float) -> None:
        self._write("✓", "32", f"{what} ({seconds:.1f} s)")

    def failed(self, what: str, seconds: float) -> None:
        self._write("✗", "31", f"{what} ({seconds:.1f} s)")

    def note(self, message: str) -> None:
        self._write("→", "36", message)

    def urge(self, message: str) -> None:
        _write_at_once(f"\n{message}")

    def _write(self, sign: str, colour: str, text: str) -> None:
        if self._has_colour:
            sign = f"\x1b[{colour}m{sign}\x1b[0m"
        self._print(f"{self._elapsed():7.1f}s {sign} {printable(text)}")


class JsonLines(_Writer):
    """One JSON object for each event: `{"event", "step", "seconds", "elapsed"}`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)

    def started(self, what: str) -> None:
        self._write("started", what, None)

    def finished(self, what: str, seconds: float) -> None:
        self._write("finished", what, seconds)

    def failed(self, what: str, seconds: float) -> None:
        self._write("failed", what, seconds)

    def note(self, message: str) -> None:
        self._write("note", message, None)

    def urge(self, message: str) -> None:
        _write_at_once(self._line("note", message, None))

    def _write(self, event: str, what: str, seconds: float | None) -> None:
        self._print(self._line(event, what, seconds))

    def _line(self, event: str, what: str, seconds: float | None) -> str:
        record: dict[str, object] = {"event": event, "step": what}
        if seconds is not None:
            record["seconds"] = round(seconds, 3)
        record["elapsed"] = round(self._elapsed(), 3)
        return json.dumps(record)


def _write_at_once(line: str) -> None:
    """Write on standard error, as a signal's handler may that has interrupted a `print`.

    That cannot be entered again, and its lock is held.
    """
    with suppress(OSError):
        os.write(STANDARD_ERROR, f"{line}\n".encode())


def printable(text: str) -> str:
    """Return `text` without control characters, so that a machine cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def silence(stream: TextIO) -> None:
    """Let a standard stream that cannot be written lead nowhere, with what it still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
    with suppress(OSError):
        stream.flush()
