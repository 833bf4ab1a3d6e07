"""The plaintext of vault files: round trips, and refusals that quote nothing."""

import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import ConfigurationError
from toolkit.secrets.document import Document, Entry, parse, serialise

CANARY = "canary-3f9a71c2"

VALID = f"""\
environment: production
role: app
secrets:
  token:
    name: token
    version: 2
    created: 2026-01-31T12:00:00Z
    value: "{CANARY}"
"""

values = st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "ignore")))
parts = st.one_of(
    st.fixed_dictionaries({"value": values}),
    st.fixed_dictionaries({"certificate": values, "key": values}),
)


def read(text: str) -> Document:
    return parse(text.encode(), environment="production", role="app", where="vault.yml")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
        st.tuples(st.integers(1, 10**6), st.integers(0, 2**32), parts),
        max_size=4,
    )
)
def test_every_value_comes_back_as_it_was(content: dict) -> None:
    entries = {n: Entry(n, version, created, p) for n, (version, created, p) in content.items()}
    document = Document("production", "app", entries)
    plaintext = serialise(document)
    assert parse(plaintext, environment="production", role="app", where="x") == document


def test_a_key_is_written_as_lines_that_people_can_read() -> None:
    pem = b"-----BEGIN X-----\nabc\n-----END X-----\n"
    text = serialise(Document("a", "b", {"n": Entry("n", 1, 0.0, {"value": pem})})).decode()
    assert "    value: |\n      -----BEGIN X-----\n      abc\n" in text


def test_what_is_valid_is_read() -> None:
    entry = read(VALID).entries["token"]
    assert (entry.version, entry.parts["value"]) == (2, CANARY.encode())
    assert CANARY not in repr(read(VALID))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("environment: production", "environment: staging", "made for environment 'staging'"),
        ("role: app", "role: web", "made for role 'web'"),
        ("name: token", "name: other", "its content is the secret 'other'"),
        ("name: token", f"name: '{CANARY} x'", "unreadable"),
        ("version: 2", "version: 0", "version: must be a whole number"),
        ("version: 2", "version: true", "version: must be a whole number"),
        ("version: 2", f"version: {CANARY}", "version: must be a whole number"),
        ("created: 2026-01-31T12:00:00Z", "created: soon", "created: must be a time"),
        (f'value: "{CANARY}"', "value: 12345", "put it in quotes"),
        (f'value: "{CANARY}"', "certificate: x", "must have a value, or"),
        (f'value: "{CANARY}"', f"value: *{CANARY}", "not YAML, line 8"),
        (f'value: "{CANARY}"', f"value: !{CANARY} x", "not YAML, line 8"),
        (f'value: "{CANARY}"', f'value: "{CANARY}', "not YAML"),
        (f'value: "{CANARY}"', f'value: "{CANARY}"\n    encoding: base64', "is not base64"),
        (f'value: "{CANARY}"', f'value: "{CANARY}"\n    encoding: rot13', "must be base64"),
        ("secrets:", f"{CANARY}: 1\nsecrets:", "exactly environment, role and secrets"),
        ("  token:\n", f"  token: {CANARY}\n  other:\n", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_refused_without_quoting_it(old: str, new: str, reason: str) -> None:
    assert old in VALID
    with pytest.raises(ConfigurationError) as caught:
        read(VALID.replace(old, new))
    assert reason in caught.value.message
    told = "".join(traceback.format_exception(caught.value)) + (caught.value.hint or "")
    assert CANARY not in told


def test_bytes_that_are_no_text_are_refused() -> None:
    for content in (b"\xff\xfe\x00", b"", b"[]", b"\x00"):
        with pytest.raises(ConfigurationError):
            parse(content, environment="production", role="app", where="vault.yml")
