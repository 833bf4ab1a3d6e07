"""`toolkit gc`."""

from __future__ import annotations

import click

from toolkit.cli.context import Context, json_option, short, size, wait_option


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--keep", type=click.IntRange(1), default=5, show_default=True, help="Newest releases to keep."
)
@click.option(
    "--keep-snapshots",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Newest copies of each volume to keep.",
)
@wait_option
@json_option
@click.pass_obj
def gc(context: Context, dry_run: bool, keep: int, keep_snapshots: int, wait: float) -> None:
    """Remove what nothing refers to: old images and layers, machines past their warm window.

    Also the older copies of volumes, and machines that the ledger does not know. What runs, is
    warm, is needed by an unfinished roll or is where a rollback would go is never touched.

    \b
    Example:
      toolkit gc --dry-run
    """
    from toolkit.cli import garbage

    context.need_root()
    found = garbage.collect(
        context,
        keep_releases=keep,
        keep_snapshots=keep_snapshots,
        is_dry_run=dry_run,
        wait_s=wait,
    )
    verb = "would be removed" if dry_run else "removed"
    lines = [
        *(f"machine {name} {verb}" for name in found.machines),
        *(f"snapshot {name} {verb}" for name in found.snapshots),
        *(f"release {name} {verb}" for name in found.garbage.releases),
        *(f"image   {short(digest)} {verb}" for digest in found.garbage.images),
        *(f"layer   {short(digest)} {verb}" for digest in found.garbage.layers),
        f"{size(found.size_bytes)} {'would be ' if dry_run else ''}freed",
    ]
    data = {
        "dry_run": dry_run,
        "machines": list(found.machines),
        "snapshots": list(found.snapshots),
        "releases": list(found.garbage.releases),
        "images": list(found.garbage.images),
        "layers": list(found.garbage.layers),
        "size_bytes": found.size_bytes,
    }
    context.emit(data, "\n".join(lines))
