"""Every effect is intent → act → observe → commit, in the ledger's chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit import faults
from toolkit.clock import Instant
from toolkit.errors import OutsideError, ToolkitError
from toolkit.ledger.ledger import Ledger

INTENT, DONE, FAILED = "effect.intent", "effect.done", "effect.failed"

SWITCHED, UNDOING = "roll.switched", "roll.undoing"
"""Entries of a roll: the new machines serve for good; it is on its way back."""

SMOKE_FAILED = "roll.smoke-failed"
"""Has the checks that failed, in full."""


class Journal:
    """Writes the effects of one undertaking.

    Args:
        ledger: Refuses when the lease is lost.
        place: `environment`, `role` and `roll` of the entries.
        scope: First part of the failpoints' names.
    """

    def __init__(self, ledger: Ledger, place: dict[str, Any], *, scope: str) -> None:
        self._ledger = ledger
        self._place = place
        self._scope = scope

    @contextmanager
    def effect(self, name: str, data: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Record the intent, let the body act, record what it observed.

        Args:
            name: Of the effect.
            data: What is meant to be done.

        Yields:
            A dictionary for what the body observed.

        Raises:
            OutsideError: The body met an error of the operating system's.
        """
        intent = {"effect": name, **data}
        self._append(INTENT, intent)
        faults.reach(self._scope, name, "intended")
        observed: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield observed
        except ToolkitError as error:
            self._append(FAILED, {**intent, **observed, "error": error.message})
            raise
        except OSError as error:
            # A full disk, say, or a socket that is gone: the world outside, and no bug.
            outside = OutsideError(f"{name}: {error.strerror or error}")
            self._append(FAILED, {**intent, **observed, "error": outside.message})
            raise outside from error
        faults.reach(self._scope, name, "acted")
        seconds = round(time.monotonic() - began, 3)
        self._append(DONE, {**intent, **observed, "seconds": seconds})
        faults.reach(self._scope, name, "committed")

    def _append(self, kind: str, data: dict[str, Any]) -> None:
        # An entry's own time is the wall clock's, which may jump.
        at = Instant.now().as_data()
        self._ledger.append(kind, {**data, "at": at}, **self._place)
