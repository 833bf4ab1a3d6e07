"""Manifests: the canonical texts whose digests name images and releases. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.canonical import canonical_json
from toolkit.model import Layer

SCHEMA = 1

REFRESH = "refresh"
"""Name of the input that stands for the last refresh, a time."""


@dataclass(frozen=True, slots=True)
class SealedLayer:
    """A layer in the store, with what went into it.

    Attributes:
        key: Digest over `inputs`; the same inputs find the same layer.
        layer: Name, digest and size of the sealed file.
        inputs: Input name to digest or text, as `toolkit.bake.plan` computes them.
        packages: Debian packages at the time of sealing, `name=version`, sorted.
    """

    key: str
    layer: Layer
    inputs: Mapping[str, str]
    packages: tuple[str, ...]


def image_manifest(
    *, role: str, sealed: Sequence[SealedLayer], commit: str | None, is_dirty: bool
) -> bytes:
    """Return the canonical manifest of an image.

    It pins every layer by SHA-256 and records what the layers were made from. It holds no time,
    no host, no environment and no path, so that the same inputs give the same digest anywhere,
    and a refresh that brought nothing new gives the same image.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "role": role,
        "source": {"commit": commit, "dirty": is_dirty},
        "layers": [
            {
                "name": one.layer.name,
                "digest": one.layer.digest,
                "size_bytes": one.layer.size_bytes,
                "inputs": {n: value for n, value in one.inputs.items() if n != REFRESH},
            }
            for one in sealed
        ],
        "packages": list(sealed[-1].packages),
    }
    return canonical_json(document)


def release_manifest(
    *,
    service: str,
    commit: str,
    project_commit: str | None,
    is_dirty: bool,
    images: Mapping[str, str],
) -> bytes:
    """Return the canonical manifest of a release."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "service": service,
        "commit": commit,
        "project_commit": project_commit,
        "dirty": is_dirty,
        "images": dict(images),
    }
    return canonical_json(document)


def digest_of(manifest: bytes) -> str:
    """Return `sha256:` and the digest of a manifest's bytes."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def release_id(manifest: bytes) -> str:
    """Return the short name of a release, taken from its manifest's digest."""
    return "r-" + hashlib.sha256(manifest).hexdigest()[:12]
