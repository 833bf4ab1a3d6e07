"""From what an operator asks for to the order of a roll."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from toolkit.errors import ConfigurationError
from toolkit.ledger.ledger import MachineRecord
from toolkit.model import (
    held_addresses,
    ready_addresses,
    running_names,
    serving_addresses,
    withdrawn_addresses,
)
from toolkit.project.settings import role_settings
from toolkit.roll.inputs import Inputs, endpoints
from toolkit.roll.order import RollOrder
from toolkit.roll.plan import RollPlan, RollPolicy, allocate, plan_return, plan_roll
from toolkit.roll.site import Site
from toolkit.roll.wanted import Wanted
from toolkit.roll.watch import Thresholds


def gather_inputs(site: Site, role: str) -> Inputs:
    """Return configuration and secrets of a role's machines.

    Raises:
        ConfigurationError: A setting or a secret is missing or wrong.
    """
    environment = site.environment
    return Inputs(
        role=role,
        environment=environment.name,
        settings=role_settings(site.project, environment, role),
        endpoints=endpoints(site.project, environment, role),
        secrets=site.secrets.secrets(environment.name, role),
        volumes=site.project.roles[role].volumes,
    )


def is_current(site: Site, role: str, wanted: Wanted, inputs: Inputs) -> bool:
    """Whether exactly the wanted machines serve already."""
    members = site.members(role)
    serving = serving_addresses(site.pools[role].targets())
    return (
        len(members) == site.environment.deployments[role].machines
        and serving == {member.address for member in members}
        and all(
            member.image == wanted.image.digest and member.inputs == inputs.digest
            for member in members
        )
    )


def prepare_roll(
    site: Site,
    role: str,
    wanted: Wanted,
    inputs: Inputs,
    *,
    roll_id: str,
    gone: Sequence[MachineRecord] = (),
) -> RollOrder:
    """Return the order of a roll; nothing is changed.

    Args:
        site: Where.
        role: Which role.
        wanted: What is to run.
        inputs: Its configuration and secrets.
        roll_id: Name of the roll; machine names are made from it.
        gone: Machines that will not be there any more when it begins.

    Raises:
        ConfigurationError: The network has no room, or the role has no smoke tests.
    """
    site.smoke.need_tests(role)
    environment = site.environment
    recorded = [one for one in site.ledger.machines(environment.name) if one not in gone]
    old = _old_machines(site, role)
    # One that somebody has put back into service is one to be replaced.
    warm = [one for one in recorded if one.role == role and one.is_warm and one not in old]
    new = [
        MachineRecord(
            name=machine_name(role, roll_id, number),
            environment=environment.name,
            role=role,
            image=wanted.image.digest,
            release=wanted.release.id if wanted.release else None,
            address=address,
            standing="new",
            inputs=inputs.digest,
            since=time.time(),
        )
        for number, address in enumerate(_free_addresses(site, role, gone), start=1)
    ]
    plan = plan_roll(
        policy_of(site, role),
        old=[one.name for one in old],
        new=[one.name for one in new],
        retired=[one.name for one in warm],
    )
    return make_order(
        site,
        role,
        plan,
        (*warm, *old, *new),
        inputs,
        roll_id=roll_id,
        held=_withdrawn(site, role, old),
        absent=_absent(site, role, old),
    )


def prepare_return(
    site: Site, role: str, image: str, inputs: Inputs, *, roll_id: str
) -> RollOrder | None:
    """Return the order of going back to warm machines, or None when there are not enough.

    Args:
        site: Where.
        role: Which role.
        image: Digest of the image to go back to.
        inputs: Configuration and secrets now; machines that were told others are not used.
        roll_id: Name of the roll.
    """
    running = running_names(site.provider.machines())
    # One that hangs runs too; its place is checked although it is drained.
    ill = {target.address for target in site.pools[role].targets() if not target.is_healthy}
    count = site.environment.deployments[role].machines
    warm = [
        one
        for one in site.ledger.machines(site.environment.name, role)
        if one.is_warm
        and one.image == image
        and one.inputs == inputs.digest
        and one.name in running
        and one.address not in ill
    ][:count]
    if len(warm) < count:
        return None
    old = [one for one in _old_machines(site, role) if one not in warm]
    in_service = ready_addresses(site.pools[role].targets())
    plan = plan_return(
        policy_of(site, role), old=[one.name for one in old], warm=[one.name for one in warm]
    )
    return make_order(
        site,
        role,
        plan,
        (*old, *warm),
        inputs,
        roll_id=roll_id,
        held=_withdrawn(site, role, old),
        absent=_absent(site, role, old),
        in_service=[one.name for one in warm if one.address in in_service],
    )


def make_order(
    site: Site,
    role: str,
    plan: RollPlan,
    records: Sequence[MachineRecord],
    inputs: Inputs,
    *,
    roll_id: str,
    held: Collection[str] = (),
    absent: Collection[str] = (),
    in_service: Collection[str] = (),
) -> RollOrder:
    """Return the order that carries out a plan.

    Args:
        site: Where.
        role: Which role.
        plan: What to do.
        records: Of the machines in it.
        inputs: The role's configuration and secrets.
        roll_id: Name of the roll.
        held: Old machines that were drained or in maintenance when it began.
        absent: Old machines that did not serve when it began, whatever the reason.
        in_service: Warm machines that served when it began, of a return to such.
    """
    deployment = site.environment.deployments[role]
    soak = deployment.soak
    return RollOrder(
        id=roll_id,
        environment=site.environment.name,
        role=role,
        plan=plan,
        launches={
            one.name: inputs.order(one.name, image=one.image, address=one.address)
            for one in records
        },
        inputs=inputs.digest,
        records={one.name: one for one in records},
        timeouts=deployment.timeouts,
        thresholds=Thresholds(soak.max_error_percent, soak.min_requests, soak.max_response_ratio),
        held=held,
        absent=absent,
        in_service=in_service,
    )


def policy_of(site: Site, role: str) -> RollPolicy:
    """Return how a role is rolled, from the project and the environment's definition."""
    spec, deployment = site.project.roles[role], site.environment.deployments[role]
    return RollPolicy(
        strategy=deployment.strategy,
        batch=deployment.batch,
        canary_machines=min(deployment.canary.machines, deployment.machines),
        canary_percent=deployment.canary.percent,
        canary_watch_s=deployment.canary.watch_s,
        soak_s=deployment.soak.seconds,
        keep_warm_s=deployment.keep_warm_s,
        has_snapshot=deployment.has_snapshot,
        before_hook=spec.before_hook,
        after_hook=spec.after_hook,
    )


