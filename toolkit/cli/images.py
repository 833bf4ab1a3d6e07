"""`toolkit images list | show | disk`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from toolkit.cli.context import Context, age, fields, json_option, short, size, table
from toolkit.model import Image, Release, release_of


@click.group()
def images() -> None:
    """List, show and export images."""


@images.command("list")
@json_option
@click.pass_obj
def list_(context: Context) -> None:
    """List the images in the store, newest first.

    \b
    Example:
      toolkit images list --json
    """
    from toolkit.wiring import open_store

    store = open_store(context.state)
    releases = store.releases()
    found = [(image, release_of(image.digest, releases)) for image in store.images()]
    rows = [
        (
            short(image.digest),
            image.role,
            release.id if release else "-",
            (release.commit if release else image.commit or "-")[:12],
            age(time.time() - image.created),
            size(image.size_bytes),
        )
        for image, release in found
    ]
    context.emit(
        [_as_data(image, release) for image, release in found],
        table(
            ("IMAGE", "ROLE", "RELEASE", "COMMIT", "AGE", "SIZE"),
            rows,
            empty="no images: 'toolkit bake' makes some",
        ),
    )


@images.command()
@click.argument("digest")
@json_option
@click.pass_obj
def show(context: Context, digest: str) -> None:
    """Show an image: its layers, what they were made from, its packages and releases.

    \b
    Example:
      toolkit images show 3f2a90c1d2e4
    """
    from toolkit.wiring import open_store

    store = open_store(context.state)
    image = store.image(digest)
    manifest = store.manifest(image.digest)
    releases = [r.id for r in store.releases() if image.digest in r.images.values()]
    data = _as_data(image, store.release_of(image.digest)) | {
        "releases": releases,
        "manifest": manifest,
    }
    text = fields(
        {
            "image": image.digest,
            "role": image.role,
            "releases": ", ".join(releases) or "none",
            "source commit": (image.commit or "takes nothing from the source")
            + (", with uncommitted changes" if image.is_dirty else ""),
            "baked": f"{age(time.time() - image.created)} ago",
            "parent": image.parent or "none",
            "packages": str(len(manifest["packages"])),
        }
    )
    layers = table(
        ("LAYER", "DIGEST", "SIZE"),
        [(one.name, short(one.digest), size(one.size_bytes)) for one in image.layers],
        empty="",
    )
    context.emit(data, f"{text}\n\n{layers}")


@images.command()
@click.argument("digest")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def disk(context: Context, digest: str, output: Path) -> None:
    """Assemble an image's bootable disk: a raw GPT file for UEFI machines.

    \b
    Example:
      toolkit images disk 3f2a90c1d2e4 app.raw
    """
    from toolkit.wiring import assemble_disk

    context.need_root()
    image = assemble_disk(context, digest, output.resolve())
    count = output.stat().st_size
    context.emit(
        {"image": image.digest, "path": str(output.resolve()), "size_bytes": count},
        f"{output}: {size(count)}, image {short(image.digest)}",
    )


def _as_data(image: Image, release: Release | None) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "role": image.role,
        "release": release.id if release else None,
        "commit": release.commit if release else image.commit,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(image.created)),
        "size_bytes": image.size_bytes,
        "layers": [
            {"name": one.name, "digest": one.digest, "size_bytes": one.size_bytes}
            for one in image.layers
        ],
        "parent": image.parent,
    }
