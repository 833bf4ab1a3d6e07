"""What is removed from the store is gone at once, for readers, after a kill, and for rolls."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import make_deployment, make_site
from toolkit import wiring
from toolkit.bake.manifest import SealedLayer, image_manifest, release_manifest
from toolkit.cli import garbage
from toolkit.errors import LeaseHeld, NotFound, OutsideError
from toolkit.ledger.database import open_ledger
from toolkit.ledger.ledger import Ledger, RollRecord
from toolkit.model import Layer
from toolkit.roll import command, lease
from toolkit.roll.wanted import Wanted
from toolkit.store.collect import Garbage
from toolkit.store.local import LocalStore
from toolkit.workplace import Workplace


def fill(store: LocalStore, count: int) -> Garbage:
    """Store some images, each in a release of its own; return all of it as garbage."""
    images, releases = [], []
    for number in range(count):
        layer = SealedLayer("", Layer("os", f"sha256:{number:064x}", 1), {}, ())
        manifest = image_manifest(role="app", sealed=[layer], commit=None, is_dirty=False)
        images.append(store.put_image(manifest).digest)
        manifest = release_manifest(
            service="shop",
            commit="c",
            project_commit=None,
            is_dirty=False,
            images={"app": images[-1]},
        )
        releases.append(store.put_release(manifest).id)
    return Garbage(tuple(releases), tuple(images), ())


def test_what_a_kill_left_of_a_removal_is_nothing_and_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    garbage = fill(store, 2)

    def die(directory: Path, **_options: Any) -> None:
        (directory / "baked.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            store.remove(garbage)
    assert store.images() == store.releases() == []
    with pytest.raises(NotFound):
        store.image(garbage.images[0])
    with pytest.raises(NotFound):
        store.release(garbage.releases[0])
    store.remove(Garbage((), (), ()))
    assert list((tmp_path / "images").iterdir()) == list((tmp_path / "releases").iterdir()) == []
    assert fill(store, 2) == garbage


def test_what_is_whole_is_not_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    garbage = fill(store, 2)
    store.remove(Garbage((), (), ()))
    assert len(store.images()) == len(store.releases()) == len(garbage.images) == 2


def test_readers_pass_over_what_is_being_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    garbage = fill(store, 60)
    failures: list[Exception] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                store.images()
                store.releases()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    store.remove(garbage)
    is_over.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_is_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (digest,) = fill(store, 1).images
    (tmp_path / "images" / digest.removeprefix("sha256:") / "baked.json").unlink()
    with pytest.raises(OutsideError, match="damaged") as caught:
        store.images()
    assert caught.value.hint


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A project without environments, and a state directory in which one is known all the same."""
    (tmp_path / "service.yml").write_text(
        "name: shop\nsource: .\nroles: {app: {layers: [app], port: 80}}\n"
    )
    (tmp_path / "roles/app").mkdir(parents=True)
    workplace = Workplace(tmp_path, tmp_path / "state")
    fill(LocalStore(workplace.state.store), 2)
    with wiring.open_ledger(workplace.state) as ledger:
        ledger.set_up("test", is_up=True)
    return workplace


def collect(workplace: Workplace) -> int:
    """Keep one release; return how many images were removed."""
    found = garbage.collect(workplace, keep_releases=1, keep_snapshots=1, is_dry_run=False).garbage
    assert len(wiring.open_store(workplace.state).images()) == 2 - len(found.images)
    return len(found.images)


def test_nothing_is_removed_while_an_environment_is_being_changed(workplace: Workplace) -> None:
    with (
        wiring.open_ledger(workplace.state) as ledger,
        lease.held(ledger, "test", doing="a roll"),
        pytest.raises(LeaseHeld, match="a roll"),
    ):
        collect(workplace)
    assert len(wiring.open_store(workplace.state).images()) == 2
    assert collect(workplace) == 1
    with (
        wiring.open_ledger(workplace.state) as ledger,
        lease.held(ledger, "test", doing="a roll"),
    ):
        assert garbage.collect(
            workplace, keep_releases=1, keep_snapshots=1, is_dry_run=False
        ).garbage == Garbage((), (), ()), "there is nothing to wait for"


def test_nothing_is_removed_once_a_lease_was_lost(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection was stopped for longer than the lease lasts, and somebody else has it."""
    held = lease.held

    @contextmanager
    def lose(ledger: Ledger, name: str, **options: Any) -> Iterator[lease.Lease]:
        with held(ledger, name, **options) as it:
            yield replace(it, ledger=ledger.guarded(refuse))

    def refuse(_connection: object) -> None:
        raise LeaseHeld("taken over")

    monkeypatch.setattr(lease, "held", lose)
    with pytest.raises(LeaseHeld, match="taken over"):
        collect(workplace)
    assert len(wiring.open_store(workplace.state).images()) == 2


def test_what_a_roll_took_up_meanwhile_is_kept(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = wiring.open_store(workplace.state).images()[-1]
    held = lease.held

    @contextmanager
    def hold_late(ledger: Ledger, name: str, **options: Any) -> Iterator[lease.Lease]:
        ledger.start_roll(
            RollRecord("r", name, "app", oldest.digest, None, None, "running", "me", 0.0, None, {})
        )
        with held(ledger, name, **options) as it:
            yield it

    monkeypatch.setattr(lease, "held", hold_late)
    assert collect(workplace) == 0


def test_a_roll_of_what_was_removed_while_it_waited_begins_nothing(tmp_path: Path) -> None:
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        fake = make_site(ledger, make_deployment())
        image = fake.site.images.images()[-1]
        wanted = Wanted(image, fake.site.images.release_of(image.digest))
        fake.site.images.forget(image.digest)
        with pytest.raises(NotFound):
            command.roll_role(fake.site, "app", wanted)
        assert ledger.rolls("test") == []
        assert not fake.provider.machines()
