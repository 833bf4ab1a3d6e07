"""`toolkit bake`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from toolkit.cli.context import Context, json_option, short, size

if TYPE_CHECKING:
    from toolkit.bake.plan import Decision


@click.command()
@click.argument("roles", nargs=-1, metavar="[ROLE]...")
@click.option(
    "--ref", metavar="REF", help="Branch, tag or commit of the service's source. [default: HEAD]"
)
@click.option("--allow-dirty", is_flag=True, help="Take uncommitted changes along, and record it.")
@click.option("--explain", is_flag=True, help="Only say what would be baked, and why.")
@click.option("--refresh", is_flag=True, help="Fetch packages anew, in every layer.")
@json_option
@click.pass_obj
def bake(
    context: Context,
    roles: Sequence[str],
    ref: str | None,
    allow_dirty: bool,
    explain: bool,
    refresh: bool,
) -> None:
    """Bake an image for each ROLE (default: all) from one commit: a release.

    A layer whose inputs have not changed is not built again.

    \b
    Example:
      toolkit bake
      toolkit bake app --ref v1.4.2
      toolkit bake --explain
    """
    from toolkit import wiring

    chosen = wiring.select_roles(context.project, roles)
    if not explain:
        context.need_root()
    job = wiring.make_bake(context, ref=ref, is_dirty_allowed=allow_dirty, is_refresh=refresh)
    if explain:
        decisions = job.explain(chosen)
        context.emit(_as_data(decisions), _as_text(decisions))
        return
    with wiring.bake_lock(context.state, doing="a bake"):
        baked = job.run(chosen)
    context.record(
        "release.baked",
        release=baked.release.id,
        commit=baked.release.commit,
        dirty=baked.release.is_dirty,
        images=dict(baked.release.images),
    )
    data = {
        "release": baked.release.id,
        "commit": baked.release.commit,
        "dirty": baked.release.is_dirty,
        "images": dict(baked.release.images),
        "layers": _as_data(baked.decisions),
    }
    lines = [f"release {baked.release.id} from commit {baked.release.commit[:12]}"]
    for role, image in baked.images.items():
        built = sum(not decision.is_reused for decision in baked.decisions[role])
        lines.append(
            f"  {role:<12} {short(image.digest)}  {size(image.size_bytes):>9}  "
            f"{built} of {len(image.layers)} layers built"
        )
    context.emit(data, "\n".join(lines))


def _as_data(decisions: Mapping[str, Sequence[Decision]]) -> dict[str, list[dict[str, object]]]:
    return {
        role: [{"layer": d.name, "reused": d.is_reused, "changed": list(d.changed)} for d in layers]
        for role, layers in decisions.items()
    }


def _as_text(decisions: Mapping[str, Sequence[Decision]]) -> str:
    lines = []
    for role, layers in decisions.items():
        lines.append(f"{role}:")
        for decision in layers:
            verb = "reuse" if decision.is_reused else "build"
            lines.append(f"  {verb}  {decision.name:<16} {decision.reason}")
    return "\n".join(lines)
