"""A secret is replaced in use: no request fails, and the old value is dead afterwards."""

import base64
import json
import shlex
import ssl
import subprocess
import sys
import time

import pytest

from bench.load.process import LoadProcess
from examples.command import Toolkit
from toolkit.secrets.authority import create_authority, issue
from toolkit.wiring import open_site
from toolkit.workplace import Workplace

pytestmark = [pytest.mark.host, pytest.mark.alone]

RATE = 320.0
ANSWER_DEADLINE_S = 30.0


def show(site, role: str, name: str) -> dict:
    return site.toolkit.result("secrets", "show", site.environment, role, name, "--yes")


def accepts(site, secret: dict) -> bool:
    """Ask PostgreSQL through the pool, from inside the environment's network.

    A database that was restarted has to pass the balancer's checks before there is an answer.
    """
    with open_site(Workplace(site.project.root, site.state), site.environment) as opened:
        host = str(next(opened.environment.network.hosts()))
        namespace = opened.network.namespace
    probe = site.project.root / "roles/database/smoke/accepts_database_password.py"
    order = {
        "host": host,
        "port": 5432,
        "version": secret["version"],
        "value": base64.b64encode(secret["value"].encode()).decode(),
    }
    deadline = time.monotonic() + ANSWER_DEADLINE_S
    while True:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-I", probe],
            input=json.dumps(order).encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode in {0, 1}:
            return done.returncode == 0
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.5)


def versions_in_vault(site) -> list[tuple[str, int]]:
    listed = site.toolkit.result("secrets", "list", site.environment)
    return [(one["name"], one["version"]) for one in listed]


def is_settled(site) -> None:
    """Nothing is left to do: the audit finds nothing, and a roll changes nothing."""
    assert not any(".previous" in name for name, _ in versions_in_vault(site))
    release = site.bake("v1")["release"]
    rolls = site.toolkit.result("roll", site.environment, "--release", release)
    assert {one["outcome"] for one in rolls} == {"unchanged"}
    answer = site.toolkit.run("secrets", "audit", site.environment)
    assert answer.exit_code == 0, answer.stderr


def test_rotations_under_load(site, tmp_path):
    """A password, a certificate of machines, and the balancer's, at 300 requests a second."""
    old = show(site, "app", "database_password")
    old_web = show(site, "web", "web_tls")["certificate"]
    old_edge = show(site, "balancer", "edge_tls")["certificate"]
    database = [one["name"] for one in site.status()["database"]["machines"]]
    assert accepts(site, old)
    with LoadProcess(site.load(rate=RATE, requests=None, max_seconds=300.0), tmp_path) as load:
        load.wait_for(requests_done=100)
        password = site.toolkit.result("secrets", "rotate", site.environment, "database_password")
        web = site.toolkit.result("secrets", "rotate", site.environment, "web_tls")
        edge = site.toolkit.result("secrets", "rotate", site.environment, "edge_tls")
        report = load.stop()
    # How many a second that were on this host is for `make bench-rotate` to tell.
    assert report.failed == 0
    assert report.requests == report.ok > 100

    new = show(site, "app", "database_password")
    assert new["version"] == old["version"] + 1
    assert new["value"] != old["value"]
    assert accepts(site, new)
    assert not accepts(site, old)
    # The stateful machine was not replaced for it.
    assert [one["name"] for one in site.status()["database"]["machines"]] == database
    assert password["roles"] == {"database": "renewed", "app": "rolled"}
    assert {one["role"] for one in password["proofs"]} == {"database"}
    assert web["roles"] == {"web": "rolled"}
    assert len(web["proofs"]) == 2
    assert edge["roles"] == {"balancer": "renewed"}
    host, _, port = site.project.public(site.environment).rpartition(":")
    served = ssl.get_server_certificate((host, int(port)))
    assert served.strip() not in old_edge
    assert served.strip() in show(site, "balancer", "edge_tls")["certificate"]
    assert show(site, "web", "web_tls")["certificate"] != old_web
    is_settled(site)


