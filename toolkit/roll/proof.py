"""Ask the services themselves whether a rotation has done what it should."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence

from toolkit import shell
from toolkit.errors import OutsideError, ToolkitError
from toolkit.network.names import inside
from toolkit.roll.site import Site
from toolkit.secrets.document import Entry
from toolkit.secrets.grants import BALANCER
from toolkit.secrets.rotate import Rotation
from toolkit.secrets.served import serial, served_certificate

ACCEPTED, REFUSED = 0, 1
"""Exit codes of a role's `smoke/accepts_<secret>.py`."""

PROBE_TIMEOUT_S = 30.0


def prove(
    site: Site, rotation: Rotation, live: Sequence[str], *, namespace: str
) -> list[dict[str, str]]:
    """Ask every service that can tell whether the new value is good and the old one dead.

    Args:
        site: Where.
        rotation: The new and the old value.
        live: Roles with machines that know the secret.
        namespace: The environment's network namespace; the services are asked from there.

    Returns:
        For each place that was asked, `role`, `place` and what was `observed`.

    Raises:
        OutsideError: A service could not be asked.
        ToolkitError: A service says otherwise.
    """
    proofs: list[dict[str, str]] = []
    if rotation.spec.kind == "tls":
        for role, host, port, space in _tls_places(site, rotation, live, namespace):
            shown = serial(served_certificate(host, port, namespace=space).encode())
            _need(shown == serial(rotation.new.parts["certificate"]), role, host, rotation)
            observed = f"the certificate of version {rotation.old.version} is not served"
            proofs.append(_proof(role, f"{host}:{port}", observed))
        return proofs
    for role in live:
        probe = site.project.role_directory(role) / "smoke" / f"accepts_{rotation.name}.py"
        if not probe.is_file():
            continue
        port = site.project.roles[role].port
        gateway = str(next(site.environment.network.hosts()))
        for host in (gateway, *(one.address for one in site.members(role))):
            for entry, wanted in ((rotation.new, ACCEPTED), (rotation.old, REFUSED)):
                code = _ask([str(probe)], entry, host=host, port=port, namespace=namespace)
                _need(code == wanted, role, host, rotation, is_new=wanted == ACCEPTED)
            observed = f"version {rotation.old.version} is refused"
            proofs.append(_proof(role, f"{host}:{port}", observed))
    return proofs


def ways_on(rotation: Rotation) -> str:
    """Return what an operator can do about a rotation that does not come to its end."""
    again = f"run the same command again to go on with version {rotation.new.version}"
    if rotation.is_back:
        return again
    return f"{again}, or with --back to return to the value before where this one does not work"


def _tls_places(
    site: Site, rotation: Rotation, live: Sequence[str], namespace: str
) -> list[tuple[str, str, int, str | None]]:
    places: list[tuple[str, str, int, str | None]] = [
        (role, one.address, site.project.roles[role].port, namespace)
        for role in live
        if site.project.roles[role].protocol == "https"
        for one in site.members(role)
    ]
    if BALANCER in rotation.roles:
        for deployment in site.environment.deployments.values():
            if deployment.public:
                host, _, port = deployment.public.rpartition(":")
                places.append((BALANCER, host, int(port), None))
    return places


def _ask(program: Sequence[str], entry: Entry, *, host: str, port: int, namespace: str) -> int:
    """Run a role's probe in the environment's network; the value goes through a pipe.

    Raises:
        OutsideError: It could not ask.
    """
    order = {
        "host": host,
        "port": port,
        "version": entry.version,
        "value": base64.b64encode(entry.parts["value"]).decode(),
    }
    done = shell.run(
        inside(namespace, [sys.executable, "-I", *program]),
        env=shell.environment(),
        timeout_s=PROBE_TIMEOUT_S,
        stdin=json.dumps(order).encode(),
        is_checked=False,
    )
    if done.exit_code not in {ACCEPTED, REFUSED}:
        raise OutsideError(f"{host}:{port} could not be asked: {done.error_text[-300:]}")
    return done.exit_code


def _need(is_so: bool, role: str, host: str, rotation: Rotation, *, is_new: bool = True) -> None:
    if is_so:
        return
    entry, problem = (rotation.new, "is not in use") if is_new else (rotation.old, "is still good")
    raise ToolkitError(
        f"version {entry.version} of {rotation.name} {problem} at {role} {host}",
        hint=ways_on(rotation),
    )


def _proof(role: str, place: str, what: str) -> dict[str, str]:
    return {"role": role, "place": place, "observed": what}
