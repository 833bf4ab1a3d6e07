"""A bake killed before and after each thing that it puts into the store: the next one finishes it.

There is nothing to abort: until its manifest is there, an image does not exist.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import shared_store
from tests.faults.cases import Case, cases_of
from tests.support.siege import killed_at
from tests.support.site import BakedEcho
from tests.support.traces import leftovers, store_listing
from toolkit.state import State

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BakedEcho]:
    """A store of its own, in which version 1 is baked."""
    with BakedEcho(
        tmp_path_factory.mktemp("bakery") / "lab", shared=shared_store(tmp_path_factory)
    ) as lab:
        lab.bake("v1")
        yield lab


def forget(bakery: BakedEcho, effect: str) -> None:
    """Remove what the effect makes, and what is made of it."""
    shutil.rmtree(bakery.store / "releases")
    if effect != "release":
        shutil.rmtree(bakery.store / "images")
    if effect == "layer":
        for key in (bakery.store / "keys").glob("*.json"):
            if '"name": "echo"' in key.read_text():
                key.unlink()


@pytest.mark.parametrize("case", cases_of("bake"), ids=str)
def test_killed(case: Case, bakery: BakedEcho):
    state_id = State(bakery.state).id
    first = bakery.toolkit.result("bake", "--ref", "v1")
    forget(bakery, case.effect)
    killed = killed_at(bakery, case.point, "bake", "--ref", "v1")
    assert killed.exit_code == -9, killed.stderr
    if case.recovery == "abort":
        # Whatever is listed is whole.
        for image in bakery.toolkit.result("images", "list"):
            bakery.toolkit.result("images", "show", image["digest"])
        bakery.toolkit.result("gc")
        assert leftovers(bakery.state, state_id, [], "development") == []
    again = bakery.toolkit.result("bake", "--ref", "v1")
    if case.effect != "layer":
        assert again["images"] == first["images"]
        assert again["release"] == first["release"]
    assert leftovers(bakery.state, state_id, [], "development") == []
    assert bakery.toolkit.run("history", "--verify").exit_code == 0
    listed = {one["digest"] for one in bakery.toolkit.result("images", "list")}
    assert listed >= set(again["images"].values())
    before = store_listing(bakery.store)
    assert bakery.toolkit.result("bake", "--ref", "v1")["images"] == again["images"]
    unchanged = {name: seen for name, seen in before.items() if "releases" not in name}
    after = store_listing(bakery.store)
    assert {name: seen for name, seen in after.items() if "releases" not in name} == unchanged
