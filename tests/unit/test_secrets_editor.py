"""What a person types is not lost over a mistake in it."""

import sys
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.editor import edit_document

BEFORE = Document("a", "app", {"token": Entry("token", 1, 1.0, {"value": b"one"})})


@pytest.fixture(autouse=True)
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that adds a letter to the value whenever it is opened."""
    program = tmp_path / "editor"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n"
        "file.write_text(file.read_text().replace('value: ', 'value: x'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(program))
    monkeypatch.delenv("VISUAL", raising=False)


def need_two_letters(document: Document) -> None:
    if not document.entries["token"].parts["value"].startswith(b"xx"):
        raise ConfigurationError("there is one x too few")


def test_refused_document_is_edited_again_as_it_was_left() -> None:
    problems: list[str] = []

    def ask_again(problem: str) -> bool:
        problems.append(problem)
        return True

    after = edit_document(BEFORE, check=need_two_letters, ask_again=ask_again)
    assert after.entries["token"].parts == {"value": b"xxone"}
    assert problems == ["there is one x too few"]


def test_refused_document_is_an_error_when_nobody_goes_on() -> None:
    with pytest.raises(ConfigurationError, match="one x too few"):
        edit_document(BEFORE, check=need_two_letters, ask_again=lambda _problem: False)
