"""Bake: from a project and a commit to a release in the store."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path

from toolkit import shell
from toolkit.bake import plan
from toolkit.bake.inputs import playbooks_digest, role_digests
from toolkit.bake.leak import LeakGate
from toolkit.bake.manifest import SealedLayer, image_manifest, release_manifest
from toolkit.bake.plan import Decision
from toolkit.canonical import canonical_json
from toolkit.errors import BakeFailed, OutsideError
from toolkit.model import Image, Release
from toolkit.progress import Progress, step
from toolkit.project.model import BASE_LAYER, LayerSpec, Project, RoleSpec
from toolkit.project.source import Checkout, digest_files
from toolkit.state import State, make_private
from toolkit.store.local import LocalStore

PACKAGE = Path(__file__).parent.parent
DECIDING_FILES = (
    "bake/base.py",
    "bake/builder.py",
    "bake/seal.py",
    "ansible/plugins/connection/toolkit_nsenter.py",
)
"""The toolkit's own files that decide what is in a layer."""

BASE_FILES = ("bake/base.py", "bake/seal.py", "bake/initramfs")

BASE_TOOLS = ("erofs-utils", "mmdebstrap")
LAYER_TOOLS = ("erofs-utils", "systemd-container")

PARALLEL_IMAGES = 2
CANCEL_POLL_S = 0.2

Outcome = tuple[SealedLayer, Decision]


@dataclass(frozen=True, slots=True)
class BakedRelease:
    """What a bake made.

    Attributes:
        release: The release in the store.
        images: Its images, by role.
        decisions: Role to what happened to each of its layers, bottom first.
    """

    release: Release
    images: Mapping[str, Image]
    decisions: Mapping[str, tuple[Decision, ...]]


