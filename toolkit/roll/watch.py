"""Judge new machines by the balancer's own counters. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from toolkit.model import Counters

RESOLUTION_MS = 1.0
"""Balancers count whole milliseconds: a time may be so much longer or shorter than they say.

HAProxy cuts off the rest of each and rounds the average up (2.6, `swrate_avg`).
"""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When new machines are judged bad.

    Attributes:
        max_error_percent: Share of requests that failed: 5xx answers, broken or refused
            connections.
        min_requests: Requests before the share means anything.
        max_response_ratio: Average response time against the old machines', as far as the balancer
            can tell them apart; 0 for any.
    """

    max_error_percent: float
    min_requests: int
    max_response_ratio: float


def difference(
    start: Mapping[str, Counters], now: Mapping[str, Counters], addresses: Collection[str]
) -> tuple[int, int]:
    """Return requests and errors since the start; a counter that was reset counts from zero.

    Args:
        start: Address to counters then.
        now: Address to counters now.
        addresses: Which of them.
    """
    requests = errors = 0
    for address in addresses:
        if address not in now:
            continue
        then, current = start.get(address, Counters(0, 0, 0.0)), now[address]
        if current.requests < then.requests or current.errors < then.errors:
            then = Counters(0, 0, 0.0)
        requests += current.requests - then.requests
        errors += current.errors - then.errors
    return requests, errors


def judge(
    start: Mapping[str, Counters],
    now: Mapping[str, Counters],
    *,
    new: Collection[str],
    old: Collection[str],
    thresholds: Thresholds,
    reference_ms: float = 0.0,
) -> str | None:
    """Return why the new machines are bad, or None while they are not.

    Args:
        start: Address to counters when the watch began.
        now: Address to counters now.
        new: Addresses of the new machines.
        old: Addresses of the machines they are compared with, if any serve.
        thresholds: What is tolerated.
        reference_ms: Response time of the old ones while they served, where they do no more; 0 for
            unknown.
    """
    requests, errors = difference(start, now, new)
    if requests >= thresholds.min_requests:
        share = 100.0 * errors / requests
        if share > thresholds.max_error_percent:
            return (
                f"{errors} of {requests} requests failed ({share:.1f} %, at most "
                f"{thresholds.max_error_percent:g} % are tolerated)"
            )
    ratio = thresholds.max_response_ratio
    compared, _ = difference(start, now, old)
    theirs = response_ms(now, old) if compared >= thresholds.min_requests else reference_ms
    if ratio and requests >= thresholds.min_requests:
        mine = response_ms(now, new)
        # Beyond doubt: with answers of a millisecond the next number is twice as much.
        if theirs and mine - RESOLUTION_MS > ratio * (theirs + RESOLUTION_MS):
            return f"answers take {mine:.0f} ms, {mine / theirs:.1f} times as long as the old ones'"
    return None


def response_ms(now: Mapping[str, Counters], addresses: Collection[str]) -> float:
    """Return the average response time of addresses, in milliseconds; 0 when none is known."""
    times = [now[address].response_ms for address in addresses if address in now]
    known = [one for one in times if one]
    return sum(known) / len(known) if known else 0.0
