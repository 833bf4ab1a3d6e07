"""Removes what nothing refers to: machines, copies of volumes, releases, images, layers."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass

from toolkit.ledger.ledger import Ledger
from toolkit.project.load import environment_names
from toolkit.roll import expire, lease
from toolkit.roll.journal import Journal
from toolkit.roll.observe import unfinished
from toolkit.store.collect import Garbage, find_garbage
from toolkit.wiring import bake_lock, open_ledger, open_site, open_store
from toolkit.workplace import Workplace


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed, or would remove.

    Attributes:
        machines: Machines past their warm window, and machines that nothing knows.
        snapshots: Older copies of volumes, `ENVIRONMENT/NAME`.
        garbage: Releases, images and layers.
        size_bytes: Of the layers.
    """

    machines: tuple[str, ...]
    snapshots: tuple[str, ...]
    garbage: Garbage
    size_bytes: int


def collect(
    workplace: Workplace,
    *,
    keep_releases: int,
    keep_snapshots: int,
    is_dry_run: bool,
    wait_s: float = 0.0,
) -> Collected:
    """Remove what nothing refers to.

    Args:
        workplace: The project and the state directory.
        keep_releases: How many stay, the newest.
        keep_snapshots: How many copies of each volume stay, the newest.
        is_dry_run: Only look.
        wait_s: How long to queue for the lease of each environment.

    Raises:
        LeaseHeld: A bake runs, or an environment is being changed.
    """
    machines: list[str] = []
    snapshots: list[str] = []
    live: set[str] = set()
    doing = "a garbage collection"
    with nullcontext() if is_dry_run else bake_lock(workplace.state, doing=doing):
        for name in environment_names(workplace.project):
            with open_site(workplace, name, is_looking=is_dry_run) as site:
                for remark in unfinished(site):
                    workplace.progress.note(f"{name} is left as it is: {remark.text}")
                machines += expire.retire(site, is_dry_run=is_dry_run, wait_s=wait_s)
                trimmed = expire.trim_snapshots(
                    site, keep=keep_snapshots, is_dry_run=is_dry_run, wait_s=wait_s
                )
                snapshots += [f"{name}/{one}" for one in trimmed]
                live |= {one.image for one in site.provider.machines() if one.image}
        store = open_store(workplace.state)

        def look(ledger: Ledger) -> Garbage:
            in_use = expire.find_in_use(ledger)
            return find_garbage(
                releases=store.releases(),
                images=store.images(),
                layers=store.layers(),
                in_use=in_use.images | live,
                releases_in_use=in_use.releases,
                keep_releases=keep_releases,
            )

        with (
            open_ledger(workplace.state, is_looking=is_dry_run) as ledger,
            ExitStack() as leases,
        ):
            garbage, held = look(ledger), []
            if garbage.is_some and not is_dry_run:
                # A roll that began meanwhile may need what was garbage before.
                names = {*environment_names(workplace.project), *ledger.environments()}
                for name in sorted(names):
                    waiting = lease.held(ledger, name, doing="gc", wait_s=wait_s)
                    held.append(leases.enter_context(waiting))
                garbage = look(ledger)
            size = sum(store.layer_path(layer).stat().st_size for layer in garbage.layers)
            if not is_dry_run:
                journal = Journal(ledger, {}, scope="gc")
                # Without garbage it only sweeps what a kill has left of an earlier removal.
                is_written = garbage.is_some
                # Who was stopped for long may have lost one; that environment may need this now.
                for one in held:
                    one.renew()
                with journal.effect("store", asdict(garbage)) if is_written else nullcontext():
                    store.remove(garbage)
    return Collected(tuple(machines), tuple(snapshots), garbage, size)
