"""Garbage of the store, and machines past their time: what is used is never touched."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.support.fakes import FakeSite, make_deployment, make_image, make_site
from toolkit import shell
from toolkit.clock import host_uptime
from toolkit.ledger.database import open_ledger
from toolkit.machines import nspawn
from toolkit.machines.nspawn import NspawnProvider
from toolkit.model import Image, Release, Snapshot
from toolkit.roll import command, expire
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted
from toolkit.state import State
from toolkit.store.collect import find_garbage


def release(number: int, *images: Image) -> Release:
    by_role = {image.role: image.digest for image in images}
    return Release(f"r{number}", "shop", "c", False, by_role, float(number))


OLD, NEW, OTHER, PAIR = (
    make_image("app", 1, "base", "old"),
    make_image("app", 2, "base", "new"),
    make_image("web", 3, "base", "web"),
    make_image("web", 4, "base", "pair"),
)
RELEASES = [release(2, NEW, OTHER), release(1, OLD, OTHER), release(0, OLD, PAIR)]
LAYERS = {f"sha256:{name}" for name in ("base", "old", "new", "web", "pair", "stray")}


@pytest.mark.parametrize(
    ("keep", "in_use", "named", "releases", "images", "layers"),
    [
        (3, set(), set(), (), (), ("sha256:stray",)),
        (1, set(), set(), ("r1", "r0"), (OLD.digest, PAIR.digest),
         ("sha256:old", "sha256:pair", "sha256:stray")),
        (1, {OLD.digest}, set(), ("r0",), (PAIR.digest,), ("sha256:pair", "sha256:stray")),
        # A release of which one image runs is kept whole: it may yet be rolled elsewhere.
        (1, {PAIR.digest}, set(), (), (), ("sha256:stray",)),
        # A machine came with r0, though a newer release holds its image too.
        (1, {OLD.digest}, {"r0"}, (), (), ("sha256:stray",)),
        (1, set(), {"gone"}, ("r1", "r0"), (OLD.digest, PAIR.digest),
         ("sha256:old", "sha256:pair", "sha256:stray")),
    ],
)  # fmt: skip
def test_garbage(
    keep: int, in_use: set, named: set, releases: tuple, images: tuple, layers: tuple
) -> None:
    found = find_garbage(
        releases=RELEASES,
        images=[OLD, NEW, OTHER, PAIR],
        layers=LAYERS,
        in_use=in_use,
        releases_in_use=named,
        keep_releases=keep,
    )
    assert (found.releases, found.images, found.layers) == (releases, images, layers)


names = st.sampled_from("abcdefgh")
images_strategy = st.lists(
    st.builds(make_image, st.sampled_from(["app", "web"]), st.integers(1, 30), names, names),
    max_size=8,
    unique_by=lambda image: image.digest,
)


@given(images_strategy, st.data())
def test_what_is_used_is_never_garbage(images: list[Image], data) -> None:
    releases = []
    if images:
        groups = st.lists(st.lists(st.sampled_from(images), min_size=1), max_size=5)
        releases = [release(n, *group) for n, group in enumerate(data.draw(groups))][::-1]
    in_use = set(data.draw(st.lists(st.sampled_from(images)))) if images else set()
    in_use = {image.digest for image in in_use}
    keep = data.draw(st.integers(1, 3))
    layers = {f"sha256:{letter}" for letter in "abcdefghxy"}
    named = set(data.draw(st.lists(st.sampled_from(["r0", "r1", "r2", "r9"]))))
    found = find_garbage(
        releases=releases, images=images, layers=layers, in_use=in_use, releases_in_use=named,
        keep_releases=keep,
    )  # fmt: skip
    kept = {image.digest for image in images} - set(found.images)
    assert in_use <= kept
    for one in releases[:keep]:
        assert set(one.images.values()) <= kept
        assert one.id not in found.releases
    for image in images:
        if image.digest in kept:
            assert not {layer.digest for layer in image.layers} & set(found.layers)
    assert not named & set(found.releases)
    for digest in in_use:
        holders = [one.id for one in releases if digest in one.images.values()]
        assert not holders or set(holders) - set(found.releases), "its commit is lost"
    for one in releases:
        if one.id not in found.releases:
            assert set(one.images.values()) <= kept, "a release that is kept has all its images"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSite]:
    ledger = open_ledger(tmp_path / "ledger.db")
    yield make_site(ledger, make_deployment(strategy="blue-green", keep_warm_s=600.0))
    ledger.close()


def roll(fake: FakeSite, version: int) -> None:
    images = list(reversed(fake.site.images.images()))
    image = images[version - 1]
    wanted = Wanted(image, fake.site.images.release_of(image.digest))
    result = command.roll_role(fake.site, "app", wanted)
    assert result.outcome == "rolled", result.error


def by_standing(fake: FakeSite, standing: str) -> set[str]:
    return {one.name for one in fake.site.ledger.machines("test") if one.standing == standing}


def test_warm_machines_stay_until_their_window_has_passed(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    warm = by_standing(fake, "warm")
    assert len(warm) == 2
    assert expire.retire(fake.site, is_dry_run=False) == []

    fake.site.ledger.set_standing(sorted(warm), "warm", warm_until=host_uptime() - 1)
    assert set(expire.retire(fake.site, is_dry_run=True)) == warm
    assert by_standing(fake, "warm") == warm
    assert set(expire.retire(fake.site, is_dry_run=False)) == warm
    assert set(fake.provider.found) == by_standing(fake, "member")
    assert len(fake.pool.serving()) == 2


def test_warm_machine_that_has_ended_is_of_no_use(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    dead = sorted(by_standing(fake, "warm"))[0]
    fake.provider.end(dead)
    assert expire.retire(fake.site, is_dry_run=False) == [dead]


def test_machine_that_nobody_knows_goes(fake: FakeSite) -> None:
    roll(fake, 1)
    known = fake.site.ledger.machines("test")[0]
    inputs = replace(known, name="stranger", address="10.9.0.60")
    fake.provider.found["stranger"] = replace(
        fake.provider.found[known.name], name="stranger", address=inputs.address
    )
    assert expire.retire(fake.site, is_dry_run=True) == ["stranger"]
    assert expire.retire(fake.site, is_dry_run=False) == ["stranger"]
    assert "stranger" not in fake.provider.found


def test_unfinished_roll_keeps_everything_in_place(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    warm = by_standing(fake, "warm")
    fake.site.ledger.set_standing(sorted(warm), "warm", warm_until=1.0)
    newest = fake.site.ledger.rolls("test")[0]
    fake.site.ledger.start_roll(replace(newest, id="roll-x", outcome="running"))
    assert expire.retire(fake.site, is_dry_run=True) == []
    assert expire.retire(fake.site, is_dry_run=False) == []
    assert by_standing(fake, "warm") == warm


def test_images_that_serve_are_warm_or_were_before_are_in_use(fake: FakeSite) -> None:
    images = [one.digest for one in reversed(fake.site.images.images())]
    roll(fake, 1)
    roll(fake, 3)
    found = expire.find_in_use(fake.site.ledger)
    assert (found.images, found.releases) == ({images[0], images[2]}, {"r1", "r3"})
    roll(fake, 2)
    found = expire.find_in_use(fake.site.ledger)
    assert (found.images, found.releases) == ({images[2], images[1]}, {"r2", "r3"})


def test_what_a_rollback_would_need_is_in_use_when_no_machine_is_warm(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    fake = make_site(ledger, make_deployment())
    for version in (1, 2, 3):
        roll(fake, version)
    assert {one.release for one in ledger.machines("test")} == {"r3"}
    assert expire.find_in_use(ledger).releases == {"r2", "r3"}
    command.roll_back(fake.site, "app", None)
    assert expire.find_in_use(ledger).releases == {"r1", "r2"}
    ledger.close()


def test_unfinished_roll_may_need_both_its_images(fake: FakeSite) -> None:
    roll(fake, 1)
    roll(fake, 2)
    newest = fake.site.ledger.rolls("test")[0]
    begun = replace(newest, id="roll-x", image="sha256:new", release="r9", previous="sha256:old",
                    outcome="running", ended=None)  # fmt: skip
    fake.site.ledger.start_roll(begun)
    found = expire.find_in_use(fake.site.ledger)
    assert found.images >= {"sha256:new", "sha256:old"}
    assert "r9" in found.releases


def test_where_a_rollback_goes_after_an_abort_is_in_use(tmp_path: Path) -> None:
    """A roll that was cut short has members of its own, which an abort takes away again."""
    ledger = open_ledger(tmp_path / "ledger.db")
    fake = make_site(ledger, make_deployment())
    for version in (1, 2):
        roll(fake, version)
    newest = ledger.rolls("test")[0]
    begun = replace(newest, id="roll-x", image="sha256:new", release="r9", previous=newest.image,
                    outcome="running", ended=None)  # fmt: skip
    ledger.start_roll(begun)
    known = ledger.machines("test")[-1]
    member = replace(known, name="z", image="sha256:new", release="r9", since=known.since + 1)
    ledger.add_machines([member])
    assert expire.find_in_use(ledger).releases == {"r1", "r2", "r9"}
    ledger.close()


def test_what_runs_in_an_environment_that_the_project_has_no_more_is_in_use(
    fake: FakeSite,
) -> None:
    roll(fake, 1)
    known = fake.site.ledger.machines("test")[0]
    fake.site.ledger.add_machines(
        [replace(known, name="x", environment="old", image="sha256:there", release="r7")]
    )
    found = expire.find_in_use(fake.site.ledger)
    assert "sha256:there" in found.images
    assert "r7" in found.releases


def test_rollback_between_looking_and_acting_keeps_its_machines(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has expired is decided under the lease, not before."""
    roll(fake, 1)
    roll(fake, 2)
    warm = sorted(by_standing(fake, "warm"))
    fake.site.ledger.set_standing(warm, "warm", warm_until=1.0)
    held = Site.held

    def hold_late(*arguments, **keywords):
        monkeypatch.setattr(Site, "held", held)
        command.roll_back(fake.site, "app", None)
        return held(*arguments, **keywords)

    monkeypatch.setattr(Site, "held", hold_late)
    expire.retire(fake.site, is_dry_run=False)
    assert by_standing(fake, "member") == set(warm)
    assert len(fake.pool.serving()) == 2


