"""What a load run saw: typed, as JSON, and as a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import ConfigurationError
from toolkit.progress import printable


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the scheduled start to the end of the body, of good requests only.

    All are zero when there was no good request.
    """

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request; `at_s` is when the failure was noticed, since the run began."""

    at_s: float
    traffic: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class of requests. `connections` is how many were opened for it."""

    requests: int
    ok: int
    failed: int
    failures: Mapping[str, int]
    latency_ms: Latency
    connections: int


@dataclass(frozen=True, slots=True)
class VersionSeen:
    """Good responses that carried one value of the counted header; times since the run began."""

    count: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run: `requests` = `ok` + `failed`.

    Attributes:
        requests: How many were started.
        ok: How many got a complete 2xx response.
        failed: All others.
        failures: Count by kind; see `bench.load.failure`.
        first_failures: The first few in the order in which they were noticed.
        began_at: Seconds since the epoch.
        seconds: From the first scheduled start to the last outcome.
        rate: Requests a second as asked for.
        achieved_rate: As really started.
        max_lateness_ms: Worst delay of a start behind its schedule: the generator's own fault.
        late: How many starts were later than the limit.
        cpu_seconds: Processor time of the generator.
        stopped_by: `requests`, `seconds`, `file` or `signal`.
        latency_ms: Over all classes.
        classes: By class name.
        versions: By value of the counted header; `(none)` for responses without it.
    """

    requests: int
    ok: int
    failed: int
    failures: Mapping[str, int]
    first_failures: tuple[Failure, ...]
    began_at: float
    seconds: float
    rate: float
    achieved_rate: float
    max_lateness_ms: float
    late: int
    cpu_seconds: float
    stopped_by: str
    latency_ms: Latency
    classes: Mapping[str, ClassReport]
    versions: Mapping[str, VersionSeen]

    @property
    def is_clean(self) -> bool:
        """Whether there were requests and every one of them succeeded."""
        return self.failed == 0 and self.ok > 0

    def to_json(self) -> str:
        """Return the machine-readable report, one object."""
        document = asdict(self)
        for failure in document["first_failures"]:
            failure["class"] = failure.pop("traffic")
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Parse what `to_json` wrote.

        Raises:
            ConfigurationError: It is not such a report.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            document["first_failures"] = tuple(
                Failure(item["at_s"], item["class"], item["kind"], item["detail"])
                for item in document["first_failures"]
            )
            document["latency_ms"] = Latency(**document["latency_ms"])
            document["classes"] = {
                name: ClassReport(**{**item, "latency_ms": Latency(**item["latency_ms"])})
                for name, item in document["classes"].items()
            }
            document["versions"] = {
                name: VersionSeen(**item) for name, item in document["versions"].items()
            }
            return cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"not a load report: {error}") from None

    def to_text(self) -> str:
        """Return the table for people, several lines."""
        lines = [
            f"{'class':<11}{'sent':>8}{'ok':>8}{'failed':>8}{'conns':>8}"
            f"{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'max ms':>9}  failed by kind"
        ]
        connections = sum(item.connections for item in self.classes.values())
        total = ClassReport(
            self.requests, self.ok, self.failed, self.failures, self.latency_ms, connections
        )
        lines += [_row(name, item) for name, item in [*self.classes.items(), ("all", total)]]
        if self.first_failures:
            lines += ["", "first failures"]
            lines += [
                f"{item.at_s:9.3f} s  {item.traffic:<11} {item.kind:<13} {item.detail}"
                for item in self.first_failures
            ]
        if self.versions:
            lines += ["", "answered by"]
            lines += [
                f"  {name:<20} {seen.count:>8}   from {seen.first_s:.2f} s to {seen.last_s:.2f} s"
                for name, seen in self.versions.items()
            ]
        lines += [
            "",
            f"{self.requests} requests, {self.failed} failed, in {self.seconds:.1f} s "
            f"(stopped by {self.stopped_by}): {self.rate:g}/s asked, {self.achieved_rate:.1f}/s "
            f"sent, at most {self.max_lateness_ms:.1f} ms late, {self.cpu_seconds:.1f} s of CPU",
        ]
        if self.late:
            lines.append(
                f"The generator itself fell behind its schedule for {self.late} requests; "
                "their latencies include that."
            )
        return printable("\n".join(lines))


def _row(name: str, item: ClassReport) -> str:
    latency = item.latency_ms
    times = "".join(
        f"{value:>9.1f}" if item.ok else f"{'-':>9}"
        for value in (latency.p50, latency.p90, latency.p99, latency.max)
    )
    kinds = ", ".join(f"{kind} {count}" for kind, count in item.failures.items())
    return (
        f"{name:<11}{item.requests:>8}{item.ok:>8}{item.failed:>8}{item.connections:>8}"
        f"{times}  {kinds}"
    ).rstrip()
