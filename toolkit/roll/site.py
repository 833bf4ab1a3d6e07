"""An environment with everything that acts on it, as ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.ledger.ledger import Ledger
from toolkit.ports import (
    Balancer,
    HookRunner,
    ImageCatalog,
    MachineProvider,
    Network,
    Pool,
    SecretSource,
    SmokeRunner,
)
from toolkit.progress import Progress
from toolkit.project.model import Environment, Project


@dataclass(frozen=True, slots=True)
class Site:
    """An environment and its collaborators.

    Attributes:
        project: What the service's operators wrote.
        environment: The environment at work.
        network: Its network.
        balancer: Its load balancer.
        pools: Its pools, by role.
        provider: Starts and ends its machines.
        smoke: Tests them.
        hooks: Runs the project's own playbooks.
        secrets: What they may know.
        images: What they are made from.
        ledger: What was done, and what is meant to exist.
        progress: Hears of every step.
    """

    project: Project
    environment: Environment
    network: Network
    balancer: Balancer
    pools: Mapping[str, Pool]
    provider: MachineProvider
    smoke: SmokeRunner
    hooks: HookRunner
    secrets: SecretSource
    images: ImageCatalog
    ledger: Ledger
    progress: Progress
