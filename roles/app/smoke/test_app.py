"""The application serves, in the version that was baked, and reaches the database."""

import time

import pytest

SERVICE = "app.service"
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


def test_listens_for_the_network(host, machine):
    """Not on loopback only."""
    assert host.socket(f"tcp://0.0.0.0:{machine.port}").is_listening


def test_runs_as_its_own_user(host):
    """No process of the service is root's."""
    pid = host.service(SERVICE).systemd_properties["MainPID"]
    assert host.file(f"/proc/{pid}").user == "app"


def test_version_is_the_baked_one(host, http):
    """What answers is what is in the image."""
    answer = http.get("/healthz", timeout=2.0)
    assert answer.status_code == 200
    assert answer.headers["X-Guestbook-Version"] == (
        host.file("/opt/guestbook/VERSION").content_string.strip()
    )


def test_writes_and_reads_the_database(http):
    """An entry is written, read back the way the page does, and undone."""
    answer = http.post("/api/selfcheck", timeout=8.0)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"read_back": True}


def test_page_shows_entries_of_the_database(http):
    """The page and the list that people and programs get."""
    assert http.get("/", timeout=8.0).status_code == 200
    answer = http.get("/api/entries", timeout=8.0)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["entries"], list)
