"""An environment with everything that acts on it, as ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from toolkit.ledger.ledger import Ledger, MachineRecord
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
from toolkit.roll import lease
from toolkit.roll.lease import Lease


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
        sweepers: Each removes what a killed command has left half-way, of one kind.
        remove_runtime: Removes what an environment that is down has left in RAM and for this start
            of the host; only for who holds the lease.
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
    sweepers: Sequence[Callable[[], None]] = ()
    remove_runtime: Callable[[], None] = lambda: None

    def members(self, role: str) -> list[MachineRecord]:
        """Return a role's machines that are meant to be in its pool, the latest one last."""
        return self.ledger.members(self.environment.name, role)

    def has_volumes(self, role: str) -> bool:
        """Whether a role's machines keep data; those of a role that is gone are not known to."""
        spec = self.project.roles.get(role)
        return spec is not None and bool(spec.volumes)

    @contextmanager
    def held(self, doing: str, *, wait_s: float = 0.0) -> Iterator[Lease]:
        """Hold the environment's lease, for longer than any step of a roll may take.

        What a command that was killed has left is gone before anything else is done.

        Args:
            doing: What for; others are told.
            wait_s: How long to queue for it.

        Raises:
            LeaseHeld: Another process holds it.
        """
        longest_s = max(
            (max(astuple(one.timeouts)) for one in self.environment.deployments.values()),
            default=0.0,
        )
        with lease.held(
            self.ledger,
            self.environment.name,
            doing=doing,
            wait_s=wait_s,
            longest_effect_s=longest_s,
            tell=self.progress.note,
        ) as held:
            for sweep in self.sweepers:
                sweep()
            yield held
