"""Every effect is intent → act → observe → commit, in the ledger's chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit import faults
from toolkit.errors import ToolkitError
from toolkit.ledger.ledger import Ledger

INTENT, DONE, FAILED = "effect.intent", "effect.done", "effect.failed"

SWITCHED, UNDOING = "roll.switched", "roll.undoing"
"""Entries of a roll: the new machines serve for good; it is on its way back."""


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
        """
        intent = {"effect": name, **data}
        self._ledger.append(INTENT, intent, **self._place)
        faults.reach(self._scope, name, "intended")
        observed: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield observed
        except ToolkitError as error:
            failed = {**intent, **observed, "error": error.message}
            self._ledger.append(FAILED, failed, **self._place)
            raise
        faults.reach(self._scope, name, "acted")
        seconds = round(time.monotonic() - began, 3)
        self._ledger.append(DONE, {**intent, **observed, "seconds": seconds}, **self._place)
        faults.reach(self._scope, name, "committed")
