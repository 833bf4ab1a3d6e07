"""The one encoding of a value that digests are taken over. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """Return a value as JSON: keys sorted, no spaces, UTF-8; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
