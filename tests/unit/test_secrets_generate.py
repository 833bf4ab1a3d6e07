"""What is made, kept and changed: plans over documents."""

import pytest

from toolkit.errors import ConfigurationError
from toolkit.project.model import SecretSpec
from toolkit.secrets.change import edited_names, parts_from_bytes, with_parts
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.generate import Item, Outcome, complete, make_parts
from toolkit.secrets.grants import Grant, Matrix
from toolkit.secrets.survey import Presence, describe

PASSWORD = SecretSpec("database_password", "password", "", (), 30)
TOKEN = SecretSpec("api_token", "token", "", (), None)
FILE = SecretSpec("licence", "file", "", (), None)
MATRIX = Matrix(
    (
        Grant("a", "app", PASSWORD),
        Grant("a", "app", TOKEN),
        Grant("a", "app", FILE),
        Grant("a", "database", PASSWORD),
    )
)
NOW = 1_000_000.0


def entry(name: str, version: int, value: bytes) -> Entry:
    return Entry(name, version, 5.0, {"value": value})


def plan(
    documents: dict[str, Document | None], floor: int = 0
) -> tuple[dict[str, Document], Outcome]:
    written, outcome = complete(
        MATRIX,
        "a",
        documents,
        make=lambda spec: make_parts(spec, authority=lambda: None, now=NOW),
        floor=lambda _role, _name: floor,
        now=NOW,
    )
    return {document.role: document for document in written}, outcome


def test_a_shared_password_is_one_value_in_both_vaults() -> None:
    written, outcome = plan({"app": None, "database": None})
    of_app = written["app"].entries["database_password"]
    assert of_app == written["database"].entries["database_password"]
    assert of_app.version == 1 and len(of_app.parts["value"]) == 43
    assert of_app.parts != written["app"].entries["api_token"].parts
    assert set(written["database"].entries) == {"database_password"}
    assert outcome.by_hand == (Item("app", "licence", 0),)


def test_what_exists_is_kept_and_what_is_missing_is_added() -> None:
    documents = plan({"app": None, "database": None})[0]
    again, outcome = plan(dict(documents))
    assert again == {} and outcome.made == ()
    assert len(outcome.kept) == 3
    partial, outcome = plan({**documents, "database": None})
    assert set(partial) == {"database"}
    assert partial["database"] == documents["database"]
    assert outcome.made == (Item("database", "database_password", 1),)


def test_a_change_that_reached_one_vault_only_is_completed() -> None:
    documents: dict[str, Document | None] = {
        "app": Document("a", "app", {"database_password": entry("database_password", 2, b"new")}),
        "database": Document(
            "a", "database", {"database_password": entry("database_password", 1, b"old")}
        ),
    }
    written, _ = plan(documents)
    assert written["database"].entries["database_password"].parts == {"value": b"new"}


def test_two_values_of_one_version_are_refused_without_quoting_them() -> None:
    documents: dict[str, Document | None] = {
        role: Document("a", role, {"database_password": entry("database_password", 1, value)})
        for role, value in (("app", b"canary-1"), ("database", b"canary-2"))
    }
    with pytest.raises(ConfigurationError, match="app and database share") as caught:
        plan(documents)
    assert "canary" not in str(caught.value)
    hint = caught.value.hint or ""
    assert "toolkit secrets set a " in hint and "ENV" not in hint


def test_a_lost_secret_comes_back_with_a_version_never_seen() -> None:
    written, _ = plan({"app": None, "database": None}, floor=7)
    assert written["database"].entries["database_password"].version == 8


def test_a_secret_of_another_kind_than_declared_is_refused() -> None:
    wrong = Entry("api_token", 1, 5.0, {"certificate": b"x", "key": b"y"})
    with pytest.raises(ConfigurationError, match="declared as token"):
        plan({"app": Document("a", "app", {"api_token": wrong}), "database": None})


def test_a_certificate_without_names_or_for_other_names_is_left_to_people() -> None:
    def fail() -> None:
        raise AssertionError("no authority is needed")

    for names in ((), ("www.example.com", "a.internal")):
        secret = SecretSpec("tls", "tls", "", names, None)
        assert make_parts(secret, authority=fail, now=NOW) is None


def test_a_new_value_gets_the_next_version_everywhere() -> None:
    documents: dict[str, Document | None] = {
        "app": Document("a", "app", {"database_password": entry("database_password", 3, b"x")}),
        "database": None,
    }
    for floor, version in ((0, 4), (9, 10)):
        changed = with_parts(
            "a",
            documents,
            name="database_password",
            parts={"value": b"new"},
            floor=floor,
            now=NOW,
        )
        assert [d.role for d in changed] == ["app", "database"]
        for document in changed:
            assert document.entries["database_password"].version == version
            assert document.entries["database_password"].parts == {"value": b"new"}


@pytest.mark.parametrize(
    ("secret", "content", "value"),
    [
        (PASSWORD, b"x\n", b"x"),
        (PASSWORD, b"x\r\n", b"x"),
        (PASSWORD, b" x \n\n", b" x \n"),
        (TOKEN, "ü'\"\\".encode(), "ü'\"\\".encode()),
        (FILE, b"\x00\xff\n", b"\x00\xff\n"),
    ],
)
def test_what_people_hand_over_is_taken_as_it_is(
    secret: SecretSpec, content: bytes, value: bytes
) -> None:
    assert parts_from_bytes(secret, content, "x") == {"value": value}


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_nothing_is_no_value(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="no value for database_password"):
        parts_from_bytes(PASSWORD, content, "standard input")


def test_an_edit_changes_only_what_it_changed() -> None:
    before = Document("a", "app", {"api_token": entry("api_token", 4, b"x")})
    declared = MATRIX.secrets("a", "app")

    def names(*entries: Entry) -> tuple[str, ...]:
        return edited_names(before, Document("a", "app", {e.name: e for e in entries}), declared)

    assert names(entry("api_token", 99, b"x")) == ()
    assert names(entry("api_token", 4, b"y")) == ("api_token",)
    assert names(entry("api_token", 4, b"x"), entry("licence", 1, b"z")) == ("licence",)
    with pytest.raises(ConfigurationError, match="api_token was removed"):
        names()
    with pytest.raises(ConfigurationError, match="other is not declared"):
        names(entry("api_token", 4, b"x"), entry("other", 1, b"z"))
    with pytest.raises(ConfigurationError, match="api_token is empty"):
        names(entry("api_token", 4, b""))


def test_a_listing_tells_age_and_presence_and_no_value() -> None:
    document = Document(
        "a",
        "app",
        {
            "database_password": Entry(
                "database_password", 2, NOW - 31 * 86400, {"value": b"canary"}
            ),
            "stray": entry("stray", 1, b"canary"),
        },
    )
    found = {s.name: s for s in describe("app", document, MATRIX.secrets("a", "app"), now=NOW)}
    assert found["database_password"].is_overdue
    assert found["database_password"].age_days == 31
    assert found["api_token"].presence is Presence.MISSING
    assert found["stray"].presence is Presence.UNDECLARED
    assert "canary" not in repr([status.as_data() for status in found.values()])
