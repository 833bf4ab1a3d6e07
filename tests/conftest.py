"""Fixtures that start from real images: baked once for the whole run, used by every environment."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.site import BakedEcho, BakedLab, EchoSite, Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs root where there is none and what takes long, and say so."""
    for item in items:
        if "exhaustive" in item.keywords and not os.environ.get("TOOLKIT_EXHAUSTIVE"):
            item.add_marker(pytest.mark.skip(reason="TOOLKIT_EXHAUSTIVE is not set"))
        if "host" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where labs of this run find the layers that another one has baked.

    TOOLKIT_TEST_STORE names a directory that keeps them from one run to the next.
    """
    kept = os.environ.get("TOOLKIT_TEST_STORE")
    if kept:
        return Path(kept)
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "layers"


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BakedLab]:
    """The example service; its versions are baked when they are first asked for."""
    shared = shared_store(tmp_path_factory)
    with BakedLab(tmp_path_factory.mktemp("baked") / "lab", shared=shared) as lab:
        yield lab


@pytest.fixture(scope="session")
def baked_echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BakedEcho]:
    """The service `echo`; its versions are baked when they are first asked for."""
    shared = shared_store(tmp_path_factory)
    with BakedEcho(tmp_path_factory.mktemp("echo") / "lab", shared=shared) as lab:
        yield lab


@pytest.fixture(scope="module")
def new_echo(
    baked_echo: BakedEcho, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., EchoSite]]:
    """Return a maker of sites for `echo`, with a state directory and a port of their own.

    Its first argument is the version that the site's environment runs, none if that is to be
    started later; the others are baked besides.
    """
    made: list[EchoSite] = []

    def make(running: str | None = None, *baked: str) -> EchoSite:
        made.append(EchoSite(tmp_path_factory.mktemp("site") / "s", baked_echo))
        if running:
            made[-1].start(running)
        for version in baked:
            made[-1].bake(version)
        return made[-1]

    yield make
    for site in made:
        site.remove()


@pytest.fixture(scope="module")
def new_site(
    baked: BakedLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Site]]:
    """Return a maker of sites with a state directory and a port of their own."""
    made: list[Site] = []

    def make(*, is_linked: bool = True) -> Site:
        made.append(Site(tmp_path_factory.mktemp("site") / "s", baked, is_linked=is_linked))
        return made[-1]

    yield make
    for site in made:
        site.remove()


@pytest.fixture(scope="module")
def site(new_site: Callable[..., Site]) -> Site:
    """A running environment with version 1 of the example service."""
    site = new_site()
    site.start("v1")
    return site


@pytest.fixture(scope="session")
def os_layer(baked: BakedLab) -> Path:
    """The sealed layer of the bare operating system."""
    image = baked.image("v1", "app")
    return baked.layer_file(image["layers"][0]["digest"])
