"""A state directory is private; another directory is left as it is."""

import stat
from pathlib import Path

import pytest

from toolkit.cli.main import run
from toolkit.errors import ConfigurationError
from toolkit.ledger.database import open_ledger
from toolkit.state import State


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_one_is_private(tmp_path: Path) -> None:
    State(tmp_path / "a" / "state").prepare()
    assert mode(tmp_path / "a" / "state") == 0o700


@pytest.mark.parametrize("content", ["", "ledger.db", "store"])
def test_an_empty_one_and_one_of_ours_become_private(tmp_path: Path, content: str) -> None:
    root = tmp_path / "state"
    root.mkdir()
    root.chmod(0o755)
    if content:
        (root / content).mkdir()
    State(root).prepare()
    assert mode(root) == 0o700


def test_one_with_other_things_is_refused_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "home"
    (root / "work").mkdir(parents=True)
    root.chmod(0o755)
    with pytest.raises(ConfigurationError, match="holds other things"):
        State(root).prepare()
    assert mode(root) == 0o755
    assert [path.name for path in root.iterdir()] == ["work"]
    root.chmod(0o700)
    State(root).prepare()


def test_it_belongs_to_one_service(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.need_service("notes")
    state.prepare_for("notes")
    state.prepare_for("notes")
    for refuse in (state.need_service, state.prepare_for):
        with pytest.raises(ConfigurationError, match="belongs to the service notes") as caught:
            refuse("shop")
        assert "--state" in (caught.value.hint or "")
    (tmp_path / "state" / "service").write_text("shop\n")
    state.prepare_for("shop")


def test_what_a_killed_command_left_of_the_note_is_made_whole(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.prepare()
    (tmp_path / "state" / "service").touch()
    state.need_service("notes")
    state.prepare_for("notes")
    with pytest.raises(ConfigurationError):
        state.need_service("shop")


@pytest.mark.parametrize("content", [[], ["work"]])
@pytest.mark.parametrize("words", [["history"], ["history", "--verify"], ["images", "list"]])
def test_looking_makes_nothing(
    tmp_path: Path, words: list[str], content: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "home"
    root.mkdir()
    root.chmod(0o755)
    for name in content:
        (root / name).mkdir()
    assert run(["--state", str(root), *words, "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert mode(root) == 0o755
    assert [path.name for path in root.iterdir()] == content
    assert run(["--state", str(root / "none"), *words]) == 0
    assert not (root / "none").exists()


def test_what_is_there_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.append("something", {})
    ledger.close()
    assert run(["--state", str(tmp_path), "history"]) == 0
    assert "something" in capsys.readouterr().out
