"""A project, a state directory and an environment of their own, removed when they are done with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.load.settings import LoadSettings
from examples.command import Toolkit
from examples.versions import ScratchProject, free_port, make_project
from toolkit.progress import Progress

ENVIRONMENT = "development"
VERSION_HEADER = "X-Guestbook-Version"
PATHS = ("/", "/api/entries")
"""Both ask the database."""


class Lab:
    """The example service in its several versions: `with Lab(directory) as lab: ...`.

    Leaving the block takes the environment down and removes the directory. Another service is a
    subclass that says what differs.

    Args:
        directory: Made here, for this alone.
        store: An image store whose layers are used where they fit; it is not changed.
        progress: Hears of every step.
    """

    make_project: Callable[..., ScratchProject] = staticmethod(make_project)
    paths: tuple[str, ...] = PATHS
    version_header = VERSION_HEADER

    def __init__(
        self, directory: Path, *, store: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.project = self.make_project(directory, ports={ENVIRONMENT: free_port()})
        self.toolkit = Toolkit(self.project.root, self.state, progress=progress)
        self._baked: dict[str, Mapping[str, Any]] = {}
        if store is not None:
            copy_layers(store, self.state / "store")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def url(self) -> str:
        """Where the environment's public address is."""
        return f"https://{self.project.public(ENVIRONMENT)}"

    @property
    def authority(self) -> Path:
        """The certificate that clients trust."""
        return self.project.authority(ENVIRONMENT)

    def bake(self, version: str) -> Mapping[str, Any]:
        """Bake all images of a version, once; return what `toolkit bake` printed."""
        if version not in self._baked:
            self.project.check_out(version)
            self._baked[version] = self.toolkit.result("bake", "--ref", version)
        return self._baked[version]

    def start(self, version: str) -> None:
        """Have the environment run a version."""
        release = self.bake(version)["release"]
        self.toolkit.result("secrets", "init", ENVIRONMENT)
        self.toolkit.result("up", ENVIRONMENT)
        self.toolkit.result("roll", ENVIRONMENT, "--release", release)

    def load(self, *, rate: float, requests: int | None, max_seconds: float) -> LoadSettings:
        """Return the settings of a load on the public address."""
        return LoadSettings(
            url=self.url,
            cafile=self.authority,
            paths=self.paths,
            rate=rate,
            requests=requests,
            max_seconds=max_seconds,
            by_header=self.version_header,
        )

    def remove(self) -> None:
        """Take the environment down with its volumes, and remove every file."""
        if (self.state / "ledger.db").exists():
            self.toolkit.run("down", ENVIRONMENT, "--volumes")
        shutil.rmtree(self.directory, ignore_errors=True)


def copy_layers(
    origin: Path, target: Path, *, without: Collection[str] = (), is_linked: bool = True
) -> None:
    """Bring sealed layers, but no images, from one store to another.

    Args:
        origin: A store's directory; nothing happens when it does not exist.
        target: Another.
        without: Names of layers to leave out.
        is_linked: Make hard links where both are on one file system; a layer never changes.
    """
    for key in sorted(origin.glob("keys/*.json")):
        document = json.loads(key.read_bytes())
        if document["name"] in without:
            continue
        name = f"{document['digest'].removeprefix('sha256:')}.erofs"
        if not (origin / "layers" / name).is_file():
            continue
        for directory in ("layers", "keys"):
            (target / directory).mkdir(parents=True, exist_ok=True)
        _bring(origin / "layers" / name, target / "layers" / name, is_linked=is_linked)
        _bring(key, target / "keys" / key.name, is_linked=False)


def _bring(origin: Path, target: Path, *, is_linked: bool) -> None:
    if target.exists():
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if not is_linked:
            raise OSError
        os.link(origin, draft)
    except OSError:
        shutil.copy2(origin, draft)
    draft.replace(target)