@pytest.mark.parametrize(
    "point",
    [
        "rotate.renew.intended",
        "rotate.renew.acted",
        "roll.launch.acted",
        "roll.drain.acted",
        "rotate.revoke.intended",
        "rotate.revoke.acted",
    ],
)
def test_an_interrupted_rotation_goes_on(site, point):
    """Killed anywhere: the service serves, and the same command finishes with the same version."""
    old = show(site, "app", "database_password")
    words = ("secrets", "rotate", site.environment, "database_password")
    killed = Toolkit(
        site.toolkit.project, site.state, prefix=["env", f"TOOLKIT_FAILPOINT={point}"]
    ).run(*words)
    assert killed.exit_code == -9, killed.stderr
    assert site.get("/api/entries").status_code == 200
    done = site.toolkit.result(*words)
    assert done["version"] == old["version"] + 1
    assert not accepts(site, old)
    assert accepts(site, show(site, "app", "database_password"))
    assert site.get("/api/entries").status_code == 200
    assert not any(".previous" in name for name, _ in versions_in_vault(site))


def test_an_interrupted_rotation_goes_back(site):
    """Killed while machines of both values serve: the old one keeps its login, the other dies."""
    old = show(site, "app", "database_password")
    words = ("secrets", "rotate", site.environment, "database_password")
    prefix = ["env", "TOOLKIT_FAILPOINT=roll.drain.acted"]
    killed = Toolkit(site.toolkit.project, site.state, prefix=prefix).run(*words)
    assert killed.exit_code == -9, killed.stderr
    abandoned = show(site, "app", "database_password")
    assert accepts(site, old) and accepts(site, abandoned)
    done = site.toolkit.result(*words, "--back")
    new = show(site, "app", "database_password")
    assert (new["version"], new["value"]) == (done["version"], old["value"])
    assert accepts(site, new)
    assert not accepts(site, abandoned)
    assert site.get("/api/entries").status_code == 200


def test_a_rotation_to_a_value_that_does_not_work_goes_back(site, tmp_path):
    """The certificate is of an authority that the balancer does not know."""
    words = ("secrets", "rotate", site.environment, "web_tls")
    before, serving = show(site, "web", "web_tls"), site.status()["web"]["pool"]["serving"]
    now = time.time()
    stranger = create_authority("stranger", site.environment, now=now)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(issue(stranger, (f"web.{site.environment}.internal",), now=now)))
    piping = ["sh", "-c", f'exec "$@" <{shlex.quote(str(bundle))}', "sh"]
    failed = Toolkit(site.toolkit.project, site.state, prefix=piping).run(*words, "--stdin")
    assert failed.exit_code in {4, 5}, failed.stderr
    assert "--back" in failed.error["hint"]
    assert site.status()["web"]["pool"]["serving"] == serving

    done = site.toolkit.result(*words, "--back")
    assert done["version"] == before["version"] + 2
    assert show(site, "web", "web_tls") == {**before, "version": done["version"]}
    assert site.get("/api/entries").status_code == 200
    assert site.toolkit.run(*words, "--back").exit_code == 2
    is_settled(site)


def test_nothing_is_left_to_do(site):
    is_settled(site)


def test_a_restarted_database_knows_the_new_password(site):
    """What the machine was given was replaced too: the old one does not come back."""
    new = show(site, "app", "database_password")
    machine = site.status()["database"]["machines"][0]["name"]
    assert site.run_inside(machine, "systemctl", "restart", "database.service").exit_code == 0
    assert accepts(site, new)
    assert not accepts(site, {**new, "version": new["version"] + 1})
    assert site.get("/api/entries").status_code == 200


def test_a_value_that_only_people_can_give_is_asked_for(site):
    answer = site.toolkit.run("secrets", "rotate", site.environment, "nothing")
    assert answer.exit_code == 2
    assert "nothing" in answer.error["error"]
