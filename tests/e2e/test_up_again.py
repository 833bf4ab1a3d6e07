"""`up` brings back what the ledger says should run, whatever has become of it."""

import shutil
import ssl
import time

import pytest

from bench.load.process import LoadProcess
from tests.support.breakage import kill_balancer
from tests.support.traces import groups, leftovers, namespaces, processes
from toolkit import shell
from toolkit.machines import cgroups
from toolkit.project.load import load_environment, load_project
from toolkit.secrets.authority import issue, load_authority
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.served import serial
from toolkit.state import State

pytestmark = pytest.mark.host


def signed(site) -> list[str]:
    return [entry["message"] for entry in site.get("/api/entries").json()["entries"]]


def test_up_is_harmless_when_all_is_well(site):
    before = site.machines(), site.snapshots(), processes(site.state, site.state_id)
    for _ in range(2):
        data = site.toolkit.result("up", site.environment)
        assert data["machines"] == []
        assert data["public"] == {"web": f"{site.url}/"}
    assert (site.machines(), site.snapshots(), processes(site.state, site.state_id)) == before
    assert site.get().status_code == 200


def test_status_tells_of_an_environment_that_the_project_has_no_more(site):
    directory = site.project.root / "inventories" / site.environment
    hidden = directory.rename(site.project.root / site.environment)
    try:
        answer = site.toolkit.run("status")
    finally:
        hidden.rename(directory)
    assert answer.exit_code == 0
    assert answer.data == []
    assert f"then 'toolkit down {site.environment}'" in answer.stderr


def test_a_killed_balancer_comes_back_with_its_pools(site):
    machines, snapshots = site.machines(), site.snapshots()
    kill_balancer(site)
    assert site.toolkit.run("smoke", site.environment).exit_code == 3
    assert site.toolkit.run("roll", site.environment, "web").exit_code == 3
    site.toolkit.result("up", site.environment)
    assert site.get().status_code == 200
    assert site.machines() == machines
    assert {role: sorted(line.split()[1] for line in text.splitlines())
            for role, text in site.snapshots().items()} == {
        role: sorted(line.split()[1] for line in text.splitlines())
        for role, text in snapshots.items()
    }  # fmt: skip


def test_a_killed_machine_comes_back(site):
    name = site.status()["web"]["machines"][0]["name"]
    site.kill_machine(name)
    states = {one["name"]: one["state"] for one in site.status()["web"]["machines"]}
    assert states.pop(name) == "stopped"
    assert list(states.values()) == ["serving"]
    assert name not in site.status()["web"]["pool"]["serving"]
    data = site.toolkit.result("up", site.environment)
    assert data["machines"] == [name]
    after = site.status()["web"]
    assert sorted(after["pool"]["serving"]) == sorted([name, *states])
    assert site.get().status_code == 200


def test_after_the_host_has_restarted(site):
    site.post("/api/entries", {"author": "host", "message": "before the restart"})
    before = site.status()
    machines = site.machines()
    kill_balancer(site)
    for name in machines:
        site.kill_machine(name)
        cgroups.remove(f"toolkit-{site.state_id}/{site.environment}/{name}")
    for name in namespaces(site.state_id):
        shell.run(["ip", "netns", "delete", name], env=shell.environment(), timeout_s=30.0)
    state = State(site.state)
    shutil.rmtree(state.runtime)
    shutil.rmtree(state.ram)
    assert not groups(site.state_id)

    stopped = site.status()
    assert {one["state"] for role in stopped.values() for one in role["machines"]} == {"stopped"}
    assert all(role["pool"]["serving"] == [] for role in stopped.values())
    data = site.toolkit.result("up", site.environment)
    assert sorted(data["machines"]) == machines
    after = site.status()
    for role in before:
        assert sorted(after[role]["pool"]["serving"]) == sorted(before[role]["pool"]["serving"])
        assert after[role]["image"] == before[role]["image"]
        assert after[role]["release"] == before[role]["release"]
    assert "before the restart" in signed(site)
    assert site.toolkit.run("smoke", site.environment).exit_code == 0


def is_certificate_old(site) -> bool:
    return any("older certificate" in one for one in site.remarks())


def test_up_takes_up_a_certificate_that_was_imported(site, tmp_path):
    """Without a reload, which costs an idle connection now and then; until then status says so."""
    before = processes(site.state, site.state_id)[0]
    served = served_serial(site)
    assert not is_certificate_old(site)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(make_certificate(site)))
    site.toolkit.result("secrets", "import", site.environment, "balancer", "edge_tls", bundle)
    assert served_serial(site) == served
    assert is_certificate_old(site)

    with LoadProcess(site.load(rate=50.0, requests=None, max_seconds=120.0), tmp_path) as load:
        load.wait_for(requests_done=50)
        site.toolkit.result("up", site.environment)
        load.wait_for(requests_done=200)
        report = load.stop()
    assert report.failed == 0, report.to_text()
    assert served_serial(site) == serial(bundle.read_bytes()) != served
    assert not is_certificate_old(site)
    assert processes(site.state, site.state_id)[0] == before, "it was not reloaded"

    kill_balancer(site)
    site.toolkit.result("up", site.environment)
    assert served_serial(site) == serial(bundle.read_bytes())


def make_certificate(site) -> tuple[bytes, bytes]:
    environment = load_environment(load_project(site.project.root), site.environment)
    key = KeyRing(environment, State(site.state)).authority_key()
    assert key is not None
    authority = load_authority(site.authority.read_bytes(), key.reveal())
    return issue(authority, ["localhost", "127.0.0.1"], now=time.time())


def served_serial(site) -> int:
    host, _, port = site.project.public(site.environment).rpartition(":")
    return serial(ssl.get_server_certificate((host, int(port))).encode())


def test_down_needs_no_configuration_of_the_balancer(site):
    runtime = State(site.state).runtime / site.environment / "balancer"
    (runtime / "haproxy.cfg").write_text("global\n    daemon\n")
    site.toolkit.result("down", site.environment)
    assert leftovers(site.state, site.state_id, [], site.environment) == []
    site.start("v1")


def test_down_keeps_the_data_and_up_starts_empty(site):
    site.post("/api/entries", {"author": "host", "message": "before down"})
    data = site.toolkit.result("down", site.environment)
    assert len(data["machines"]) == 5
    assert data["volumes"]
    again = site.toolkit.result("down", site.environment)
    assert again["machines"] == []
    site.start("v1")
    assert "before down" in signed(site)