class Bake:
    """One bake of some roles of a project.

    Args:
        project: What to bake.
        checkout: The service's source at its commit.
        store: Where layers are found and kept.
        state: Where scratch files go.
        progress: Hears of every layer.
        project_commit: Commit of the project's own repository, if it is in one.
        is_project_dirty: Whether roles or playbooks have uncommitted changes.
        is_refresh: Whether packages are fetched anew, in every layer.

    Attributes:
        is_dirty: Whether images hold anything that is in no commit.

    Raises:
        ConfigurationError: What the leak gate goes by is wrong: better now than after minutes.
    """

    def __init__(
        self,
        project: Project,
        checkout: Checkout,
        *,
        store: LocalStore,
        state: State,
        progress: Progress,
        project_commit: str | None,
        is_project_dirty: bool,
        is_refresh: bool,
    ) -> None:
        self._project = project
        self._checkout = checkout
        self._store = store
        self._state = state
        self._progress = progress
        self._project_commit = project_commit
        self.is_dirty = checkout.is_dirty or is_project_dirty
        self._is_refresh = is_refresh
        self._refresh = store.new_refresh_mark() if is_refresh else store.refresh_mark()
        self._gate = LeakGate(project, state)
        self._is_cancelled = False
        self._lock = threading.Lock()
        self._layers: dict[bytes, Future[Outcome]] = {}

    def explain(self, roles: Sequence[RoleSpec]) -> Mapping[str, tuple[Decision, ...]]:
        """Return what a bake would do with each layer, without doing it."""
        return {role.name: tuple(self._explain_image(role)) for role in roles}

    def run(self, roles: Sequence[RoleSpec]) -> BakedRelease:
        """Bake the roles and store them as a release.

        Raises:
            BakeFailed: A layer could not be made; no image of this bake is in the store.
        """
        if self._is_refresh:
            # First: what fails half-way goes on from there at the next bake.
            self._store.refresh(self._refresh)
        sealed: dict[str, list[SealedLayer]] = {}
        decisions: dict[str, tuple[Decision, ...]] = {}
        with ThreadPoolExecutor(PARALLEL_IMAGES) as pool:
            waiting = {role.name: pool.submit(self._image_layers, role) for role in roles}
            try:
                wait(waiting.values())
            except BaseException:
                self._cancel(waiting.values())
                raise
        for name, future in waiting.items():
            results = future.result()
            sealed[name] = [layer for layer, _ in results]
            decisions[name] = tuple(decision for _, decision in results)
        images = {role.name: self._put_image(role, sealed[role.name]) for role in roles}
        release = self._store.put_release(
            release_manifest(
                service=self._project.name,
                commit=self._checkout.commit,
                project_commit=self._project_commit,
                is_dirty=self.is_dirty,
                images={name: image.digest for name, image in images.items()},
            )
        )
        return BakedRelease(release, images, decisions)

    def _cancel(self, waiting: Iterable[Future[list[Outcome]]]) -> None:
        """Let the threads clean up after themselves, but do nothing more."""
        self._is_cancelled = True
        while wait(waiting, timeout=CANCEL_POLL_S).not_done:
            shell.kill_running()

    def _put_image(self, role: RoleSpec, layers: Sequence[SealedLayer]) -> Image:
        paths = sorted({path for layer in role.layers for path in layer.source_paths})
        commit = self._checkout.last_change(paths) if paths else None
        return self._store.put_image(
            image_manifest(role=role.name, sealed=layers, commit=commit, is_dirty=self.is_dirty)
        )

    def _image_layers(self, role: RoleSpec) -> list[Outcome]:
        previous = self._previous_layers(role)
        results = [self._once(b"", lambda: self._base(previous.get(BASE_LAYER)))]
        for count, layer in enumerate(role.layers, start=1):
            chain = canonical_json(
                [
                    [one.role, list(one.source_paths), dict(one.variables)]
                    for one in role.layers[:count]
                ]
            )
            below = [sealed for sealed, _ in results]
            results.append(
                self._once(chain, lambda: self._layer(layer, below, previous.get(layer.role)))  # noqa: B023
            )
        return results

    def _once(self, chain: bytes, make: Callable[[], Outcome]) -> Outcome:
        """Make a layer once, though several images share it and are baked at the same time."""
        with self._lock:
            future = self._layers.get(chain)
            is_ours = future is None
            if future is None:
                future = self._layers[chain] = Future()
        if is_ours:
            try:
                if self._is_cancelled:
                    raise BakeFailed("the bake was interrupted")
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _base(self, previous: SealedLayer | None) -> Outcome:
        inputs = self._base_inputs()
        decision, found = self._decide(BASE_LAYER, inputs, previous)
        if found:
            return found, decision
        from toolkit.bake.base import build_base  # noqa: PLC0415 - only when it is built
        from toolkit.bake.seal import seal  # noqa: PLC0415

        with (
            step(self._progress, f"operating system: {decision.reason}"),
            self._scratch() as scratch,
        ):
            packages = build_base(self._project.base, scratch / "tree")
            seal(scratch / "tree", scratch / "sealed", name=BASE_LAYER)
            self._gate.check(BASE_LAYER, tree=scratch / "tree", sealed=scratch / "sealed")
            return self._put(decision, packages, scratch / "sealed"), decision

    def _layer(
        self, layer: LayerSpec, below: Sequence[SealedLayer], previous: SealedLayer | None
    ) -> Outcome:
        inputs = self._layer_inputs(layer, below[-1].layer.digest)
        decision, found = self._decide(layer.role, inputs, previous)
        if found:
            return found, decision
        from toolkit.bake.builder import applied_role  # noqa: PLC0415 - only when it is built
        from toolkit.bake.seal import seal  # noqa: PLC0415

        paths = [self._store.layer_path(one.layer.digest) for one in below]
        with (
            step(self._progress, f"layer {layer.role}: {decision.reason}"),
            applied_role(
                layer,
                below=paths,
                project=self._project,
                checkout=self._checkout,
                state=self._state,
                progress=self._progress,
            ) as applied,
            self._scratch() as scratch,
        ):
            seal(applied.tree, scratch / "sealed", name=layer.role)
            self._gate.check(
                layer.role, tree=applied.tree, sealed=scratch / "sealed", seen=applied.seen
            )
            return self._put(decision, applied.packages, scratch / "sealed"), decision

    def _explain_image(self, role: RoleSpec) -> Iterator[Decision]:
        """Decide for each layer in turn; nothing is known above one that is to be built."""
        previous = self._previous_layers(role)
        decision, found = self._decide(BASE_LAYER, self._base_inputs(), previous.get(BASE_LAYER))
        yield decision
        for layer in role.layers:
            below = found.layer.digest if found else ""
            inputs = self._layer_inputs(layer, below)
            decision, found = self._decide(layer.role, inputs, previous.get(layer.role))
            yield decision

    def _decide(
        self, name: str, inputs: Mapping[str, str], previous: SealedLayer | None
    ) -> tuple[Decision, SealedLayer | None]:
        found = self._store.find_layer(plan.layer_key(name, inputs))
        return plan.decide(name, inputs, found=found, previous=previous), found

    def _previous_layers(self, role: RoleSpec) -> dict[str, SealedLayer]:
        """Return the layers of the role's newest image, to say what has changed since.

        Its manifest does not know of refreshes; the store knows whether a layer has been made
        since the last one.
        """
        layers = {}
        for name, layer in self._store.previous_layers(role.name).items():
            inputs = plan.refreshed(layer.inputs, self._refresh)
            is_fresh = self._store.find_layer(plan.layer_key(name, inputs)) is not None
            layers[name] = replace(layer, inputs=inputs) if is_fresh else layer
        return layers

    def _base_inputs(self) -> dict[str, str]:
        inputs = plan.base_inputs(
            self._project.base,
            tools=_tool_versions(BASE_TOOLS),
            toolkit_files=_digest_of_files(PACKAGE, BASE_FILES),
        )
        return plan.refreshed(inputs, self._refresh)

    def _layer_inputs(self, layer: LayerSpec, below: str) -> dict[str, str]:
        inputs = plan.layer_inputs(
            below=below,
            roles=role_digests(self._project, layer.role),
            playbooks=playbooks_digest(self._project),
            variables=layer.variables,
            source=self._checkout.digests(layer.source_paths),
            tools=f"{_tool_versions(LAYER_TOOLS)}ansible-core={metadata.version('ansible-core')}",
            toolkit_files=_digest_of_files(PACKAGE, DECIDING_FILES),
        )
        return plan.refreshed(inputs, self._refresh)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        directory = make_private(self._state.work / f"seal-{secrets.token_hex(4)}")
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _put(self, decision: Decision, packages: Sequence[str], file: Path) -> SealedLayer:
        return self._store.put_layer(decision.name, decision.key, decision.inputs, packages, file)


@cache
def _tool_versions(packages: tuple[str, ...]) -> str:
    """Return the versions of what builds and seals a layer, each followed by a space."""
    try:
        return shell.run(
            ["dpkg-query", "-W", "-f", "${Package}=${Version} ", *packages],
            env=shell.environment(),
            timeout_s=30,
        ).text
    except OutsideError as error:
        raise BakeFailed(
            f"the versions of the host's tools are unknown: {error.message}",
            hint="run 'toolkit doctor' to see what is missing",
        ) from None


@cache
def _digest_of_files(root: Path, names: tuple[str, ...]) -> str:
    """Return a digest over files and the files below directories."""
    files: list[str] = []
    for name in names:
        path = root / name
        found = path.rglob("*") if path.is_dir() else [path]
        files += [str(one.relative_to(root)) for one in found if one.is_file()]
    return digest_files(root, [file for file in sorted(files) if "__pycache__" not in file])
