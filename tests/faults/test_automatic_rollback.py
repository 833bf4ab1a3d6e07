"""Versions that pass their tests and do badly under load are taken out; the old ones serve."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.echo import ERRORS, HANGS_UP, SLOW
from bench.load.process import LoadProcess
from examples.command import Answer
from tests.support.breakage import is_plain, serving, settle
from tests.support.site import EchoSite

pytestmark = [pytest.mark.host, pytest.mark.alone]

RATE = 120.0
LIMIT_S = 60.0
"""For whatever a roll is to notice; it ends as soon as it has."""

SOAK = {"seconds": LIMIT_S, "min_requests": 50}
CANARY = {"machines": 1, "percent": 100, "watch_s": LIMIT_S}


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    return new_echo("v1", "v2", ERRORS, SLOW)


@contextmanager
def under_load(site: EchoSite, directory: Path) -> Iterator[LoadProcess]:
    settings = site.load(rate=RATE, requests=None, max_seconds=300.0)
    with LoadProcess(settings, directory) as load:
        load.wait_for(requests_done=int(RATE))
        yield load


def seconds_back(site: EchoSite, answer: Answer) -> float:
    """Return how long it took from the verdict to the old machines' being let in again."""
    with site.opened() as opened:
        entries = opened.ledger.roll_entries(answer.data["roll"])
    [verdict] = [
        one["time"]
        for one in entries
        if one["kind"] == "effect.failed" and one["data"]["effect"] == "watch"
    ]
    old = drained(site, answer) - set(answer.data["machines"])
    admitted = [
        one["time"]
        for one in entries
        if one["kind"] == "effect.done"
        and one["data"]["effect"] == "admit"
        and old.intersection(one["data"]["machines"])
        and one["time"] > verdict
    ]
    return max(admitted, default=verdict) - verdict


def drained(site: EchoSite, answer: Answer) -> set[str]:
    with site.opened() as opened:
        return {
            name
            for entry in opened.ledger.roll_entries(answer.data["roll"])
            if entry["data"].get("effect") == "drain"
            for name in entry["data"]["machines"]
        }


@pytest.mark.parametrize("version", [ERRORS, pytest.param(HANGS_UP, marks=pytest.mark.exhaustive)])
def test_errors_in_the_soak(site, version, tmp_path, record_property):
    settle(site, "v1", soak=SOAK)
    before = site.snapshots()["echo"], serving(site), site.machines()
    with under_load(site, tmp_path) as load:
        answer = site.roll("echo", version)
        seen = load.snapshot()
        load.wait_for(requests_done=seen.ok + seen.failed + int(RATE))
        report = load.stop()
    assert is_plain(answer, 5)
    data = answer.data
    assert data["outcome"] == "rolled-back"
    assert data["smoke"]["failed"] == 0 and data["smoke"]["passed"] > 0
    # Noticed within the window, long before its end.
    assert 0 < data["seconds"]["watch"] < LIMIT_S / 2
    # What failed is counted by the balancer and told, once for each request.
    watched = data["watched"]
    assert watched["requests"] >= SOAK["min_requests"]
    assert 0.02 <= watched["errors"] / watched["requests"] <= 0.08, watched
    assert f"{watched['errors']} of {watched['requests']} requests failed" in data["error"]
    assert (site.snapshots()["echo"], serving(site), site.machines()) == before
    # Before the watch and after it nothing has failed that the new version did not answer.
    assert 0 < report.failed <= report.versions["3"].count / 10
    took = seconds_back(site, answer)
    print(f"\n{version}: {watched}, {took:.2f} s from the verdict to the old ones' serving")
    record_property("seconds_back", took)
    assert took < 15.0


