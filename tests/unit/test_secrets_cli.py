"""How the command line takes and tells what concerns secrets."""

import io
import sys

from click import termui

from toolkit.cli import secrets


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_twice_for_a_value_that_is_not_shown(monkeypatch, capsys) -> None:
    asked = []

    def hidden(prompt: str) -> str:
        asked.append(prompt)
        return "the-value"

    monkeypatch.setattr(termui, "hidden_prompt_func", hidden)
    monkeypatch.setattr(sys, "stdin", Terminal("typed and shown"))
    assert secrets._from_standard_input() == b"the-value"
    assert len(asked) == 2
    assert "the-value" not in "".join(capsys.readouterr())