def test_of_each_volume_the_newest_copies_stay() -> None:
    made = [Snapshot(v, f"roll-{n}") for v in ("db-data", "db-log") for n in (1, 2, 3)]
    by_hand = Snapshot("db-data", "roll-before-the-move")
    rolls = ["roll-3", "roll-2", "roll-1"]
    surplus = expire.find_surplus([*made, by_hand], rolls, keep=2)
    assert {one.name for one in surplus} == {"db-data-roll-1", "db-log-roll-1"}
    assert expire.find_surplus([*made, by_hand], rolls, keep=3) == []
    assert len(expire.find_surplus([*made, by_hand], rolls, keep=0)) == 6


def test_older_copies_go_when_told_and_on_record(tmp_path: Path) -> None:
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        deployment = make_deployment(strategy="stateful", machines=1, has_snapshot=True)
        fake = make_site(ledger, deployment)
        for version in (1, 2, 3, 1):
            roll(fake, version)
        made = [f"app-{one.id}" for one in ledger.rolls("test")]
        assert len(fake.provider.copies) == len(made) == 4
        assert expire.trim_snapshots(fake.site, keep=3, is_dry_run=True) == made[3:]
        assert len(fake.provider.copies) == 4
        newest = ledger.rolls("test")[0]
        ledger.start_roll(replace(newest, id="roll-x", outcome="running"))
        assert expire.trim_snapshots(fake.site, keep=0, is_dry_run=False) == []
        ledger.end_roll("roll-x", "failed", {})
        assert expire.trim_snapshots(fake.site, keep=3, is_dry_run=False) == made[3:]
        assert set(fake.provider.copies) == set(made[:3])
        kinds = [(one["kind"], one["data"]["effect"]) for one in ledger.entries(limit=2)]
        assert kinds == [("effect.done", "snapshots"), ("effect.intent", "snapshots")]