def machine_name(role: str, roll_id: str, number: int) -> str:
    """Return the name of a roll's machine, which is its host name: that has no underscores."""
    return f"{role.replace('_', '-')}-{roll_id.removeprefix('roll-')}-{number}"


def _old_machines(site: Site, role: str) -> list[MachineRecord]:
    """Return the machines that are to be replaced: those that run first.

    Warm ones are among them where somebody has put them back into service.
    """
    running = running_names(site.provider.machines())
    recorded = site.ledger.machines(site.environment.name, role)
    ready = ready_addresses(site.pools[role].targets())
    # One recorded as new was coming back when `up` was cut short or its tests failed.
    meant = [one for one in recorded if not one.is_warm or one.address in ready]
    return sorted(meant, key=lambda one: one.name not in running)


def _withdrawn(site: Site, role: str, machines: Sequence[MachineRecord]) -> tuple[str, ...]:
    """Return the machines that somebody has put into maintenance, or has drained.

    One that is no member drains because an earlier command that brought it back was cut short.
    """
    targets = site.pools[role].targets()
    in_maintenance, withdrawn = held_addresses(targets), withdrawn_addresses(targets)
    return tuple(
        one.name
        for one in machines
        if one.address in (withdrawn if one.is_member else in_maintenance)
    )


def _absent(site: Site, role: str, machines: Sequence[MachineRecord]) -> tuple[str, ...]:
    """Return the machines that serve nobody now."""
    serving = serving_addresses(site.pools[role].targets())
    return tuple(one.name for one in machines if one.address not in serving)


def in_the_way(site: Site, role: str) -> list[MachineRecord]:
    """Return the warm machines of a role that must go first, since a roll needs their addresses."""
    if _allocate(site, role) is not None:
        return []
    ready = ready_addresses(site.pools[role].targets())
    recorded = site.ledger.machines(site.environment.name, role)
    warm = [one for one in recorded if one.is_warm and one.address not in ready]
    return warm if _allocate(site, role, warm) is not None else []


def _free_addresses(site: Site, role: str, gone: Sequence[MachineRecord]) -> tuple[str, ...]:
    found = _allocate(site, role, gone)
    if found is None:
        environment = site.environment
        raise ConfigurationError(
            f"{environment.directory / 'toolkit.yml'}:network: {environment.network} has too few "
            f"free addresses for {environment.deployments[role].machines} machines of {role}",
            hint="a roll needs room for old and new machines",
        )
    return found


def _allocate(site: Site, role: str, gone: Sequence[MachineRecord] = ()) -> tuple[str, ...] | None:
    """Return addresses for a role's new machines, None where there are too few.

    Args:
        site: Where.
        role: Which role.
        gone: Machines whose addresses are free by then.
    """
    environment = site.environment
    used = {one.address for one in site.ledger.machines(environment.name)}
    used |= {one.address for one in site.provider.machines()}
    used |= {target.address for pool in site.pools.values() for target in pool.targets()}
    used -= {one.address for one in gone}
    try:
        return allocate(
            environment.network, used=used, count=environment.deployments[role].machines
        )
    except ValueError:
        return None
