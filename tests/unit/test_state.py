"""A state directory is private; another directory is left as it is."""

import stat
from pathlib import Path

import pytest

from toolkit.cli.main import run
from toolkit.errors import ConfigurationError, OutsideError
from toolkit.ledger.database import open_ledger
from toolkit.state import State, exclusive


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


def test_history_of_what_nobody_knows_is_no_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.set_up("attic", is_up=True)
    ledger.close()
    words = ["--project", str(tmp_path), "--state", str(tmp_path), "history"]
    assert run([*words, "nowhere"]) == 2
    assert "there is: attic" in capsys.readouterr().err
    assert run([*words, "attic", "web"]) == 0
    assert capsys.readouterr().out == "nothing was done yet in attic web\n"
    assert run([*words, "--verify"]) == 0
    assert "whole: 1 entries" in capsys.readouterr().err


def test_history_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    place = {"environment": "test", "role": "app", "roll": "roll-1"}
    ledger.append("roll.undoing", {"reason": "it failed\nat length"}, **place)
    ledger.append("roll.resumed", {"started_by": "ada@host"}, **place)
    ledger.close()
    assert run(["--state", str(tmp_path), "history"]) == 0
    _, resumed, undoing = capsys.readouterr().out.splitlines()
    assert resumed.endswith("started by ada@host") and " roll-1 " in resumed
    assert undoing.endswith("it failed")


def test_a_lock_that_cannot_be_had_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(OutsideError, match="could not be opened"),
        exclusive(tmp_path / "lock", doing="x"),
    ):
        pass
