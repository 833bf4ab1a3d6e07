"""Which release is the newest, and which one an image was baked for."""

import time
from pathlib import Path

import pytest

from toolkit.bake.manifest import SealedLayer, image_manifest, release_manifest
from toolkit.model import Layer, Release
from toolkit.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    return LocalStore(tmp_path)


def image(store: LocalStore, role: str, mark: str) -> str:
    layer = SealedLayer("", Layer("os", f"sha256:{mark}", 1), {}, ())
    return store.put_image(
        image_manifest(role=role, sealed=[layer], commit=None, is_dirty=False)
    ).digest


def bake(store: LocalStore, commit: str, **images: str) -> Release:
    return store.put_release(
        release_manifest(
            service="shop", commit=commit, project_commit=None, is_dirty=False, images=images
        )
    )


def test_an_image_belongs_to_the_release_it_was_baked_for(store: LocalStore) -> None:
    web, app1, app2 = image(store, "web", "a"), image(store, "app", "b"), image(store, "app", "c")
    first = bake(store, "c1", web=web, app=app1)
    second = bake(store, "c2", web=web, app=app2)
    assert [one.id for one in store.releases()] == [second.id, first.id]
    assert store.release_of(web) == first
    assert store.release_of(app2) == second
    assert store.release_of(image(store, "web", "d")) is None


def test_a_release_that_is_baked_again_is_the_newest_and_no_younger(store: LocalStore) -> None:
    web = image(store, "web", "a")
    first = bake(store, "c1", web=web)
    second = bake(store, "c2", web=web)
    assert bake(store, "c1", web=web) == first
    assert [one.id for one in store.releases()] == [first.id, second.id]
    assert store.release_of(web) == first
