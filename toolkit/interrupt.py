"""Ctrl-C: once stops at the next safe point, twice stops now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.errors import Interrupted

_asked = threading.Event()


@contextmanager
def at_safe_points(hint: str, *, tell: Callable[[str], None]) -> Iterator[None]:
    """Turn the first interrupt within the body into a request that `check` answers.

    One that came too late for the body stays: whatever the process would begin next checks, too.

    Args:
        hint: How the operator goes on afterwards; the exception that a second one raises has it.
        tell: Says what the first one did; called from the signal's handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: object) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt(hint)
        _asked.set()
        tell(f"stopping at the next safe point; once more stops now. {hint}")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check(hint: str) -> None:
    """Stop here if the operator asked for it.

    Raises:
        Interrupted: The operator pressed Ctrl-C.
    """
    if _asked.is_set():
        _asked.clear()
        raise Interrupted("stopped at a safe point, as asked", hint=hint)
