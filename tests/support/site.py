"""The example service baked for tests, and environments that run it."""

import contextlib
import fcntl
import os
import shutil
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.echo import EchoLab
from bench.lab import ENVIRONMENT, Lab, copy_layers
from examples.command import Answer
from toolkit.cli.context import Context
from toolkit.machines import cgroups
from toolkit.roll.site import Site as OpenSite
from toolkit.shell import Completed
from toolkit.state import State
from toolkit.wiring import open_site


class BakedLab(Lab):
    """Bakes versions; an optional directory keeps the layers for others and for later runs."""

    def __init__(self, directory: Path, *, shared: Path | None) -> None:
        super().__init__(directory)
        self._shared = shared
        # Before any bake, so that a secret could get into a layer if anything let it.
        self.toolkit.result("secrets", "init", ENVIRONMENT)

    @property
    def store(self) -> Path:
        return self.state / "store"

    def bake(self, version: str):
        if version in self._baked or self._shared is None:
            return super().bake(version)
        self._shared.mkdir(parents=True, exist_ok=True)
        with (self._shared / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Files of its own: mounts of one file share a loop device, also with other runs'.
            copy_layers(self._shared, self.store, is_linked=False)
            release = super().bake(version)
            copy_layers(self.store, self._shared, is_linked=False)
        return release

    def image(self, version: str, role: str) -> dict:
        """Return what `toolkit images show` prints about an image."""
        return self.toolkit.result("images", "show", self.bake(version)["images"][role])

    def layer_file(self, digest: str) -> Path:
        return self.store / "layers" / f"{digest.removeprefix('sha256:')}.erofs"


class Site(Lab):
    """An environment of its own, with the images that a `BakedLab` baked.

    Args:
        is_linked: Whether layers are hard links. Machines of two sites then share loop devices.
    """

    def __init__(self, directory: Path, baked: BakedLab, *, is_linked: bool = True) -> None:
        super().__init__(directory)
        self._source = baked
        self._is_linked = is_linked
        self.environment = ENVIRONMENT
        self.state_id = State(self.state).id

    def bake(self, version: str):
        """Bring a release here, and nothing else that other tests have had baked."""
        release = self._source.bake(version)
        origin, target = self._source.store, self.state / "store"
        copy_layers(origin, target, is_linked=self._is_linked)
        images = [digest.removeprefix("sha256:") for digest in release["images"].values()]
        for path in [*(f"images/{one}" for one in images), f"releases/{release['release']}"]:
            shutil.copytree(origin / path, target / path, dirs_exist_ok=True)
        return release

    def image(self, version: str, role: str) -> str:
        return self.bake(version)["images"][role]

    def roll(self, role: str, version: str) -> Answer:
        """Roll one role to a version, whatever comes of it."""
        image = self.image(version, role)
        return self.toolkit.run("roll", ENVIRONMENT, role, "--image", image)

    def status(self) -> dict[str, dict]:
        """Return what `toolkit status` says, by role."""
        return {one["role"]: one for one in self.toolkit.result("status", ENVIRONMENT)}

    def remarks(self) -> list[str]:
        """Return what `toolkit status` tells besides, each sentence once."""
        return list(
            dict.fromkeys(text for one in self.status().values() for text in one["remarks"])
        )

    def machines(self) -> list[str]:
        """Return the names of the machines that are there, as their provider observes them."""
        with self.opened() as site:
            return sorted(one.name for one in site.provider.machines())

    @contextlib.contextmanager
    def opened(self) -> Iterator[OpenSite]:
        """Open the environment as the commands do."""
        context = Context(self.project.root, self.state, is_quiet=True)
        with open_site(context, ENVIRONMENT) as site:
            yield site

    def snapshots(self) -> dict[str, str]:
        """Return every pool's places as the balancer itself reports them."""
        with self.opened() as site:
            return {role: pool.snapshot() for role, pool in site.pools.items()}

    def run_inside(self, machine: str, *argv: str) -> Completed:
        with self.opened() as site:
            return site.provider.run(machine, argv, timeout_s=60.0)

    def kill_machine(self, name: str) -> None:
        """Kill every process of a machine at once, as a crash of the host would."""
        group = f"toolkit-{self.state_id}/{self.environment}/{name}"
        deadline = time.monotonic() + 10.0
        while list(cgroups.processes(group)):
            assert time.monotonic() < deadline
            for pid in set(cgroups.processes(group)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def get(self, path: str = "/") -> httpx.Response:
        return self._client().get(path)

    def post(self, path: str, document: dict) -> httpx.Response:
        return self._client().post(path, json=document)

    def _client(self) -> httpx.Client:
        trust = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.url, verify=trust, trust_env=False, timeout=10.0)


class BakedEcho(BakedLab, EchoLab):
    """The service `echo`, baked for tests that need many rolls."""


class EchoSite(Site, EchoLab):
    """An environment of its own that runs `echo`."""
