"""The hash chain of ledger entries. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.canonical import canonical_json

GENESIS = "0" * 64

CHAINED = ("sequence", "time", "kind", "by", "environment", "role", "roll", "data", "previous")


def entry_hash(entry: Mapping[str, Any]) -> str:
    """Return the hash of an entry, which covers that of the one before it."""
    return hashlib.sha256(canonical_json({name: entry[name] for name in CHAINED})).hexdigest()


def first_break(entries: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the sequence number at which a chain is broken, or None when it is whole.

    Args:
        entries: All of them, in order.
    """
    previous = GENESIS
    for expected, entry in enumerate(entries, start=1):
        if (
            entry["sequence"] != expected
            or entry["previous"] != previous
            or entry_hash(entry) != entry["hash"]
        ):
            return expected
        previous = entry["hash"]
    return None
