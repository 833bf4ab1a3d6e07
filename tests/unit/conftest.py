"""What several files of unit tests start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes import FakeSite, make_deployment, make_site
from tests.support.rolls import Clock
from toolkit.ledger.database import open_ledger
from toolkit.roll import effects


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    ledger = open_ledger(tmp_path / "ledger.db")

    def make_one(**settings: object) -> FakeSite:
        fake = make_site(ledger, make_deployment(**settings))
        monkeypatch.setattr(effects, "time", Clock(fake))
        return fake

    yield make_one
    ledger.close()


@pytest.fixture
def fake(make) -> FakeSite:
    return make()
