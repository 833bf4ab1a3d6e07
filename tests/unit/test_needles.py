"""The forms in which a secret value is searched for."""

import base64
import json
import secrets
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from toolkit.secrets.authority import create_authority, issue
from toolkit.secrets.needles import is_searchable, needles

VALUES = [
    b"x7Qz-9Kd",
    b"a pass phrase, with 'quotes' and \"more\" & $HOME `id`",
    "pässwörd-ключ-鍵-0123".encode(),
    b"first line\nsecond line\nthird line of it",
    bytes(range(200, 256)),
    secrets.token_bytes(48),
    secrets.token_urlsafe(32).encode(),
]


def is_found(value: bytes, haystack: bytes) -> bool:
    return any(needle in haystack for needle in needles(value))


@pytest.mark.parametrize("value", VALUES, ids=map(str, range(len(VALUES))))
@pytest.mark.parametrize("shift", range(3))
def test_every_form_is_found_wherever_it_stands(value, shift):
    around = secrets.token_bytes(shift + 30)
    other = secrets.token_bytes(len(value))
    for dress in (
        lambda inner: around + inner + around,
        lambda inner: base64.b64encode(around + inner + around),
        lambda inner: base64.urlsafe_b64encode(around + inner + around),
        lambda inner: (around + inner + around).hex().encode(),
        lambda inner: (around + inner + around).hex().upper().encode(),
        lambda inner: b"user:" + quote(inner, safe="").encode() + b"@host",
    ):
        assert is_found(value, dress(value))
        assert not is_found(value, dress(other))


def test_base64_broken_into_lines_is_found():
    value = secrets.token_urlsafe(32).encode()
    for shift in range(60):
        assert is_found(value, base64.encodebytes(b"x" * shift + value + b"y" * 30))


@pytest.mark.parametrize("value", VALUES[1:4])
def test_text_is_found_in_json(value):
    text = value.decode()
    for ascii_only in (True, False):
        assert is_found(value, json.dumps({"a": text}, ensure_ascii=ascii_only).encode())


@pytest.mark.parametrize("value", [b"", b"short", b"aaaaaaaaaaaa", b"postgres", b"abababab"])
def test_values_that_anything_contains_are_not_searched_for(value):
    assert not is_searchable(value)
    assert not needles(value)


def pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


KEYS = {
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_found_in_other_dress_and_another_key_is_not(kind):
    key, other = KEYS[kind](), KEYS[kind]()
    text = pem(key)
    indented = text.replace(b"\n", b"\n    ")
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    forms = (text, indented, json.dumps(text.decode()).encode(), der, der.hex().encode())
    for haystack in (*forms, base64.b64encode(text), base64.encodebytes(b"x" + text)):
        assert is_found(text, haystack)
    for haystack in (pem(other), base64.b64encode(pem(other)), pem(other).hex().encode()):
        assert not is_found(text, haystack)


def test_a_certificate_is_not_taken_for_its_key():
    authority = create_authority("service", "test", now=1_700_000_000)
    for _ in range(20):
        certificate, key = issue(authority, ["a.internal"], now=1_700_000_000)
        assert not is_found(key, certificate)
        assert is_found(key, certificate + key)
