"""The ledger: one transaction each, append-only, and whoever tampers with it is seen."""

import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from toolkit.errors import ConfigurationError, OutsideError, ToolkitError
from toolkit.ledger.chain import CHAINED, GENESIS, entry_hash, first_break
from toolkit.ledger.database import look_into, open_ledger
from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.roll.journal import DONE, FAILED, INTENT, Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = open_ledger(path)
    yield opened
    opened.close()


def machine(name: str, **values: object) -> MachineRecord:
    fields = {
        "name": name, "environment": "test", "role": "app", "image": "sha256:1", "release": None,
        "address": "10.0.0.2", "standing": "new", "inputs": "x", "since": 1.0,
    }  # fmt: skip
    return MachineRecord(**{**fields, **values})


def roll(name: str, **values: object) -> RollRecord:
    fields = {
        "id": name, "environment": "test", "role": "app", "image": "sha256:2", "release": None,
        "previous": "sha256:1", "outcome": "running", "by": "me", "started": 1.0, "ended": None,
        "order": {"plan": [1]},
    }  # fmt: skip
    return RollRecord(**{**fields, **values})


def tamper(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def test_new_ledger_is_whole_and_private(ledger: Ledger, path: Path) -> None:
    assert ledger.first_break() is None
    assert path.stat().st_mode & 0o077 == 0


def test_ledger_of_an_earlier_toolkit_is_brought_up_to_date(path: Path) -> None:
    ledger = open_ledger(path)
    ledger.start_roll(roll("r", is_rollback=True))
    ledger.close()
    tamper(path, "ALTER TABLE rolls DROP COLUMN is_rollback")
    tamper(path, "PRAGMA user_version = 1")
    for _ in range(2):
        ledger = open_ledger(path)
        assert [one.is_rollback for one in ledger.rolls("test")] == [False]
        assert ledger.first_break() is None
        ledger.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET data = '{\"n\": 99}' WHERE sequence = 3",
        "UPDATE entries SET by = 'nobody' WHERE sequence = 3",
        "UPDATE entries SET time = time + 1 WHERE sequence = 3",
        "UPDATE entries SET kind = 'other' WHERE sequence = 3",
        "UPDATE entries SET environment = 'production' WHERE sequence = 3",
        "UPDATE entries SET hash = previous WHERE sequence = 3",
        "DELETE FROM entries WHERE sequence = 3",
    ],
)
def test_tampering_is_found_where_it_happened(ledger: Ledger, path: Path, statement: str) -> None:
    for number in range(5):
        ledger.append("test", {"n": number}, environment="test")
    assert ledger.first_break() is None
    tamper(path, statement)
    assert ledger.first_break() == 3


def test_tampering_with_a_hash_of_ones_own_breaks_the_next_entry(
    ledger: Ledger, path: Path
) -> None:
    for number in range(4):
        ledger.append("test", {"n": number})
    entry = dict(ledger.entries()[-2], data={"n": 77})
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE entries SET data = '{\"n\": 77}', hash = ? WHERE sequence = 2",
            (entry_hash(entry),),
        )
    connection.close()
    assert ledger.first_break() == 3


values = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5)))


@given(st.lists(values, min_size=1, max_size=6), st.data())
def test_any_change_of_any_field_breaks_the_chain(documents: list[dict], data) -> None:
    entries, previous = [], GENESIS
    for number, document in enumerate(documents, start=1):
        entry = dict.fromkeys(CHAINED, "x") | {
            "sequence": number, "data": document, "previous": previous,
        }  # fmt: skip
        previous = entry_hash(entry)
        entries.append({**entry, "hash": previous})
    assert first_break(entries) is None
    index = data.draw(st.integers(0, len(entries) - 1))
    field = data.draw(st.sampled_from([*CHAINED, "hash"]))
    entries[index] = {**entries[index], field: "changed"}
    assert first_break(entries) == index + 1


def test_entries_are_found_by_what_they_are_about(ledger: Ledger) -> None:
    ledger.append("a", {}, environment="one", role="web")
    ledger.append("b", {}, environment="one", role="app", roll="r")
    ledger.append("c", {}, environment="two")
    assert [one["kind"] for one in ledger.entries()] == ["c", "b", "a"]
    assert [one["kind"] for one in ledger.entries(environment="one")] == ["b", "a"]
    assert [one["kind"] for one in ledger.entries(role="web")] == ["a"]
    assert [one["kind"] for one in ledger.entries(kinds=["c", "a"], limit=1)] == ["c"]
    assert [one["kind"] for one in ledger.entries(without=["c"])] == ["b", "a"]
    assert [one["kind"] for one in ledger.roll_entries("r")] == ["b"]


def test_machines_come_in_the_order_in_which_they_were_recorded(ledger: Ledger) -> None:
    """Whatever the clock said: it may have been set back meanwhile."""
    ledger.add_machines([machine("z", since=2e9), machine("a", since=1.0)])
    assert [one.name for one in ledger.machines("test")] == ["z", "a"]
    ledger.set_standing(["a"], "warm", warm_until=5.0)
    assert [one.standing for one in ledger.machines("test")] == ["new", "warm"]
    ledger.set_standing(["a"], "member")
    assert ledger.machines("test")[1].warm_until is None
    ledger.forget_machines(["z", "unknown"])
    assert [one.name for one in ledger.machines("test", "app")] == ["a"]
    assert ledger.machines("test", "web") == []


