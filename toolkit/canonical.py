"""The one encoding of values and of files that digests are taken over. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """Return a value as JSON: keys sorted, no spaces, UTF-8; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def add_file(total: hashlib._Hash, kind: str, name: str, content: bytes) -> None:
    """Add a file to a digest.

    Args:
        total: The digest.
        kind: `file`, `exec` or `link`, say.
        name: Its path, as Python has it: a file's name need not be UTF-8.
        content: Its bytes, or where a link leads to.
    """
    head = f"{kind} {len(name)} {name} {len(content)}\n"
    total.update(head.encode(errors="surrogateescape") + content)
