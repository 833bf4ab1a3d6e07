"""The forms in which a secret value would be found where it must not be. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

SHORTEST_BYTES = 8
"""Shorter values are found anywhere by chance: in 1 GB of random bytes, one of 4 bytes is."""

SHORTEST_WORD_BYTES = 12
"""Below this, a value of lower-case letters alone is likely a word that any image contains."""

_WINDOW_BYTES = 28
"""Of a longer encoded form its two ends are searched: one line break hides only one of them."""

_OVERLAP_BYTES = 12
"""Private bytes in a line of PEM that make it one to search for."""

_PEM_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----\s+([A-Za-z0-9+/=\s]+)-----END \1-----"
)


def is_searchable(value: bytes) -> bool:
    """Whether finding the value somewhere would mean that it was put there."""
    if len(value) < SHORTEST_BYTES or len(set(value)) < 4:
        return False
    return len(value) >= SHORTEST_WORD_BYTES or not (value.isalpha() and value.islower())


def needles(value: bytes) -> Mapping[bytes, str]:
    """Return what to search for: bytes to the name of the form; empty for an unsearchable value.

    Forms: raw, base64 (both alphabets, any alignment), hexadecimal, URL-quoted, as in JSON, and
    what is private of a key in PEM.
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
    keys = list(_PEM_BLOCK.finditer(value))
    if keys:
        for block in keys:
            yield from _of_key(block)
        return
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


def _of_key(block: re.Match[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield what is private of a key in PEM: whole lines, and its numbers in other forms.

    The rest of it is the public key, which every certificate has too, or the same in all keys.
    """
    lines = block[2].split()
    try:
        der = base64.b64decode(b"".join(lines))
        numbers = _private_numbers(block[0])
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Under a passphrase, or of a kind that is not known: all but the first line is its own.
        yield from (("key", line) for line in lines[1:4])
        return
    pieces: list[bytes] = []
    for number in numbers:
        yield "key", number[:_WINDOW_BYTES]
        yield "hex", number.hex()[: 2 * _WINDOW_BYTES].encode()
        yield "hex", number.hex()[: 2 * _WINDOW_BYTES].upper().encode()
        start = der.find(number)
        position = 0
        for line in lines:
            after = position + len(line) // 4 * 3
            low, high = max(start, position), min(start + len(number), after)
            if start >= 0 and high - low >= _OVERLAP_BYTES:
                # Digits that are the number's alone, in a line that begins at `position`.
                pieces.append(line[-(-(low - position) * 4 // 3) : (high - position) * 4 // 3])
            position = after
    for piece in pieces[:2]:
        yield "key", piece
        yield from (("base64", each) for each in _base64(piece, base64.b64encode))


def _private_numbers(pem: bytes) -> list[bytes]:
    """Return the private numbers of a key, as they are in its encoding.

    Raises:
        ValueError, TypeError, UnsupportedAlgorithm: It cannot be read.
    """
    key = load_pem_private_key(pem, password=None)
    if isinstance(key, rsa.RSAPrivateKey):
        values = key.private_numbers()
        numbers = (values.d, values.p)
        return [number.to_bytes((number.bit_length() + 7) // 8, "big") for number in numbers]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        return [key.private_numbers().private_value.to_bytes(size, "big")]
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return [key.private_bytes_raw()]
    raise UnsupportedAlgorithm("not a kind that servers use")