@pytest.fixture
def provider(tmp_path: Path) -> NspawnProvider:
    """A provider with two volumes of one role."""
    state = State(tmp_path / "state")
    for volume in ("db-data", "db-log"):
        (state.volumes("test") / volume).mkdir(parents=True)
        (state.volumes("test") / volume / "precious").write_text("data")
    nothing: Any = None
    return NspawnProvider(
        "test", state=state, network=nothing, find_image=nothing, layer_path=nothing
    )


def test_copies_of_volumes_are_listed_and_removed(provider: NspawnProvider) -> None:
    provider.snapshot("db", "roll-1")
    copies = provider.snapshot("db", "roll-2")
    assert len(provider.snapshots()) == 4
    assert all((Path(one) / "precious").read_text() == "data" for one in copies)
    provider.remove_snapshots([Snapshot("db-data", "roll-1"), Snapshot("db-data", "roll-9")])
    assert {one.name for one in provider.snapshots()} == {
        "db-log-roll-1", "db-data-roll-2", "db-log-roll-2",
    }  # fmt: skip
    directory = Path(copies[0]).parent
    assert len(list(directory.iterdir())) == 3


def test_copying_all_volumes_has_one_deadline(
    provider: NspawnProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is not renewed in between."""
    now, allowed, run = [0.0], [], shell.run

    def slow(argv: Any, *, timeout_s: float, **more: Any) -> shell.Completed:
        allowed.append((argv[0], timeout_s))
        now[0] += 400.0
        return run(argv, timeout_s=60.0, **more)

    monkeypatch.setattr(shell, "run", slow)
    monkeypatch.setattr(nspawn.time, "monotonic", lambda: now[0])
    provider.snapshot("db", "roll-1")
    assert allowed == [("cp", 600.0), ("sync", 200.0), ("cp", 0.1), ("sync", 0.1)]
