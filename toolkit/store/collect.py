"""Which images, releases and layers nothing refers to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from toolkit.model import Image, Release


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may be removed.

    Attributes:
        releases: Release ids.
        images: Image digests.
        layers: Layer digests.
    """

    releases: tuple[str, ...]
    images: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def is_some(self) -> bool:
        """Whether there is anything."""
        return bool(self.releases or self.images or self.layers)


def find_garbage(
    *,
    releases: Sequence[Release],
    images: Sequence[Image],
    layers: Collection[str],
    in_use: Collection[str],
    releases_in_use: Collection[str],
    keep_releases: int,
) -> Garbage:
    """Return what nothing refers to.

    A release is kept while it is one of the newest, is in use, or is the newest that holds an
    image in use: by it that image is traced to its commit. A release that is kept has all its
    images, so that it can be rolled elsewhere. An image is kept while it is in use or a release
    that is kept holds it; a layer while an image that is kept has it.

    Args:
        releases: All of them, newest first.
        images: All of them.
        layers: Digests of all sealed layers.
        in_use: Digests of images that must be kept whatever their age.
        releases_in_use: Ids of releases that must be kept whatever their age.
        keep_releases: How many of the newest releases are kept.
    """
    newest_with = {
        next((one.id for one in releases if image in one.images.values()), None) for image in in_use
    }
    needed = newest_with.union(releases_in_use)
    kept_images = set(in_use)
    for number, release in enumerate(releases):
        if number < keep_releases or release.id in needed:
            kept_images.update(release.images.values())
    kept_releases = {one.id for one in releases if kept_images.issuperset(one.images.values())}
    kept_layers = {
        layer.digest for image in images if image.digest in kept_images for layer in image.layers
    }
    return Garbage(
        releases=tuple(one.id for one in releases if one.id not in kept_releases),
        images=tuple(one.digest for one in images if one.digest not in kept_images),
        layers=tuple(sorted(set(layers) - kept_layers)),
    )