def test_errors_of_a_canary(site, tmp_path):
    settle(site, "v1", strategy="canary", soak={"min_requests": 50}, canary=CANARY)
    before = site.snapshots()["echo"], serving(site), site.machines()
    with under_load(site, tmp_path):
        answer = site.roll("echo", ERRORS)
    assert is_plain(answer, 5)
    assert "requests failed" in answer.data["error"]
    assert 0 < answer.data["watched"]["errors"] < answer.data["watched"]["requests"]
    # It never served alone: no old machine has been drained.
    assert drained(site, answer) <= set(answer.data["machines"])
    assert (site.snapshots()["echo"], serving(site), site.machines()) == before


def test_slow_answers_of_a_canary_and_what_comes_after_it(site, tmp_path):
    thresholds = {"min_requests": 50, "max_response_ratio": 3.0}
    settle(site, "v1", strategy="canary", soak=thresholds, canary=CANARY)
    before = site.snapshots()["echo"], serving(site), site.machines()
    with under_load(site, tmp_path):
        answer = site.roll("echo", SLOW)
        assert is_plain(answer, 5)
        assert "times as long as the old ones'" in answer.data["error"]
        assert answer.data["watched"]["errors"] == 0
        assert (site.snapshots()["echo"], serving(site), site.machines()) == before
        # The next version gets the slow one's place, and is not judged by what that one did.
        settle(site, "v1", strategy="canary", soak=thresholds, canary=CANARY | {"watch_s": 3})
        answer = site.roll("echo", "v2")
    assert is_plain(answer, 0)
    assert answer.data["watched"]["requests"] >= 50
    assert serving(site) == sorted(answer.data["machines"])


def test_slow_answers_in_the_soak(site, tmp_path):
    """The old machines serve no more: they are remembered."""
    thresholds = SOAK | {"min_requests": 50, "max_response_ratio": 3.0}
    settle(site, "v1", strategy="blue-green", soak=thresholds)
    before = site.snapshots()["echo"], serving(site), site.machines()
    with under_load(site, tmp_path):
        answer = site.roll("echo", SLOW)
    assert is_plain(answer, 5)
    assert "times as long as the old ones'" in answer.data["error"]
    assert drained(site, answer) >= set(before[1])
    assert (site.snapshots()["echo"], serving(site), site.machines()) == before


def test_a_good_version_stays(site, tmp_path):
    settle(site, "v1", soak=SOAK | {"seconds": 2})
    with under_load(site, tmp_path) as load:
        answer = site.roll("echo", "v2")
        report = load.stop()
    assert is_plain(answer, 0)
    assert answer.data["watched"]["errors"] == 0 < answer.data["watched"]["requests"]
    assert report.failed == 0


def test_the_way_back_is_warm_within_the_window_and_cold_after_it(site):
    settle(site, "v1", strategy="blue-green", keep_warm_s=600)
    old = serving(site)
    assert site.roll("echo", "v2").exit_code == 0
    plan = site.toolkit.result("rollback", site.environment, "echo", "--dry-run")
    assert plan["strategy"] == "warm"
    back = site.toolkit.result("rollback", site.environment, "echo")
    assert back["outcome"] == "rolled"
    assert "launch" not in back["seconds"] and "smoke" in back["seconds"]
    assert serving(site) == old == sorted(back["machines"])
    assert site.get().headers["X-Version"] == "1"

    # And forward again; then the window passes.
    window_s = 0.5
    settle(site, "v1", strategy="blue-green", keep_warm_s=window_s)
    assert site.roll("echo", "v2").exit_code == 0
    time.sleep(window_s)
    removed = site.toolkit.result("gc", "--keep", "100")["machines"]
    assert set(old) <= set(removed)
    assert len(site.machines()) == 3
    plan = site.toolkit.result("rollback", site.environment, "echo", "--dry-run")
    assert plan["strategy"] == "blue-green"
    back = site.toolkit.result("rollback", site.environment, "echo")
    assert back["outcome"] == "rolled" and "launch" in back["seconds"]
    assert site.get().headers["X-Version"] == "1"
