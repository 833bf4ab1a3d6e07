"""Who may know what: environment × role × secret, from the declarations alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from toolkit.errors import ConfigurationError, NotFound
from toolkit.project.model import EDGE_CERTIFICATE, Environment, SecretSpec

BALANCER = "balancer"
"""The load balancer holds the certificate of the public ports; it is no machine of a role."""

AUTHORITY = "authority"
"""Name of the file that holds the key of an environment's certificate authority."""

_PARTS_OF_KIND: Mapping[str, Mapping[str, str]] = {
    "password": {"value": ""},
    "token": {"value": ""},
    "file": {"value": ""},
    "tls": {"certificate": ".crt", "key": ".key"},
}


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of a role in an environment to know one secret."""

    environment: str
    role: str
    secret: SecretSpec


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every grant there is; what is not in it is denied."""

    grants: tuple[Grant, ...]

    def roles(self, environment: str) -> tuple[str, ...]:
        """Return the roles that know anything in the environment, in order."""
        found = (grant.role for grant in self.grants if grant.environment == environment)
        return tuple(dict.fromkeys(found))

    def secrets(self, environment: str, role: str) -> tuple[SecretSpec, ...]:
        """Return what a role may know in an environment."""
        return tuple(
            grant.secret
            for grant in self.grants
            if grant.environment == environment and grant.role == role
        )

    def secret(self, environment: str, role: str, name: str) -> SecretSpec:
        """Return one secret of a role.

        Raises:
            NotFound: The role does not declare it.
        """
        declared = self.secrets(environment, role)
        for secret in declared:
            if secret.name == name:
                return secret
        names = ", ".join(secret.name for secret in declared) or "none"
        raise NotFound(
            f"the role {role} declares no secret {name!r} in {environment}",
            hint=f"its secrets: {names}",
        )

    def sharers(self, environment: str, name: str) -> tuple[str, ...]:
        """Return the roles that know the secret of this name in the environment."""
        return tuple(
            grant.role
            for grant in self.grants
            if grant.environment == environment and grant.secret.name == name
        )


def compute_matrix(
    service: str,
    declared: Mapping[str, Iterable[SecretSpec]],
    environments: Iterable[Environment],
) -> Matrix:
    """Compute the grants of every environment.

    Args:
        service: Name of the service.
        declared: Role name to what its layers and itself declare.
        environments: A role has its secrets only where it is deployed.

    Raises:
        ConfigurationError: Two declarations of one name differ in kind, or a role has a name
            that is reserved.
    """
    for reserved in (BALANCER, AUTHORITY):
        if reserved in declared:
            raise ConfigurationError(
                f"service.yml:roles.{reserved}: this name is reserved for the toolkit's own keys"
            )
    merged = _merge(declared)
    grants = []
    for environment in environments:
        for role in environment.deployments:
            grants += [
                Grant(
                    environment.name,
                    role,
                    # The program that renews it is in the machines of one role only.
                    replace(_fill(merged[name], environment.name), renew=own.renew),
                )
                for name, own in {secret.name: secret for secret in declared.get(role, ())}.items()
            ]
        if any(deployment.public for deployment in environment.deployments.values()):
            grants.append(Grant(environment.name, BALANCER, _edge(service, environment.name)))
    return Matrix(tuple(grants))


def parts_of(kind: str) -> tuple[str, ...]:
    """Return the names of the values that make up a secret of a kind."""
    return tuple(_PARTS_OF_KIND[kind])


def credential_names(secret: SecretSpec) -> Mapping[str, str]:
    """Return the credential that delivers each part: `web_tls` → `web_tls.crt`, `web_tls.key`."""
    return {part: secret.name + suffix for part, suffix in _PARTS_OF_KIND[secret.kind].items()}


def _merge(declared: Mapping[str, Iterable[SecretSpec]]) -> dict[str, SecretSpec]:
    """Make one secret of all declarations of a name: all its DNS names, the shortest rotation."""
    merged: dict[str, SecretSpec] = {}
    for role, secrets in declared.items():
        for secret in secrets:
            known = merged.setdefault(secret.name, secret)
            if known.kind != secret.kind:
                raise ConfigurationError(
                    f"the role {role} declares the secret {secret.name} as {secret.kind}, "
                    f"another role as {known.kind}",
                    hint="roles that declare the same name share the value; use another name",
                )
            periods = [s.rotate_days for s in (known, secret) if s.rotate_days is not None]
            merged[secret.name] = replace(
                known,
                dns_names=tuple(dict.fromkeys((*known.dns_names, *secret.dns_names))),
                rotate_days=min(periods, default=None),
            )
    return merged


def _fill(secret: SecretSpec, environment: str) -> SecretSpec:
    names = (name.replace("{environment}", environment) for name in secret.dns_names)
    return replace(secret, dns_names=tuple(dict.fromkeys(names)))


def _edge(service: str, environment: str) -> SecretSpec:
    return SecretSpec(
        name=EDGE_CERTIFICATE,
        kind="tls",
        description="certificate of the public ports",
        dns_names=("localhost", f"{service}.{environment}.internal", "127.0.0.1"),
        rotate_days=None,
    )
