"""Which environment `resume` and `abort` take up when the operator names it, a roll, or neither."""

import time

import pytest

from examples.versions import REPOSITORY
from toolkit.cli.context import Context
from toolkit.cli.unfinished import _environment_of
from toolkit.errors import ConfigurationError, NotFound
from toolkit.ledger.ledger import RollRecord
from toolkit.wiring import open_ledger

IMAGE = "sha256:" + "0" * 64


@pytest.fixture
def context(tmp_path):
    return Context(REPOSITORY, tmp_path / "state", is_quiet=True)


def begin(context: Context, roll: str, environment: str) -> None:
    record = RollRecord(
        id=roll, environment=environment, role="app", image=IMAGE, release=None, previous=None,
        outcome="running", by="somebody", started=time.time(), ended=None, order={},
    )  # fmt: skip
    with open_ledger(context.state) as ledger:
        ledger.start_roll(record)


def end(context: Context, roll: str) -> None:
    with open_ledger(context.state) as ledger:
        ledger.end_roll(roll, "rolled", {})


def test_without_a_name_it_is_the_one_there_is(context):
    assert _environment_of(context, None) is None
    begin(context, "roll-1", "staging")
    assert _environment_of(context, None) == "staging"
    end(context, "roll-1")
    assert _environment_of(context, None) is None


def test_a_roll_is_found_by_its_name(context):
    begin(context, "roll-1", "staging")
    begin(context, "roll-2", "production")
    assert _environment_of(context, "roll-2") == "production"
    end(context, "roll-2")
    with pytest.raises(NotFound, match="roll-2"):
        _environment_of(context, "roll-2")


def test_of_several_one_must_be_named(context):
    begin(context, "roll-1", "staging")
    begin(context, "roll-2", "production")
    with pytest.raises(ConfigurationError, match="production, staging"):
        _environment_of(context, None)
    assert _environment_of(context, "staging") == "staging"


def test_an_environment_is_taken_at_its_word(context):
    assert _environment_of(context, "development") == "development"
    assert _environment_of(context, "nowhere") == "nowhere"
