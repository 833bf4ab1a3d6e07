"""From what an operator asks for to the order of a roll."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import ConfigurationError, NotFound
from toolkit.ledger.ledger import MachineRecord
from toolkit.model import Image, MachineState, Release
from toolkit.project.load import role_settings
from toolkit.roll.orders import Inputs, endpoints
from toolkit.roll.plan import allocate, plan_roll
from toolkit.roll.run import RollOrder
from toolkit.roll.site import Site


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
    members = site.ledger.machines(site.environment.name, role)
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
    """
    environment = site.environment
    deployment = environment.deployments[role]
    live = site.provider.machines()
    running = {one.name for one in live if one.state is not MachineState.STOPPED}
    recorded = site.ledger.machines(environment.name)
    old = [one for one in recorded if one.role == role and one.name in running]
    used = {one.address for one in recorded} | {one.address for one in live}
    used.update(target.address for pool in site.pools.values() for target in pool.targets())
    names = [
        f"{role}-{roll_id.removeprefix('roll-')}-{number}"
        for number in range(1, deployment.machines + 1)
    ]
    try:
        addresses = allocate(environment.network, used=used, count=len(names))
    except ValueError as error:
        raise ConfigurationError(
            f"{environment.directory / 'toolkit.yml'}:network: {error}",
            hint="a roll needs room for old and new machines",
        ) from None
    new = [
        MachineRecord(
            name=name,
            environment=environment.name,
            role=role,
            image=wanted.image.digest,
            release=wanted.release.id if wanted.release else None,
            address=address,
            standing="new",
            inputs=inputs.digest,
            since=time.time(),
        )
        for name, address in zip(names, addresses, strict=True)
    ]
    records = {one.name: one for one in (*old, *new)}
    return RollOrder(
        id=roll_id,
        environment=environment.name,
        role=role,
        plan=plan_roll(
            deployment.strategy,
            old=[one.name for one in old],
            new=names,
            batch=deployment.batch,
        ),
        launches={
            one.name: inputs.order(one.name, image=one.image, address=one.address)
            for one in records.values()
        },
        records=records,
        timeouts=deployment.timeouts,
    )


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
