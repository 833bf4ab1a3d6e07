"""Rotation of a secret in use, from a new value to the proof that the old one is dead.

    1. the new value is in the vaults, beside the old one
    2. machines whose role can renew it take it up while they run; both values are good
    3. the machines of the other roles are replaced, each role after those that it uses
    4. the old value is revoked
    5. the services themselves refuse it, or no longer show it
    6. the old value leaves the vaults

Every step looks at what is there and does what is missing: after an interruption the same command
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from toolkit import interrupt
from toolkit.errors import ConfigurationError
from toolkit.ledger.ledger import RollRecord
from toolkit.model import running_names
from toolkit.progress import step
from toolkit.project.model import SecretSpec
from toolkit.roll.command import NOT_BEGUN, abort, need_up, resume, roll_role
from toolkit.roll.journal import Journal
from toolkit.roll.lease import Lease
from toolkit.roll.observe import need_settled
from toolkit.roll.plan import plan_from_data
from toolkit.roll.prepare import gather_inputs
from toolkit.roll.proof import prove, ways_on
from toolkit.roll.site import Site
from toolkit.roll.wanted import choose
from toolkit.secrets.grants import BALANCER, Matrix
from toolkit.secrets.rotate import Announce, Rotation


@dataclass(frozen=True, slots=True)
class RotationReport:
    """How a rotation ended.

    Attributes:
        environment: Where.
        secret: Name of the secret.
        version: The one that is in use now.
        is_back: Whether that is an old value again.
        roles: Role to what was done: `renewed`, `rolled` or `unchanged`.
        proofs: What the services themselves said; empty where no role has a way to ask.
        seconds: Wall time.
    """

    environment: str
    secret: str
    version: int
    is_back: bool
    roles: dict[str, str]
    proofs: list[dict[str, str]]
    seconds: float

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON and the ledger."""
        return {
            "environment": self.environment,
            "secret": self.secret,
            "version": self.version,
            "is_back": self.is_back,
            "roles": self.roles,
            "proofs": self.proofs,
            "seconds": round(self.seconds, 3),
        }


def start(
    site: Site,
    name: str,
    roles: Collection[str],
    begin: Callable[[Announce], Rotation],
    *,
    wait_s: float = 0.0,
) -> Rotation:
    """Begin a rotation, unless it could not be finished; record that before a vault is written.

    A roll that an interrupted rotation of the same secret left behind is finished; it is taken back
    where its machines were told another value than is to be brought out now.

    Args:
        site: Where.
        name: Of the secret.
        roles: Who knows it.
        begin: Writes the new value into the vaults, after it has announced that.
        wait_s: How long to queue for the lease.

    Raises:
        ConfigurationError: It is not up, or machines have not taken up what was changed before.
        LeaseHeld: Another process is changing the environment.
        UnfinishedRoll: A roll was cut short.
    """
    interrupt.check(NOT_BEGUN)
    with site.held(f"the beginning of a rotation of {name}", wait_s=wait_s) as held:
        need_up(site)
        is_under_way = _is_under_way(site, name)
        if not is_under_way or not all(_is_own(one, roles) for one in _unfinished(site)):
            need_settled(site)

        def announce(rotation: Rotation) -> None:
            if not rotation.is_resumed:
                # Also where the last one was recorded, and killed before it had written anything.
                need_settled(site)
                _need_taken_up(site, roles)
            held.ledger.append(
                "rotation.started",
                {"secret": name, "version": rotation.new.version, "is_back": rotation.is_back},
                environment=site.environment.name,
            )

        rotation = begin(announce)
    if is_under_way and rotation.is_resumed:
        take_up = resume if all(_is_up_to_date(site, one) for one in _unfinished(site)) else abort
        for result in take_up(site, wait_s=wait_s):
            if result.error is not None:
                raise result.error
    return rotation


def carry_out(
    site: Site, matrix: Matrix, rotation: Rotation, *, namespace: str, wait_s: float = 0.0
) -> RotationReport:
    """Bring a new value to whoever knows the old one, and prove that the old one is dead.

    Args:
        site: Where.
        matrix: Says whose machines can renew the secret while they run.
        rotation: The new and the old value.
        namespace: The environment's network namespace; the services are asked from there.
        wait_s: How long to queue for the lease.

    Raises:
        ToolkitError: A roll failed, or the old value is still good; the same command goes on.
    """
    began = time.monotonic()
    name = site.environment.name
    specs = {role: matrix.secret(name, role, rotation.name) for role in rotation.roles}
    live = [role for role in site.environment.deployments if role in specs and site.members(role)]
    renewing = [role for role in live if specs[role].renew]
    done: dict[str, str] = {}
    for role in renewing:
        done[role] = _renew(site, role, specs[role], wait_s=wait_s)
    for role in live:
        if role not in renewing:
            done[role] = _roll(site, role, rotation, wait_s=wait_s)
    if BALANCER in rotation.roles:
        done[BALANCER] = _renew_balancer(site, rotation.name, wait_s=wait_s)
    for role in renewing:
        _revoke(site, role, specs[role], wait_s=wait_s)
    with step(site.progress, f"ask the services about {rotation.name}"):
        proofs = prove(site, rotation, live, namespace=namespace)
    report = RotationReport(
        name,
        rotation.name,
        rotation.new.version,
        rotation.is_back,
        done,
        proofs,
        time.monotonic() - began,
    )
    site.ledger.append("rotation.finished", report.as_data(), environment=name)
    return report


