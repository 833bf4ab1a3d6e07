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


def find_garbage(
    *,
    releases: Sequence[Release],
    images: Sequence[Image],
    layers: Collection[str],
    in_use: Collection[str],
    keep_releases: int,
) -> Garbage:
    """Return what nothing refers to.

    An image is kept while a machine runs it, an unfinished roll or a rollback may need it, or one
    of the newest releases holds it; a layer while an image that is kept has it.

    Args:
        releases: All of them, newest first.
        images: All of them.
        layers: Digests of all sealed layers.
        in_use: Digests of images that must be kept whatever their age.
        keep_releases: How many of the newest releases are kept.
    """
    kept_images = set(in_use)
    for release in releases[:keep_releases]:
        kept_images.update(release.images.values())
    kept_releases = {
        release.id
        for number, release in enumerate(releases)
        if number < keep_releases or kept_images.issuperset(release.images.values())
    }
    kept_layers = {
        layer.digest for image in images if image.digest in kept_images for layer in image.layers
    }
    return Garbage(
        releases=tuple(one.id for one in releases if one.id not in kept_releases),
        images=tuple(one.digest for one in images if one.digest not in kept_images),
        layers=tuple(sorted(set(layers) - kept_layers)),
    )
