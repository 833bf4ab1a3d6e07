"""What a machine is told at boot: its configuration and its secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.canonical import canonical_json
from toolkit.model import LaunchOrder, Secret
from toolkit.project.model import CONFIG_CREDENTIAL, Environment, Project


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything apart from the image that makes a role's machines what they are.

    Attributes:
        role: Which role.
        environment: Which environment.
        settings: The role's settings.
        endpoints: Role name to `host:port`, for the roles that it uses.
        secrets: Credential name to secret.
        volumes: Volume name to mount point.
    """

    role: str
    environment: str
    settings: Mapping[str, Any]
    endpoints: Mapping[str, str]
    secrets: Mapping[str, Secret]
    volumes: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A digest that changes when a setting, an endpoint or a secret's version changes.

        It covers no secret's value.
        """
        document = {
            "settings": dict(self.settings),
            "endpoints": dict(self.endpoints),
            "secrets": {name: secret.version for name, secret in self.secrets.items()},
            "volumes": dict(self.volumes),
        }
        return hashlib.sha256(canonical_json(document)).hexdigest()

    def order(self, name: str, *, image: str, address: str) -> LaunchOrder:
        """Return the order for one machine."""
        config = {
            "environment": self.environment,
            "role": self.role,
            "machine": name,
            "endpoints": dict(self.endpoints),
            "settings": dict(self.settings),
            "secret_versions": {name: secret.version for name, secret in self.secrets.items()},
        }
        return LaunchOrder(
            name=name,
            environment=self.environment,
            role=self.role,
            image=image,
            address=address,
            credentials=(
                Secret(CONFIG_CREDENTIAL, 1, json.dumps(config).encode()),
                *self.secrets.values(),
            ),
            volumes=self.volumes,
        )


def endpoints(project: Project, environment: Environment, role: str) -> dict[str, str]:
    """Return where a role's machines reach the pools that it uses."""
    gateway = next(environment.network.hosts())
    return {used: f"{gateway}:{project.roles[used].port}" for used in project.roles[role].uses}
