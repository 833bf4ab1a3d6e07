"""What a roll is given, with whom it is carried out, and what is observed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from toolkit.ledger.ledger import Ledger, MachineRecord
from toolkit.model import LaunchOrder, SmokeCheck
from toolkit.ports import HookRunner, MachineProvider, Pool, SmokeRunner
from toolkit.progress import Progress
from toolkit.project.model import Timeouts
from toolkit.roll.plan import RollPlan
from toolkit.roll.watch import Thresholds


@dataclass(frozen=True, slots=True)
class Crew:
    """The collaborators of a roll. The ledger refuses when the lease is lost."""

    provider: MachineProvider
    pool: Pool
    smoke: SmokeRunner
    hooks: HookRunner
    ledger: Ledger
    progress: Progress


@dataclass(frozen=True, slots=True)
class RollOrder:
    """One roll of one role.

    Attributes:
        id: Name of the roll.
        environment: Where.
        role: Which role.
        plan: What to do.
        launches: Machine name to launch order: of the new machines, and of the old ones where
            undoing may have to start them again.
        inputs: Digest over the configuration and secrets that the launch orders carry.
        records: Machine name to what the ledger holds of it, of all machines in the plan.
        timeouts: Deadlines of the steps.
        thresholds: By which new machines are judged while they are watched.
        held: Old machines that were drained or in maintenance when the roll began.
        absent: Old machines that did not serve when the roll began, whatever the reason.
        in_service: Of a return to warm machines, those that served when it began: somebody had put
            them back.
    """

    id: str
    environment: str
    role: str
    plan: RollPlan
    launches: Mapping[str, LaunchOrder]
    inputs: str
    records: Mapping[str, MachineRecord]
    timeouts: Timeouts
    thresholds: Thresholds
    held: Collection[str] = ()
    absent: Collection[str] = ()
    in_service: Collection[str] = ()


@dataclass(slots=True)
class RollReport:
    """What was observed during a roll.

    Attributes:
        outcome: `running`, then `rolled`, `discarded` or `rolled-back`.
        smoke: Every smoke test's outcome.
        seconds: Effect to seconds spent on it.
        downtime_s: For a stateful role, how long its pool served nobody.
        requests: That the new machines got while they were watched.
        errors: Of these: how many failed.
    """

    outcome: str = "running"
    smoke: list[SmokeCheck] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    downtime_s: float | None = None
    requests: int = 0
    errors: int = 0