def test_rolls_come_newest_first_whatever_the_clock_said(ledger: Ledger) -> None:
    ledger.start_roll(roll("first", started=2e9))
    ledger.end_roll("first", "rolled", {})
    ledger.start_roll(roll("second", started=1.0))
    assert [one.id for one in ledger.rolls("test")] == ["second", "first"]
    assert [one.id for one in ledger.unfinished_rolls("test")] == ["second"]
    assert ledger.unfinished_rolls("other") == []
    ledger.end_roll("second", "discarded", {"why": "x"})
    assert ledger.unfinished_rolls("test") == []
    assert ledger.entries()[0]["data"]["why"] == "x"


def test_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    ledger.start_roll(roll("one"))
    before = ledger.entries()
    with pytest.raises(OutsideError):
        ledger.start_roll(roll("one"))
    assert ledger.entries() == before
    with pytest.raises(OutsideError):
        ledger.add_machines([machine("new"), machine("new")])
    assert ledger.machines("test") == []


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database, but long enough to be looked at " * 40)
    with pytest.raises(OutsideError):
        open_ledger(path)


def test_ledger_of_a_newer_toolkit_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.close()
    tamper(path, "PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="newer"):
        open_ledger(path)


def test_a_ledger_that_did_not_open_is_let_go_of(ledger: Ledger, path: Path) -> None:
    ledger.close()
    tamper(path, "PRAGMA user_version = 99")
    gc.disable()
    try:
        with pytest.raises(ConfigurationError):
            open_ledger(path)
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert not [link for link in links if str(link.readlink()).startswith(str(path))]
    finally:
        gc.enable()


def test_many_writers_keep_one_chain(path: Path) -> None:
    open_ledger(path).close()

    def write() -> None:
        own = open_ledger(path)
        for number in range(15):
            own.append("x", {"n": number})
        own.close()

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = open_ledger(path)
    assert len(ledger.entries()) == 90
    assert ledger.first_break() is None
    ledger.close()


def test_guard_is_asked_before_every_transaction(ledger: Ledger) -> None:
    def refuse(_connection: object) -> None:
        raise ToolkitError("no")

    guarded = ledger.guarded(refuse)
    with pytest.raises(ToolkitError, match="no"):
        guarded.append("x", {})
    assert ledger.entries() == []


def test_journal_says_what_was_meant_and_what_was_observed(ledger: Ledger) -> None:
    journal = Journal(ledger, {"environment": "test", "roll": "r"}, scope="roll")
    with journal.effect("launch", {"machines": ["a"]}) as observed:
        assert [one["kind"] for one in ledger.entries()] == [INTENT]
        observed["pid"] = 7
    with pytest.raises(OutsideError), journal.effect("smoke", {"machines": ["a"]}) as observed:
        observed["passed"] = 3
        raise OutsideError("it broke")
    with pytest.raises(ZeroDivisionError), journal.effect("drain", {"machines": ["a"]}):
        _ = 1 / 0
    kinds = [(one["kind"], one["data"]["effect"]) for one in ledger.roll_entries("r")]
    assert kinds == [
        (INTENT, "launch"), (DONE, "launch"), (INTENT, "smoke"), (FAILED, "smoke"),
        (INTENT, "drain"),
    ]  # fmt: skip
    assert ledger.roll_entries("r")[1]["data"]["pid"] == 7
    failed = ledger.roll_entries("r")[3]["data"]
    assert failed["error"] == "it broke"
    assert failed["passed"] == 3


def test_looking_waits_for_nobody_who_writes(path: Path) -> None:
    with closing(open_ledger(path)) as writer:
        writer.append("before", {})
        with writer.transaction(), closing(look_into(path)) as reader:
            assert [one["kind"] for one in reader.entries()] == ["before"]


def test_looking_writes_nothing(path: Path) -> None:
    with closing(open_ledger(path)) as writer:
        writer.append("before", {})
    with closing(look_into(path)) as reader:
        with pytest.raises(OutsideError, match="readonly") as caught:
            reader.append("after", {})
        assert [one["kind"] for one in reader.entries()] == ["before"]
    assert "read-only" in (caught.value.hint or "")


def test_looking_finds_what_a_killed_writer_has_written(path: Path) -> None:
    program = (
        "import os, pathlib, sys; from toolkit.ledger.database import open_ledger; "
        "open_ledger(pathlib.Path(sys.argv[1])).append('last', {}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
    assert path.with_name("ledger.db-wal").stat().st_size
    with closing(look_into(path)) as reader:
        assert [one["kind"] for one in reader.entries()] == ["last"]


def test_looking_where_there_is_nothing_makes_nothing(path: Path) -> None:
    with closing(look_into(path)) as reader:
        assert reader.entries() == []
    assert not path.exists()
    # Of a process that was killed before it had made a table.
    path.touch()
    with closing(look_into(path)) as reader:
        assert reader.entries() == []
    assert path.stat().st_size == 0
