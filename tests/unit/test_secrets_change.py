"""No vault is changed where the change could not be written down."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_leak_gate import Place
from tests.unit.test_secrets_rotate import FIRST, MATRIX, SECOND, MemoryVaults
from toolkit.errors import ConfigurationError, OutsideError, ToolkitError
from toolkit.secrets.change import apply_edit, set_parts
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.generate import Item, init
from toolkit.secrets.memory import VersionFile
from toolkit.state import State


class Edits:
    """The two ways in which people change a secret."""

    def __init__(self, state: Path) -> None:
        self.vaults = MemoryVaults()
        self.memory = VersionFile(State(state))
        self.announced: list[Item] = []

    def announce(self, items: Sequence[Item]) -> None:
        assert self.value() == FIRST["value"], "it is written down first"
        self.announced += items

    def refuse(self, _items: Sequence[Item]) -> None:
        raise OutsideError("the ledger could not be used")

    def value(self) -> bytes:
        return self.vaults.documents["web"].entries["api_token"].parts["value"]

    def set(self, announce) -> None:
        set_parts(
            MATRIX, self.vaults, self.memory,
            role="web", name="api_token", parts=SECOND, announce=announce, now=1.0,
        )  # fmt: skip

    def edit(self, announce) -> None:
        before = self.vaults.documents["web"]
        after = Document("test", "web", {"api_token": Entry("api_token", 1, 0.0, SECOND)})
        apply_edit(
            MATRIX, self.vaults, self.memory,
            before=before, after=after, announce=announce, now=1.0,
        )  # fmt: skip


@pytest.fixture(params=["set", "edit"])
def way(request) -> str:
    return request.param


def test_a_change_is_written_down_first(tmp_path: Path, way: str) -> None:
    edits = Edits(tmp_path / "state")
    getattr(edits, way)(edits.announce)
    assert edits.announced == [Item("web", "api_token", 2), Item("app", "api_token", 2)]
    assert edits.value() == SECOND["value"]
    assert edits.memory.highest("test", "app", "api_token") == 2


def test_nothing_changes_where_the_ledger_refuses(tmp_path: Path, way: str) -> None:
    edits = Edits(tmp_path / "state")
    with pytest.raises(OutsideError):
        getattr(edits, way)(edits.refuse)
    assert edits.value() == FIRST["value"]
    assert edits.memory.highest("test", "web", "api_token") is None, "or it would be called older"


def test_nothing_changes_where_versions_cannot_be_remembered(tmp_path: Path, way: str) -> None:
    (tmp_path / "file").touch()
    edits = Edits(tmp_path / "file" / "state")
    with pytest.raises(ConfigurationError):
        getattr(edits, way)(edits.announce)
    assert edits.value() == FIRST["value"]


def test_nothing_changes_where_the_disk_is_full(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = Edits(tmp_path / "state")

    def fill(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(ToolkitError, match="No space left"):
        getattr(edits, way)(edits.announce)
    assert edits.value() == FIRST["value"]


def test_a_secret_whose_rotation_is_not_finished_is_left_alone(tmp_path: Path, way: str) -> None:
    """Its old value would never be proven dead."""
    edits = Edits(tmp_path / "state")
    (entry,) = edits.vaults.documents["app"].entries.values()
    old = replace(entry, name="api_token.previous")
    edits.vaults.documents["app"] = Document("test", "app", {"api_token": entry, old.name: old})
    before = dict(edits.vaults.documents)
    with pytest.raises(ConfigurationError, match="not finished") as caught:
        getattr(edits, way)(edits.announce)
    assert "'toolkit secrets rotate test api_token'" in (caught.value.hint or "")
    assert edits.vaults.documents == before
    assert edits.announced == []


def test_what_init_makes_is_written_down_first(tmp_path: Path) -> None:
    place = Place(tmp_path)
    vault, memory = place.vaults.path("app"), VersionFile(place.state)
    vault.unlink()

    def refuse(items: Sequence[Item]) -> None:
        assert items == (Item("app", "api_token", 1),)
        raise OutsideError("the ledger could not be used")

    with pytest.raises(OutsideError):
        init(place.project, place.vaults, memory, announce=refuse, now=1.0)
    assert not vault.exists()
    assert memory.highest("test", "app", "api_token") is None
    announced: list[Item] = []
    for _ in range(2):
        init(place.project, place.vaults, memory, announce=announced.extend, now=1.0)
    assert announced == [Item("app", "api_token", 1)], "the second time there is nothing to make"