def _need_taken_up(site: Site, roles: Collection[str]) -> None:
    """Refuse to rotate while machines run that were told something else than is true now.

    The newest value in the vaults would pass for the one that they know, and whatever else has
    changed for something that they were told.

    Raises:
        ConfigurationError: Such machines run.
    """
    name, names = site.environment.name, running_names(site.provider.machines())
    stale = []
    for role in site.environment.deployments:
        told = {one.inputs for one in site.members(role) if one.name in names}
        if role in roles and told and told != {gather_inputs(site, role).digest}:
            stale.append(role)
    if stale:
        raise ConfigurationError(
            f"configuration or secrets of {', '.join(stale)} in {name} were changed, and the "
            "machines that run have not taken that up",
            hint=f"run 'toolkit roll {name}' first",
        )


def _unfinished(site: Site) -> list[RollRecord]:
    return list(site.ledger.unfinished_rolls(site.environment.name))


def _is_own(roll: RollRecord, roles: Collection[str]) -> bool:
    """Whether a rotation among these roles may have begun a roll: it keeps the image."""
    return roll.role in roles and roll.image == roll.previous


def _is_up_to_date(site: Site, roll: RollRecord) -> bool:
    """Whether a roll's new machines were told what is true now."""
    new = plan_from_data(roll.order["plan"]).new
    told = {one["inputs"] for one in roll.order["records"] if one["name"] in new}
    return told == {gather_inputs(site, roll.role).digest}


def _is_under_way(site: Site, name: str) -> bool:
    """Whether the last rotation of a secret was cut short."""
    kinds = ["rotation.started", "rotation.finished"]
    entries = site.ledger.entries(environment=site.environment.name, kinds=kinds)
    last = next((one for one in entries if one["data"]["secret"] == name), None)
    return last is not None and last["kind"] == "rotation.started"


@contextmanager
def _held(site: Site, doing: str, wait_s: float) -> Iterator[Lease]:
    interrupt.check(NOT_BEGUN)
    with site.held(doing, wait_s=wait_s) as held:
        # Since the last step, somebody may have taken it down.
        need_up(site)
        need_settled(site)
        yield held


def _renew(site: Site, role: str, spec: SecretSpec, *, wait_s: float) -> str:
    """Have the machines of a role take up the new value while they run."""
    what = f"{role}: renew {spec.name}"
    with _held(site, what, wait_s) as held:
        inputs = gather_inputs(site, role)
        stale = [one for one in site.members(role) if one.inputs != inputs.digest]
        journal = Journal(held.ledger, _place(site, role), scope="rotate")
        for one in stale:
            order = inputs.order(one.name, image=one.image, address=one.address)
            with (
                step(site.progress, f"{what} in {one.name}"),
                journal.effect("renew", {"secret": spec.name, "machine": one.name}),
            ):
                site.provider.renew(order, [_program(spec), "renew"])
                held.ledger.set_inputs([one.name], inputs.digest)
    return "renewed" if stale else "unchanged"


def _renew_balancer(site: Site, secret: str, *, wait_s: float) -> str:
    """Have the balancer take up its new certificate."""
    what = "renew the balancer's certificate"
    with _held(site, what, wait_s) as held:
        place = {"environment": site.environment.name}
        journal = Journal(held.ledger, place, scope="rotate")
        with step(site.progress, what), journal.effect("certificate", {"secret": secret}):
            site.balancer.renew()
    return "renewed"


def _revoke(site: Site, role: str, spec: SecretSpec, *, wait_s: float) -> None:
    """Have the machines of a role refuse every earlier value."""
    what = f"{role}: revoke the old {spec.name}"
    with _held(site, what, wait_s) as held:
        inputs = gather_inputs(site, role)
        journal = Journal(held.ledger, _place(site, role), scope="rotate")
        for one in site.members(role):
            order = inputs.order(one.name, image=one.image, address=one.address)
            with (
                step(site.progress, f"{what} in {one.name}"),
                journal.effect("revoke", {"secret": spec.name, "machine": one.name}),
            ):
                site.provider.renew(order, [_program(spec), "revoke"])


def _roll(site: Site, role: str, rotation: Rotation, *, wait_s: float) -> str:
    """Replace the machines of a role by such of the same image."""
    image = site.members(role)[-1].image
    wanted = choose(site, [role], image, None)[role]
    result = roll_role(site, role, wanted, wait_s=wait_s)
    if result.error is not None:
        raise type(result.error)(
            f"{site.environment.name} {role}: {result.error.message}",
            hint=ways_on(rotation),
        )
    return result.outcome


def _program(spec: SecretSpec) -> str:
    if spec.renew is None:
        raise ConfigurationError(f"no program renews {spec.name}")
    return spec.renew


def _place(site: Site, role: str) -> dict[str, Any]:
    return {"environment": site.environment.name, "role": role}
