"""Collects outcomes while a run goes on."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.load.report import ClassReport, Failure, Latency, Report, VersionSeen

FIRST_FAILURES = 20
MAX_VERSIONS = 100
MAX_DETAIL = 300
NO_VERSION = "(none)"
OTHER_VERSION = "(other)"


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latencies_s: array[float] = field(default_factory=lambda: array("d"))


class Recorder:
    """Counts outcomes. All times are seconds since the run began.

    Args:
        classes: Names of the classes in use.
        has_versions: Whether responses are counted by a header.
        late_s: A start later than this is counted as late.
    """

    def __init__(self, classes: Sequence[str], *, has_versions: bool, late_s: float) -> None:
        self._tallies = {name: _Tally() for name in classes}
        self._has_versions = has_versions
        self._late_s = late_s
        self._versions: dict[str, VersionSeen] = {}
        self._first_failures: list[Failure] = []
        self._first_start_s = self._last_start_s = self._last_outcome_s = 0.0
        self._max_lateness_s = 0.0
        self._late = 0
        self.requests = self.ok = self.failed = 0

    @property
    def versions(self) -> Mapping[str, VersionSeen]:
        """What has been counted by header so far."""
        return self._versions

    def started(self, traffic: str, *, due_s: float, now_s: float) -> None:
        """A request begins that should have begun at `due_s`."""
        if not self.requests:
            self._first_start_s = now_s
        self.requests += 1
        self._tallies[traffic].requests += 1
        self._last_start_s = now_s
        lateness_s = now_s - due_s
        self._max_lateness_s = max(self._max_lateness_s, lateness_s)
        self._late += lateness_s > self._late_s

    def succeeded(self, traffic: str, version: str | None, *, due_s: float, now_s: float) -> None:
        """A complete 2xx response was read."""
        self.ok += 1
        self._last_outcome_s = now_s
        self._tallies[traffic].latencies_s.append(now_s - due_s)
        if not self._has_versions:
            return
        name = NO_VERSION if version is None else version
        if name not in self._versions and len(self._versions) >= MAX_VERSIONS:
            name = OTHER_VERSION
        seen = self._versions.get(name)
        first_s, count = (seen.first_s, seen.count) if seen else (now_s, 0)
        self._versions[name] = VersionSeen(count + 1, first_s, now_s)

    def fell(self, traffic: str, kind: str, detail: str, *, now_s: float) -> None:
        """A request failed."""
        self.failed += 1
        self._last_outcome_s = now_s
        self._tallies[traffic].failures[kind] += 1
        if len(self._first_failures) < FIRST_FAILURES:
            self._first_failures.append(
                Failure(round(now_s, 4), traffic, kind, detail[:MAX_DETAIL])
            )

    def report(
        self,
        *,
        rate: float,
        began_at: float,
        cpu_seconds: float,
        stopped_by: str,
        connections: Mapping[str, int],
    ) -> Report:
        """Return the finished report.

        Args:
            rate: Requests a second as asked for.
            began_at: Seconds since the epoch.
            cpu_seconds: Processor time used.
            stopped_by: Why the run ended.
            connections: How many were opened, by class.
        """
        if self.requests != self.ok + self.failed:
            raise AssertionError(
                f"{self.requests} requests, but {self.ok} ok and {self.failed} failed"
            )
        total: Counter[str] = Counter()
        every = array("d")
        classes = {}
        for name, tally in self._tallies.items():
            total.update(tally.failures)
            every.extend(tally.latencies_s)
            failed = tally.failures.total()
            classes[name] = ClassReport(
                requests=tally.requests,
                ok=tally.requests - failed,
                failed=failed,
                failures=dict(tally.failures.most_common()),
                latency_ms=summarise(tally.latencies_s),
                connections=connections.get(name, 0),
            )
        span_s = self._last_start_s - self._first_start_s
        return Report(
            requests=self.requests,
            ok=self.ok,
            failed=self.failed,
            failures=dict(total.most_common()),
            first_failures=tuple(self._first_failures),
            began_at=round(began_at, 3),
            seconds=round(max(self._last_outcome_s, self._last_start_s), 3),
            rate=rate,
            achieved_rate=round((self.requests - 1) / span_s, 2) if span_s > 0 else 0.0,
            max_lateness_ms=round(self._max_lateness_s * 1000, 3),
            late=self._late,
            cpu_seconds=round(cpu_seconds, 3),
            stopped_by=stopped_by,
            latency_ms=summarise(every),
            classes=classes,
            versions={
                name: VersionSeen(seen.count, round(seen.first_s, 4), round(seen.last_s, 4))
                for name, seen in sorted(self._versions.items())
            },
        )


def summarise(latencies_s: Sequence[float]) -> Latency:
    """Return nearest-rank percentiles, in milliseconds, of latencies in seconds."""
    if not latencies_s:
        return Latency()
    ordered = sorted(latencies_s)

    def rank(share: float) -> float:
        return round(ordered[max(math.ceil(share * len(ordered)), 1) - 1] * 1000, 3)

    return Latency(p50=rank(0.5), p90=rank(0.9), p99=rank(0.99), max=rank(1.0))
