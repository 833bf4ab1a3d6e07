"""Versions that are broken on purpose are discarded, and nobody who uses the service notices."""

import pytest

from bench.load.process import LoadProcess
from examples.versions import ANSWERS_500, BROKEN, DOES_NOT_START, NO_DATABASE
from tests.support.traces import groups, namespaces

pytestmark = pytest.mark.host

FAILING_TESTS = {
    DOES_NOT_START: {"test_service_is_active", "test_listens_for_the_network"},
    ANSWERS_500: {"test_page_shows_entries_of_the_database"},
    NO_DATABASE: {"test_writes_and_reads_the_database"},
}
"""Some of the tests that must notice."""

PASSING_TESTS = {
    DOES_NOT_START: set(),
    # These would have been admitted by the balancer's own check.
    ANSWERS_500: {"test_version_is_the_baked_one"},
    NO_DATABASE: {"test_version_is_the_baked_one"},
}


@pytest.mark.parametrize("version", BROKEN)
def test_a_broken_version_is_discarded(version, site, tmp_path):
    machines, snapshots = site.machines(), site.snapshots()
    serving = {role: state["pool"]["serving"] for role, state in site.status().items()}
    site.image(version, "app")
    with LoadProcess(site.load(rate=60.0, requests=None, max_seconds=120.0), tmp_path) as load:
        load.wait_for(requests_done=100)
        answer = site.roll("app", version)
        seen = load.snapshot().requests
        load.wait_for(requests_done=seen + 100)
        report = load.stop()

    assert answer.exit_code == 4, answer.stderr
    assert answer.error["exit_code"] == 4
    result = answer.data
    assert result["outcome"] == "discarded"
    assert result["image"] == site.image(version, "app")
    failed = {one["name"].rpartition("::")[2] for one in result["smoke"]["checks"]
              if not one["is_passed"]}  # fmt: skip
    passed = {one["name"].rpartition("::")[2] for one in result["smoke"]["checks"]} - failed
    assert FAILING_TESTS[version] <= failed
    assert PASSING_TESTS[version] <= passed
    assert result["smoke"]["failed"] > 0
    assert set(result["seconds"]).isdisjoint({"register", "admit", "drain"})

    assert report.failed == 0, report.to_text()
    assert set(report.versions) == {"1"}
    assert site.snapshots() == snapshots
    assert site.machines() == machines
    assert {role: s["pool"]["serving"] for role, s in site.status().items()} == serving
    for name in result["machines"]:
        assert not any(name in one for one in groups(site.state_id) | namespaces(site.state_id))
    assert site.get().headers["X-Guestbook-Version"] == "1"


def test_the_good_version_still_rolls_afterwards(site):
    answer = site.roll("app", "v2")
    assert (answer.exit_code, answer.data["outcome"]) == (0, "rolled")
    assert site.get().headers["X-Guestbook-Version"] == "2"
