"""Start and remove an environment."""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Iterable
from pathlib import Path

from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.ledger.ledger import Ledger
from toolkit.progress import step
from toolkit.project.load import need_usable_name
from toolkit.roll.ending import end_removed
from toolkit.roll.journal import Journal
from toolkit.roll.observe import need_settled
from toolkit.roll.recover import is_whole, remove_orphans, serving_orphans
from toolkit.roll.restore import restore
from toolkit.roll.site import Site


def bring_up(site: Site, *, is_repair: bool = False, wait_s: float = 0.0) -> list[str]:
    """Have the environment's network and balancer run, and every machine that is meant to.

    Machines that are gone, after the host has restarted for instance, start again from the same
    image, pass their smoke tests again and are admitted again.

    Args:
        site: Where.
        is_repair: Whether places that were changed by hand are put right too.
        wait_s: How long to queue for the lease.

    Returns:
        Names of the machines that were started or admitted.

    Raises:
        ConfigurationError: The balancer cannot run as configured, since a public port is taken
            for instance, or the environment has no usable name; one that was not up is left as it
            was.
        ToolkitError: A machine that came back failed; it stays out of its pool, and all others
            serve.
        UnfinishedRoll: All is well but for a roll that was cut short, which was left as it is.
    """
    name = site.environment.name
    with site.held("up", wait_s=wait_s) as held:
        journal = Journal(held.ledger, {"environment": name}, scope="up")
        was_up = site.ledger.is_up(name)
        if not was_up:
            need_usable_name(site.environment)
        _need_reachable(site)
        try:
            with step(site.progress, f"network of {name}"), journal.effect("network", {}):
                site.network.up()
            with step(site.progress, f"balancer of {name}"), journal.effect("balancer", {}):
                site.balancer.ensure()
        except ToolkitError:
            if not was_up:
                site.balancer.stop()
                site.network.down()
                site.remove_runtime()
            raise
        if not was_up:
            held.ledger.set_up(name, is_up=True)
        # A volume has one owner, so whoever has it goes before the one that is meant to.
        remove_orphans(
            site, held.ledger, is_serving_too=lambda one: bool(site.project.roles[one.role].volumes)
        )
        # What a roll that was cut short has left half-way is for resume or abort to decide.
        unfinished = {roll.role for roll in site.ledger.unfinished_rolls(name)}
        roles = [role for role in site.environment.deployments if role not in unfinished]
        restored = restore(site, roles, held, is_repair=is_repair)
        _replace_strangers(site, held.ledger)
        # Under the lease: later, another operator's roll may be under way.
        need_settled(site)
        return restored


def _replace_strangers(site: Site, ledger: Ledger) -> None:
    """Remove machines that serve and that the ledger does not know, where others serve.

    Raises:
        ToolkitError: Some stay, since what is meant to serve in their place does not.
    """
    if not serving_orphans(site):
        return
    whole = {role for role, pool in site.pools.items() if is_whole(site, role, pool.targets())}
    remove_orphans(site, ledger, is_serving_too=lambda one: one.role in whole)
    left = [one.name for one in serving_orphans(site)]
    if left:
        name = site.environment.name
        raise ToolkitError(
            f"{', '.join(left)} serve, which the ledger does not know, and stay until all serve "
            "that are meant to",
            hint=f"'toolkit status {name}' tells of those; 'toolkit up {name} --repair' has them "
            "serve",
        )


def _need_reachable(site: Site) -> None:
    """Refuse to move the network away from under machines.

    Raises:
        ConfigurationError: One has an address that the network has for no machine.
    """
    network, name = site.environment.network, site.environment.name
    usable = range(int(network.network_address) + 2, int(network.broadcast_address))
    known = {one.name: one.address for one in site.ledger.machines(name)}
    for roll in site.ledger.unfinished_rolls(name):
        # Going back may have to start one again that is forgotten.
        known |= {one["name"]: one["address"] for one in roll.order["records"]}
    cut_off = [
        f"{machine} ({address})"
        for machine, address in known.items()
        if int(ipaddress.IPv4Address(address)) not in usable
    ]
    if cut_off:
        raise ConfigurationError(
            f"{site.environment.directory / 'toolkit.yml'}:network: {network} has no room for "
            f"machines that are there: {', '.join(cut_off)}",
            hint=f"'toolkit down {site.environment.name}' first, or name their network again",
        )


def take_down(site: Site, *, data: Iterable[Path] = (), wait_s: float = 0.0) -> list[str]:
    """Remove the environment's machines, balancer and network.

    Args:
        site: Where.
        data: Directories of its volumes and their copies, if they are to go too.
        wait_s: How long to queue for the lease.

    Returns:
        Names of the machines that were removed.
    """
    name = site.environment.name
    with site.held("down", wait_s=wait_s) as held:
        ledger = held.ledger
        journal = Journal(ledger, {"environment": name}, scope="down")
        for roll in ledger.unfinished_rolls(name):
            site.progress.note(f"{roll.id} of {roll.role} was cut short, and ends here as failed")
            end_removed(ledger, roll)
        # Only now: it has those in the ledger again that an `up` would bring back.
        recorded = {one.name for one in ledger.machines(name)}
        machines = sorted(recorded.union(one.name for one in site.provider.machines()))
        with step(site.progress, f"balancer of {name}"), journal.effect("balancer", {}):
            site.balancer.stop()
        with (
            step(site.progress, f"{len(machines)} machines of {name}"),
            journal.effect("machines", {"machines": machines}),
        ):
            site.provider.destroy(machines, deadline_s=site.environment.stop_s())
        ledger.forget_machines(machines)
        with step(site.progress, f"network of {name}"), journal.effect("network", {}):
            site.network.down()
        # Under the lease: whoever holds it next has files of its own in the same places.
        for directory in data:
            shutil.rmtree(directory, ignore_errors=True)
        site.remove_runtime()
        if ledger.is_up(name):
            ledger.set_up(name, is_up=False)
        return machines
