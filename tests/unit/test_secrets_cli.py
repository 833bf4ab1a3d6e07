"""How the command line takes and tells what concerns secrets."""

import io
import sys
from dataclasses import replace
from typing import Any

from click import termui

from toolkit.cli import secrets
from toolkit.cli.context import given_value
from toolkit.project.model import SecretSpec
from toolkit.secrets.generate import Item
from toolkit.secrets.grants import Grant, Matrix


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
    assert given_value() == b"the-value"
    assert len(asked) == 2
    assert "the-value" not in "".join(capsys.readouterr())


class Told:
    """Stands in for the command line's context."""

    text = ""

    def record(self, _kind: str, **_data: object) -> None: ...

    def emit(self, _data: object, text: str) -> None:
        self.text = text


def test_who_changes_a_value_that_its_service_keeps_is_told_how_it_dies() -> None:
    password = SecretSpec("password", "password", "", (), None)
    matrix = Matrix(
        (
            Grant("test", "app", password),
            Grant("test", "database", replace(password, renew="renew-password")),
            Grant("test", "app", replace(password, name="token", kind="token")),
        )
    )
    told: Any = Told()
    items = [Item(role, "password", 2) for role in ("app", "database")]
    secrets._report_change(told, matrix, "test", items)
    assert told.text.count("'toolkit secrets rotate test password' ends it") == 1
    secrets._report_change(told, matrix, "test", [Item("app", "token", 2)])
    assert "rotate" not in told.text
