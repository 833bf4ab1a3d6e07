"""New machines are judged by the balancer's counters."""

import pytest

from toolkit.model import Counters
from toolkit.roll.watch import Thresholds, difference, judge

NEW, OLD = ("10.0.0.2", "10.0.0.3"), ("10.0.0.4",)
THRESHOLDS = Thresholds(max_error_percent=1.0, min_requests=50, max_response_ratio=2.0)


def counts(*, new=(0, 0, 10.0), old=(0, 0, 10.0)) -> dict[str, Counters]:
    """Return counters: the new machines share theirs evenly."""
    requests, errors, response_ms = new
    half = Counters(requests // 2, errors // 2, response_ms)
    rest = Counters(requests - half.requests, errors - half.errors, response_ms)
    return {NEW[0]: half, NEW[1]: rest, OLD[0]: Counters(*old)}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(counts(new=(1000, 10, 10.0)), None, id="as many as are tolerated"),
        pytest.param(counts(new=(1000, 11, 10.0)), "11 of 1000", id="one more"),
        pytest.param(counts(new=(49, 49, 10.0)), None, id="too few to mean anything"),
        pytest.param(counts(new=(50, 50, 10.0)), "50 of 50", id="everything fails"),
        pytest.param(counts(new=(100, 0, 24.0), old=(100, 0, 10.0)), "2.4 times", id="slow"),
        pytest.param(counts(new=(100, 0, 23.0), old=(100, 0, 10.0)), None, id="perhaps not slow"),
        pytest.param(counts(new=(100, 0, 5.0), old=(100, 0, 1.0)), None, id="fast for all we know"),
        pytest.param(counts(new=(100, 0, 90.0), old=(49, 0, 10.0)), None, id="nobody to compare"),
        pytest.param(counts(new=(100, 0, 90.0), old=(100, 0, 0.0)), None, id="old unknown"),
        pytest.param(counts(old=(1000, 900, 10.0)), None, id="old ones are not judged"),
        pytest.param({}, None, id="gone"),
    ],
)
def test_judgement(now: dict[str, Counters], expected: str | None) -> None:
    reason = judge(counts(), now, new=NEW, old=OLD, thresholds=THRESHOLDS)
    if expected is None:
        assert reason is None
    else:
        assert reason is not None
        assert expected in reason


def test_what_was_counted_before_does_not_count() -> None:
    start = counts(new=(1000, 500, 10.0))
    now = counts(new=(1100, 500, 10.0))
    assert judge(start, now, new=NEW, old=OLD, thresholds=THRESHOLDS) is None
    assert difference(start, now, NEW) == (100, 0)


def test_counters_that_were_reset_count_from_zero() -> None:
    start = counts(new=(1000, 10, 10.0))
    now = counts(new=(60, 6, 10.0))
    assert difference(start, now, NEW) == (60, 6)


def test_one_that_came_later_counts_from_zero() -> None:
    assert difference({}, {NEW[0]: Counters(7, 3, 1.0)}, NEW) == (7, 3)


def test_response_time_can_be_ignored() -> None:
    thresholds = Thresholds(1.0, 50, 0.0)
    now = counts(new=(100, 0, 900.0), old=(100, 0, 1.0))
    assert judge(counts(), now, new=NEW, old=OLD, thresholds=thresholds) is None
