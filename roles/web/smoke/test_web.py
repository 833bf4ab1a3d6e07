"""nginx serves with TLS, as its own user, and passes requests on."""

import time

import pytest

SERVICE = "web.service"
UP_WITHIN_S = 15.0
WAITED_FOR = set()


@pytest.fixture(autouse=True)
def _is_up(host, machine):
    """Wait, once, while nothing listens yet; a wrong answer is left to the test."""
    deadline = time.monotonic() + UP_WITHIN_S
    while machine.name not in WAITED_FOR:
        properties = host.service(SERVICE).systemd_properties
        has_failed = properties["ActiveState"] == "failed" or properties["NRestarts"] != "0"
        is_listening = host.socket(f"tcp://0.0.0.0:{machine.port}").is_listening
        if is_listening or has_failed or time.monotonic() > deadline:
            WAITED_FOR.add(machine.name)
        else:
            time.sleep(0.05)


def test_service_is_active(host):
    """The unit runs and did not have to be started again."""
    properties = host.service(SERVICE).systemd_properties
    assert properties["ActiveState"] == "active"
    assert properties["NRestarts"] == "0"


def test_runs_as_its_own_user(host):
    """No process of the service is root's."""
    pid = host.service(SERVICE).systemd_properties["MainPID"]
    assert host.file(f"/proc/{pid}").user == "web"


def test_package_service_is_masked(host):
    """There is one nginx, and it is ours."""
    assert not host.service("nginx.service").is_running
    assert host.service("nginx.service").is_masked


def test_serves_with_the_environments_certificate(http, machine):
    """The client trusts the environment's authority alone, and checks the name."""
    answer = http.get("/healthz", timeout=2.0)
    assert answer.status_code == 200
    assert answer.headers["X-Served-By"] == machine.name


def test_reaches_the_database_through_the_application(http):
    """The whole way of a request; a missing application or database makes it fail."""
    answer = http.get("/api/entries", timeout=8.0, headers={"X-Request-Id": "smoke"})
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["entries"], list)
    assert answer.headers["X-Guestbook-Version"]
    assert answer.headers["X-Request-Id"] == "smoke"


def test_does_not_hide_what_the_application_answers(http):
    """An error keeps its status and its body."""
    answer = http.post("/api/entries", json={}, timeout=8.0)
    assert answer.status_code == 422
    assert "author" in answer.json()["error"]
