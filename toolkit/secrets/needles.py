"""The forms in which a secret value would be found where it must not be. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

SHORTEST_BYTES = 8
"""Shorter values are found anywhere by chance: in 1 GB of random bytes, one of 4 bytes is."""

SHORTEST_WORD_BYTES = 12
"""Below this, a value of lower-case letters alone is likely a word that any image contains."""

_WINDOW_BYTES = 28
"""Of a longer encoded form its two ends are searched: one line break hides only one of them."""

_PEM_BODY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)-----END")


def is_searchable(value: bytes) -> bool:
    """Whether finding the value somewhere would mean that it was put there."""
    if len(value) < SHORTEST_BYTES or len(set(value)) < 4:
        return False
    return len(value) >= SHORTEST_WORD_BYTES or not (value.isalpha() and value.islower())


def needles(value: bytes) -> Mapping[bytes, str]:
    """Return what to search for: bytes to the name of the form; empty for an unsearchable value.

    Forms: raw, base64 (both alphabets, any alignment), hexadecimal, URL-quoted, as in JSON, and
    the lines and bytes of a private key in PEM.
    """
    if not is_searchable(value):
        return {}
    found: dict[bytes, str] = {}
    for form, needle in _forms(value):
        if len(needle) >= SHORTEST_BYTES:
            found.setdefault(needle, form)
    return found


def _forms(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "raw", value
    stripped = value.strip()
    yield "raw", stripped
    yield "raw", stripped.replace(b"\n", b"\r\n")
    yield "url", quote(stripped, safe="").encode()
    yield "url", quote_plus(stripped).encode()
    yield "url", quote(stripped).encode()
    yield from _as_json(stripped)
    digits = stripped.hex()[: 2 * _WINDOW_BYTES]
    yield "hex", digits.encode()
    yield "hex", digits.upper().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for each in _base64(stripped, encode):
            yield "base64", each
    yield from _of_key(value)


def _as_json(value: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    yield "json", json.dumps(text)[1:-1].encode()
    yield "json", json.dumps(text, ensure_ascii=False)[1:-1].encode()
    if "\n" in text:
        yield "escaped", text.replace("\n", "\\n").encode()


def _base64(value: bytes, encode: object) -> Iterator[bytes]:
    """Yield the digits that depend on the value alone, at each of the three alignments."""
    assert callable(encode)
    for shift in range(3):
        encoded: bytes = encode(b"\0" * shift + value)
        # The first digits hold bits of what stands before, the last ones of what comes after.
        first = -(-shift * 8 // 6)
        last = (shift + len(value)) * 8 // 6
        yield from _ends(encoded[first:last])


def _ends(encoded: bytes) -> Iterator[bytes]:
    if len(encoded) <= _WINDOW_BYTES:
        yield encoded
    else:
        yield encoded[:_WINDOW_BYTES]
        yield encoded[-_WINDOW_BYTES:]


def _of_key(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a key in PEM, which may be indented or joined, and its bytes."""
    for block in _PEM_BODY.finditer(value):
        lines = [line for line in block[1].split() if len(line) >= 48]
        for line in lines:
            yield "key", line
        try:
            der = base64.b64decode(b"".join(block[1].split()))
        except (binascii.Error, ValueError):
            continue
        # The first bytes say which kind of key it is, which all keys of a kind share.
        yield "key", der[36:68]
        yield "key", der[36:68].hex().encode()
