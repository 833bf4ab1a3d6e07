"""PostgreSQL runs on its volume, takes writes, and knows the application's role."""

import time

import pytest

SERVICE = "database.service"
UP_WITHIN_S = 15.0
WAITED_FOR = set()
VOLUME = "/var/lib/postgresql"


def query(host, statement):
    """Return what psql prints for a statement in the application's database."""
    return host.check_output(
        "cd / && runuser -u postgres -- /usr/lib/postgresql/15/bin/psql --no-psqlrc --tuples-only "
        "--no-align --quiet --set=ON_ERROR_STOP=1 --dbname=guestbook --command=%s",
        statement,
    )


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
    assert host.file(f"/proc/{pid}").user == "postgres"


def test_data_is_on_the_volume(host):
    """Not in the memory of the machine, where it would be lost with it."""
    assert host.mount_point(VOLUME).exists
    assert query(host, "SHOW data_directory").startswith(f"{VOLUME}/")


def test_takes_writes(host):
    """Writes to the disk and commits; the table is gone with its session."""
    assert query(host, "SELECT pg_is_in_recovery()") == "f"
    assert (
        query(
            host,
            "CREATE TABLE pg_temp.smoke (number int); "
            "INSERT INTO pg_temp.smoke VALUES (42); SELECT number FROM pg_temp.smoke",
        )
        == "42"
    )
    assert query(host, "SHOW fsync") == "on"


def test_application_has_its_role_and_database(host):
    """A login of the role has a password; the role owns its database and is no superuser."""
    logins = query(
        host,
        "SELECT login.rolname FROM pg_auth_members "
        "JOIN pg_authid login ON login.oid = member JOIN pg_authid owner ON owner.oid = roleid "
        "WHERE owner.rolname = 'guestbook' AND NOT owner.rolsuper AND NOT login.rolsuper "
        "AND login.rolcanlogin AND login.rolpassword LIKE 'SCRAM-SHA-256$%'",
    )
    assert set(logins.split()) & {"guestbook_a", "guestbook_b"}
    assert (
        query(
            host,
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'guestbook'",
        )
        == "guestbook"
    )


def test_network_needs_a_password(host):
    """Nobody gets in over the network by name alone."""
    attempt = host.run(
        "cd / && PGCONNECT_TIMEOUT=2 /usr/lib/postgresql/15/bin/psql --no-password "
        "--host=127.0.0.1 --username=guestbook_a --dbname=guestbook --command='SELECT 1'"
    )
    assert attempt.rc != 0
    assert "no password supplied" in attempt.stderr
