"""From what an operator asks for to the order of a roll."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from toolkit.errors import ConfigurationError, NotFound
from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.model import Image, Release, held_addresses, running_names, withdrawn_addresses
from toolkit.project.settings import role_settings
from toolkit.roll.inputs import Inputs, endpoints
from toolkit.roll.order import RollOrder
from toolkit.roll.past import rollback_target
from toolkit.roll.plan import RollPlan, RollPolicy, allocate, plan_return, plan_roll
from toolkit.roll.site import Site
from toolkit.roll.watch import Thresholds


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run.

    Attributes:
        image: The image.
        release: The release that it comes with, if it belongs to one.
    """

    image: Image
    release: Release | None


def choose(
    site: Site, roles: Sequence[str], image: str | None, release: str | None
) -> dict[str, Wanted]:
    """Return what each role is to run, in the order in which they are rolled.

    Args:
        site: Where.
        roles: Which roles; all of the environment when none is named.
        image: Digest, for exactly one role.
        release: Release id; the newest one when neither is given.

    Raises:
        NotFound: No such role, image or release.
        ConfigurationError: The image was baked for another role.
    """
    for role in roles:
        need_role(site, role)
    chosen = [role for role in site.environment.deployments if not roles or role in roles]
    if image is not None:
        return {role: _by_image(site, role, image) for role in chosen}
    if release is None:
        return {role: _newest(site, role) for role in chosen}
    return {role: _by_release(site, role, site.images.release(release)) for role in chosen}


def need_role(site: Site, role: str) -> None:
    """Refuse a role that the environment does not have.

    Raises:
        NotFound: It has no such role.
    """
    if role not in site.environment.deployments:
        raise NotFound(
            f"{site.environment.name} has no role {role!r}",
            hint=f"it has: {', '.join(site.environment.deployments)}",
        )


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
    serving = {target.address for target in site.pools[role].targets() if target.is_serving}
    return (
        len(members) == site.environment.deployments[role].machines
        and serving == {member.address for member in members}
        and all(
            member.image == wanted.image.digest and member.inputs == inputs.digest
            for member in members
        )
    )


def prepare_roll(
    site: Site, role: str, wanted: Wanted, inputs: Inputs, *, roll_id: str
) -> RollOrder:
    """Return the order of a roll; nothing is changed.

    Args:
        site: Where.
        role: Which role.
        wanted: What is to run.
        inputs: Its configuration and secrets.
        roll_id: Name of the roll; machine names are made from it.

    Raises:
        ConfigurationError: The network has no room, or the role has no smoke tests.
    """
    site.smoke.need_tests(role)
    environment = site.environment
    recorded = site.ledger.machines(environment.name)
    old = _old_machines(site, role)
    warm = [one for one in recorded if one.role == role and one.is_warm]
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
        for number, address in enumerate(_free_addresses(site, role, recorded), start=1)
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
    old = _old_machines(site, role)
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


def previous_roll(ledger: Ledger, environment: str, role: str) -> RollRecord | None:
    """Return the roll to whose image a rollback of a role goes, or None."""
    members = ledger.members(environment, role)
    if not members:
        return None
    rolls, images = ledger.rolls(environment, role), {one.image for one in members}
    current = members[-1].image
    if len(images) > 1 and rolls[0].outcome == "left":
        # Of a rollback that was left in the middle, the version that it was to leave.
        current = (rolls[0].previous if rolls[0].is_rollback else rolls[0].image) or current
    return rollback_target(rolls, current)


def choose_previous(site: Site, role: str) -> Wanted:
    """Return what a role goes back to when the operator names nothing.

    Raises:
        NotFound: Nothing served before that was not left by a rollback, or it is gone.
    """
    name = site.environment.name
    roll = previous_roll(site.ledger, name, role)
    if roll is None:
        raise NotFound(
            f"{name} {role} has no earlier image to go back to",
            hint="name one with --to; 'toolkit images list' shows them",
        )
    try:
        return _by_image(site, role, roll.image)
    except NotFound:
        raise NotFound(
            f"{name} {role} would go back to image {roll.image}, which the store has no more",
            hint="name another with --to; 'toolkit images list' shows them",
        ) from None


def machine_name(role: str, roll_id: str, number: int) -> str:
    """Return the name of a roll's machine, which is its host name: that has no underscores."""
    return f"{role.replace('_', '-')}-{roll_id.removeprefix('roll-')}-{number}"


def _old_machines(site: Site, role: str) -> list[MachineRecord]:
    """Return the machines that are to be replaced: those that run first."""
    running = running_names(site.provider.machines())
    recorded = site.ledger.machines(site.environment.name, role)
    # One recorded as new was coming back when `up` was cut short or its tests failed.
    meant = [one for one in recorded if not one.is_warm]
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
    serving = {target.address for target in site.pools[role].targets() if target.is_serving}
    return tuple(one.name for one in machines if one.address not in serving)


def _free_addresses(site: Site, role: str, recorded: Sequence[MachineRecord]) -> tuple[str, ...]:
    environment = site.environment
    used = {one.address for one in recorded}
    used |= {one.address for one in site.provider.machines()}
    used |= {target.address for pool in site.pools.values() for target in pool.targets()}
    try:
        return allocate(
            environment.network, used=used, count=environment.deployments[role].machines
        )
    except ValueError as error:
        raise ConfigurationError(
            f"{environment.directory / 'toolkit.yml'}:network: {error}",
            hint="a roll needs room for old and new machines",
        ) from None


def _by_image(site: Site, role: str, digest: str) -> Wanted:
    image = site.images.image(digest)
    if image.role != role:
        raise ConfigurationError(
            f"image {digest} was baked for role {image.role}, not {role}",
            hint="'toolkit images list' shows which image is for which role",
        )
    return Wanted(image, site.images.release_of(image.digest))


def _by_release(site: Site, role: str, release: Release) -> Wanted:
    if role not in release.images:
        raise NotFound(f"release {release.id} has no image for role {role!r}")
    return Wanted(site.images.image(release.images[role]), release)


def _newest(site: Site, role: str) -> Wanted:
    for release in site.images.releases():
        if role in release.images:
            return _by_release(site, role, release)
    raise NotFound(f"no release has an image for role {role!r}", hint="run 'toolkit bake'")
