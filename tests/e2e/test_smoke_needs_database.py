"""Smoke tests exercise what the service cannot do without."""

import pytest

pytestmark = pytest.mark.host


def failed_tests(answer) -> set[str]:
    return {one["name"].rpartition("::")[2] for one in answer.data["checks"]
            if not one["is_passed"]}  # fmt: skip


def test_without_the_database_they_fail(site):
    everything = site.toolkit.run("smoke", site.environment)
    assert everything.exit_code == 0, everything.stderr
    assert everything.data["failed"] == 0
    checks = everything.data["checks"]
    assert {one["machine"] for one in checks} == set(site.machines())

    (database,) = [one["name"] for one in site.status()["database"]["machines"]]
    site.run_inside(database, "systemctl", "stop", "database.service")
    running = {role: site.toolkit.start("smoke", site.environment, role) for role in ("app", "web")}
    answers = {role: one.wait() for role, one in running.items()}
    assert {role: one.exit_code for role, one in answers.items()} == {"app": 4, "web": 4}
    assert "test_writes_and_reads_the_database" in failed_tests(answers["app"])
    assert "test_reaches_the_database_through_the_application" in failed_tests(answers["web"])
    for role, answer in answers.items():
        # What does not need the database goes on.
        assert "test_service_is_active" not in failed_tests(answer)
        assert {one["machine"] for one in answer.data["checks"]} == {
            one["name"] for one in site.status()[role]["machines"]
        }
    assert site.get("/healthz").status_code == 200, "a database that is away empties no pool"

    site.run_inside(database, "systemctl", "start", "database.service")
    again = site.toolkit.run("smoke", site.environment)
    assert again.exit_code == 0, again.stderr
    assert len(again.data["checks"]) == len(checks)


def test_an_unknown_role_is_refused(site):
    answer = site.toolkit.run("smoke", site.environment, "nothing")
    assert answer.exit_code == 2
    assert "nothing" in answer.error["error"]
