"""The image store in a local directory.

    layers/<sha256>.erofs      sealed layers, by the digest of their bytes
    keys/<key>.json            what a layer was made from, to find it again
    images/<sha256>/           manifest.json, whose digest names the image, and baked.json
    releases/<id>/             the same for releases

Everything is written under another name first and renamed when it is whole, so that there is
never half of anything. What is removed loses its manifest first, and is nothing from then on: who
reads meanwhile passes over it, and what a kill left of it is swept by the next removal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import faults
from toolkit.bake.manifest import SealedLayer, digest_of, release_id
from toolkit.errors import NotFound, OutsideError, ToolkitError
from toolkit.model import Image, Layer, Release, release_of
from toolkit.state import sync_directory, write_atomically
from toolkit.store.collect import Garbage

MIN_PREFIX = 6
"""Shortest beginning of a digest that is taken for one."""


class LocalStore:
    """Images and releases of one state directory.

    Args:
        root: The store's directory; made when first written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def image(self, digest: str) -> Image:
        """Return an image by its digest or a unique beginning of it."""
        wanted = digest.removeprefix("sha256:").lower()
        found = [path.name for path in self._directories("images") if path.name.startswith(wanted)]
        if len(wanted) < MIN_PREFIX:
            raise NotFound(
                f"{digest!r} is too short for a digest: give {MIN_PREFIX} digits or more"
            )
        if not found:
            raise self._no_image(digest)
        if len(found) > 1:
            raise NotFound(
                f"{digest!r} is the beginning of {len(found)} images", hint="give more digits"
            )
        image = self._read_image(self._root / "images" / found[0])
        if image is None:
            raise self._no_image(digest)
        return image

    def images(self) -> Sequence[Image]:
        """Return every image, newest first."""
        found = [self._read_image(path) for path in self._directories("images")]
        images = [image for image in found if image is not None]
        return sorted(images, key=lambda image: (image.created, image.role), reverse=True)

    def release(self, release: str) -> Release:
        """Return a release by id."""
        path = self._root / "releases" / release
        found = self._read_release(path) if "/" not in release else None
        if found is None:
            raise NotFound(
                f"there is no release {release!r} in the store",
                hint="'toolkit images list' shows the releases that images belong to",
            )
        return found[0]

    def releases(self) -> Sequence[Release]:
        """Return every release, newest first."""
        read = [self._read_release(path) for path in self._directories("releases")]
        found = [one for one in read if one is not None]
        return [release for release, _ in sorted(found, key=lambda one: one[1], reverse=True)]

    def manifest(self, digest: str) -> Mapping[str, Any]:
        """Return an image's manifest after checking that its bytes have the digest."""
        image = self.image(digest)
        try:
            content = self._image_directory(image.digest).joinpath("manifest.json").read_bytes()
        except FileNotFoundError:
            raise self._no_image(digest) from None
        if digest_of(content) != image.digest:
            raise OutsideError(f"the manifest of {image.digest} was changed after it was sealed")
        manifest: Mapping[str, Any] = json.loads(content)
        return manifest

    def layer_path(self, digest: str) -> Path:
        """Return the sealed file of a layer."""
        return self._root / "layers" / f"{digest.removeprefix('sha256:')}.erofs"

    def find_layer(self, key: str) -> SealedLayer | None:
        """Return the layer that was made from the inputs behind `key`, if it is whole."""
        sealed = self._read_key(self._root / "keys" / f"{key}.json")
        if sealed is None:
            return None
        try:
            size = self.layer_path(sealed.layer.digest).stat().st_size
        except FileNotFoundError:
            return None
        return sealed if size == sealed.layer.size_bytes else None

    def previous_layers(self, role: str) -> Mapping[str, SealedLayer]:
        """Return the layers of the newest image of a role, by name."""
        for image in self.images():
            if image.role == role:
                layers = self.manifest(image.digest)["layers"]
                return {
                    one["name"]: SealedLayer(
                        "", Layer(one["name"], one["digest"], one["size_bytes"]), one["inputs"], ()
                    )
                    for one in layers
                }
        return {}

    def put_layer(
        self, name: str, key: str, inputs: Mapping[str, str], packages: Sequence[str], file: Path
    ) -> SealedLayer:
        """Move a sealed file into the store.

        Args:
            name: The layer's name.
            key: Digest over `inputs`.
            inputs: What it was made from.
            packages: Debian packages in it and below.
            file: On the same file system as the store; gone afterwards.

        Raises:
            OutsideError: The file system refuses.
        """
        faults.reach("bake", "layer", "intended")
        try:
            with file.open("rb") as stream:
                digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
                os.fsync(stream.fileno())
            layer = Layer(name, digest, file.stat().st_size)
            target = self.layer_path(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o400)
            if target.exists() and target.stat().st_size == layer.size_bytes:
                # Machines run from it: another file of the same bytes would take room beside it.
                file.unlink()
            else:
                file.rename(target)
                sync_directory(target.parent)
        except OSError as error:
            raise OutsideError(f"layer {name} could not be stored: {error.strerror}") from None
        faults.reach("bake", "layer", "acted")
        sealed = SealedLayer(key, layer, dict(inputs), tuple(packages))
        document = {
            "name": name,
            "digest": layer.digest,
            "size_bytes": layer.size_bytes,
            "inputs": dict(inputs),
            "packages": list(packages),
        }
        write_atomically(self._root / "keys" / f"{key}.json", json.dumps(document).encode())
        faults.reach("bake", "layer", "committed")
        return sealed

    def put_image(self, manifest: bytes) -> Image:
        """Store an image by its manifest; one that is there already stays as it is."""
        digest = digest_of(manifest)
        directory = self._image_directory(digest)
        if not (directory / "manifest.json").exists():
            role = json.loads(manifest)["role"]
            parent = next((image.digest for image in self.images() if image.role == role), None)
            baked = {"created": time.time(), "parent": parent}
            self._put(directory, manifest, baked, effect="image")
        return self.image(digest)

    def put_release(self, manifest: bytes) -> Release:
        """Store a release by its manifest; one that is there already becomes the newest."""
        directory = self._root / "releases" / release_id(manifest)
        now = time.time()
        baked = {"created": now, "baked": now}
        if known := self._read_release(directory):
            baked["created"] = known[0].created
            write_atomically(directory / "baked.json", json.dumps(baked).encode())
        else:
            self._put(directory, manifest, baked, effect="release")
        return self.release(directory.name)

    def refresh_mark(self) -> str:
        """Return the text that stands for the last deliberate refresh; empty before the first."""
        try:
            return (self._root / "refresh").read_text()
        except FileNotFoundError:
            return ""

    def new_refresh_mark(self) -> str:
        """Return a text that stands for a refresh now, and for no earlier one."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return now if now != self.refresh_mark() else f"{now}+"

    def refresh(self, mark: str) -> None:
        """Have bakes from now on use only layers whose packages were fetched since the mark."""
        write_atomically(self._root / "refresh", mark.encode())

    def release_of(self, digest: str) -> Release | None:
        """Return the release that an image was baked for."""
        return release_of(digest, self.releases())

    def layers(self) -> list[str]:
        """Return the digests of all sealed layers."""
        return [f"sha256:{path.stem}" for path in (self._root / "layers").glob("*.erofs")]

    def remove(self, garbage: Garbage) -> None:
        """Remove what nothing refers to: names before what they name.

        Only for who keeps others from baking: what has no manifest yet would be swept too.

        Raises:
            OutsideError: The file system refuses.
        """
        named = [self._root / "releases" / release for release in garbage.releases]
        named += [self._image_directory(image) for image in garbage.images]
        for directory in named:
            try:
                (directory / "manifest.json").unlink(missing_ok=True)
                sync_directory(directory)
            except OSError as error:
                raise OutsideError(f"{directory} was not removed: {error.strerror}") from None
        for kind in ("releases", "images"):
            for directory in (self._root / kind).glob("[!.]*"):
                if not (directory / "manifest.json").exists():
                    shutil.rmtree(directory, ignore_errors=True)
        gone = set(garbage.layers)
        for path in (self._root / "keys").glob("*.json"):
            sealed = self._read_key(path)
            if sealed and sealed.layer.digest in gone:
                path.unlink()
        for layer in garbage.layers:
            self.layer_path(layer).unlink(missing_ok=True)

    def _directories(self, kind: str) -> list[Path]:
        found = (self._root / kind).glob("[!.]*/manifest.json")
        return sorted(path.parent for path in found)

    def _image_directory(self, digest: str) -> Path:
        return self._root / "images" / digest.removeprefix("sha256:")

    def _put(
        self, directory: Path, manifest: bytes, baked: Mapping[str, Any], *, effect: str
    ) -> None:
        # The manifest comes last: a directory without it is not an image yet.
        faults.reach("bake", effect, "intended")
        write_atomically(directory / "baked.json", json.dumps(baked).encode())
        faults.reach("bake", effect, "acted")
        write_atomically(directory / "manifest.json", manifest)
        sync_directory(directory.parent)
        faults.reach("bake", effect, "committed")

    def _no_image(self, digest: str) -> NotFound:
        return NotFound(
            f"there is no image {digest!r} in the store",
            hint="'toolkit images list' shows what there is",
        )

    def _read_image(self, directory: Path) -> Image | None:
        """Return an image; None when it is no more."""
        if (found := self._read(directory)) is None:
            return None
        manifest, baked = found
        return Image(
            digest=f"sha256:{directory.name}",
            role=manifest["role"],
            layers=tuple(
                Layer(one["name"], one["digest"], one["size_bytes"]) for one in manifest["layers"]
            ),
            parent=baked["parent"],
            commit=manifest["source"]["commit"],
            is_dirty=manifest["source"]["dirty"],
            created=baked["created"],
        )

    def _read_release(self, directory: Path) -> tuple[Release, float] | None:
        """Return a release and when it was last baked; None when it is no more.

        What was left and is returned to is the newest.
        """
        if (found := self._read(directory)) is None:
            return None
        manifest, baked = found
        release = Release(
            id=directory.name,
            service=manifest["service"],
            commit=manifest["commit"],
            is_dirty=manifest["dirty"],
            images=manifest["images"],
            created=baked["created"],
        )
        return release, float(baked.get("baked", baked["created"]))

    def _read(self, directory: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
        manifest = directory / "manifest.json"
        try:
            return json.loads(manifest.read_bytes()), json.loads(
                (directory / "baked.json").read_bytes()
            )
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not manifest.exists():
                return None
            raise OutsideError(
                f"{directory} in the image store is damaged",
                hint="remove this directory, and bake again if its image is still wanted",
            ) from None

    def _read_key(self, path: Path) -> SealedLayer | None:
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise ToolkitError(
                f"{path} is damaged", hint="remove it: the layer is baked again"
            ) from None
        return SealedLayer(
            key=path.stem,
            layer=Layer(document["name"], document["digest"], document["size_bytes"]),
            inputs=document["inputs"],
            packages=tuple(document["packages"]),
        )
