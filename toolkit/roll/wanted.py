"""Which image a role is to run: what an operator names, the newest, or an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import ConfigurationError, NotFound
from toolkit.ledger.ledger import Ledger, RollRecord
from toolkit.model import Image, Release
from toolkit.roll.past import rollback_target
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


def previous_roll(ledger: Ledger, environment: str, role: str) -> RollRecord | None:
    """Return the roll to whose image a rollback of a role goes, or None."""
    members = ledger.members(environment, role)
    if not members:
        return None
    rolls, images = ledger.rolls(environment, role), {one.image for one in members}
    current = members[-1].image
    last = next((one for one in rolls if one.outcome in {"rolled", "left"}), None)
    if len(images) > 1 and last and last.outcome == "left":
        # Of a rollback that was left in the middle, the version that it was to leave.
        current = (last.previous if last.is_rollback else last.image) or current
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
