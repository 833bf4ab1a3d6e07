"""Tells that a secret changed without knowing it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from toolkit.model import Secret


def fingerprints(secrets: Iterable[Secret]) -> str:
    """Return a digest over the names and versions of secrets, never over their values.

    A digest over a value would let whoever reads it try guesses.
    """
    pairs = sorted((secret.name, secret.version) for secret in secrets)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
