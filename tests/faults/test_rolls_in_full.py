"""Drift, hooks and the stateful role, on real machines."""

import json
import signal
import subprocess
from collections.abc import Callable

import pytest
import yaml

from bench.echo import DOES_NOT_START, define, set_note
from examples.command import Toolkit
from tests.support.breakage import is_plain, serving, settle
from tests.support.site import EchoSite
from tests.support.traces import leftovers
from toolkit import faults
from toolkit.pools.haproxy_config import admin_socket
from toolkit.pools.haproxy_socket import HaproxySocket

pytestmark = pytest.mark.host

HOOK = """---
- name: Count
  hosts: all
  gather_facts: false
  tasks:
    - name: Add a line
      ansible.builtin.lineinfile:
        path: /run/hooks
        line: "{name} {{{{ lookup('pipe', 'date +%s%N') }}}}"
        create: true
        mode: "0644"
"""


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    return new_echo("v1", "v2", DOES_NOT_START)


def killed_at(site: EchoSite, failpoint: str, *words: str) -> None:
    toolkit = Toolkit(
        site.toolkit.project,
        site.toolkit.state,
        prefix=["env", f"{faults.VARIABLE}={failpoint}"],
    )
    assert toolkit.run(*words).exit_code == -signal.SIGKILL


def test_what_was_changed_by_hand_is_told_and_put_right_only_when_asked(site):
    settle(site, "v1")
    before = site.snapshots(), serving(site)
    first, second = serving(site)
    with site.opened() as opened:
        pool = opened.pools["echo"]
        address = {one.name: one.address for one in opened.provider.machines()}
        pool.drain([address[first]])
        pool.deregister([address[second]])
        # Something that nobody knows has a place.
        pool.register(["10.90.0.99"])
        by_hand = pool.snapshot()
    told = site.toolkit.run("status", site.environment)
    assert told.exit_code == 0
    notes = site.remarks()
    for sentence in (
        f"{first} is meant to serve, and the balancer has it drained",
        f"{second} is meant to serve, and has no place in the pool",
        "10.90.0.99",
        "'toolkit up development --repair' puts this right",
    ):
        assert any(sentence in note for note in notes), (sentence, notes)
    [state] = [one for one in told.data if one["role"] == "echo"]
    assert state["pool"]["serving"] == [] and state["pool"]["draining"] == [first]
    # A plain status, a plan or smoke tests leave it alone; so does `up` with what is drained.
    site.toolkit.run("plan", site.environment, "echo")
    assert site.snapshots()["echo"] == by_hand
    assert is_plain(site.toolkit.run("up", site.environment), 0)
    assert first not in serving(site)
    assert "10.90.0.99" in site.snapshots()["echo"]

    data = site.toolkit.result("up", site.environment, "--repair")
    assert first in data["machines"]
    assert serving(site) == before[1]
    assert places_of(site.snapshots()["echo"]) == places_of(before[0]["echo"])
    assert site.snapshots()["count_keeper"] == before[0]["count_keeper"]
    assert site.remarks() == []


def test_machine_that_was_put_into_maintenance_stays_there_until_somebody_asks(site):
    settle(site, "v1")
    before = serving(site)
    first, second = before
    with site.opened() as opened:
        [address] = [one.address for one in opened.provider.machines() if one.name == first]
        slots = {one.address: one.slot for one in opened.pools["echo"].targets()}
        directory = opened.balancer.config.runtime_directory
        HaproxySocket(admin_socket(directory)).ask(
            [f"set server pool_echo/{slots[address]} state maint"]
        )

    def is_told() -> bool:
        told = site.toolkit.run("status", site.environment)
        [state] = [one for one in told.data if one["role"] == "echo"]
        assert state["pool"]["serving"] == [second]
        assert {one["name"]: one["state"] for one in state["machines"]}[first] == "maintenance"
        sentence = f"{first} is meant to serve, and is in maintenance"
        return any(sentence in note for note in state["remarks"])

    assert is_told()
    assert is_plain(site.toolkit.run("up", site.environment), 0)
    assert is_told()

    data = site.toolkit.result("up", site.environment, "--repair")
    assert data["machines"] == [first]
    assert serving(site) == before
    assert site.remarks() == []


def places_of(snapshot: str) -> list[str]:
    return sorted(line.partition(" ")[2] for line in snapshot.splitlines())


@pytest.fixture
def hooks(site: EchoSite):
    """A playbook before traffic and one after; both run in the first new machine."""
    service = site.project.root / "service.yml"
    text = service.read_text()
    document = yaml.safe_load(text)
    document["roles"]["echo"]["hooks"] = {"before": "before.yml", "after": "after.yml"}
    service.write_text(yaml.safe_dump(document))
    for name in ("before", "after"):
        (site.project.root / "playbooks" / f"{name}.yml").write_text(HOOK.format(name=name))
    yield
    service.write_text(text)


@pytest.mark.parametrize(
    "failpoint",
    [
        "roll.hook.committed",
        pytest.param("roll.register.acted", marks=pytest.mark.exhaustive),
        "roll.drain.committed",
        pytest.param("roll.hook.committed:2", marks=pytest.mark.exhaustive),
    ],
)
def test_hooks_run_once_also_when_the_roll_is_killed(site, hooks, failpoint):
    settle(site, "v1")
    set_note(site.project, "echo", failpoint)
    words = ("roll", site.environment, "echo", "--image", site.image("v1", "echo"))
    killed_at(site, failpoint, *words)
    [result] = site.toolkit.result("resume", site.environment)
    assert result["outcome"] == "rolled"
    first = result["machines"][0]
    lines = site.run_inside(first, "cat", "/run/hooks").text.splitlines()
    assert [line.split()[0] for line in lines] == ["before", "after"]
    with site.opened() as opened:
        skipped = [
            entry["data"]["skipped"]
            for entry in opened.ledger.roll_entries(result["roll"])
            if entry["kind"] == "effect.done" and entry["data"]["effect"] == "hook"
        ]
    assert skipped.count(False) == 2


def test_a_hook_that_fails_before_traffic_discards_the_roll(site, hooks):
    settle(site, "v1")
    before = site.snapshots(), site.machines()
    playbook = site.project.root / "playbooks" / "before.yml"
    playbook.write_text(playbook.read_text().replace("create: true", "create: false"))
    set_note(site.project, "echo", "a hook that fails")
    answer = site.roll("echo", "v1")
    assert is_plain(answer, 1)
    assert answer.data["outcome"] == "discarded"
    assert "hook before.yml, task 'Add a line' failed" in answer.error["error"]
    assert (site.snapshots(), site.machines()) == before


def starts(site: EchoSite) -> int:
    """Return what the machine has counted on its volume, asking it as other machines do."""
    [name] = serving(site, "count_keeper")
    program = (
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/').read().decode())"
    )
    answer = json.loads(site.run_inside(name, "python3", "-c", program).text)
    return int(answer["starts"])


def test_a_stateful_role_goes_back_to_the_old_image_with_its_data(site):
    define(site.project, count_keeper={"snapshot": True})
    before = starts(site)
    [old] = serving(site, "count_keeper")
    image = site.status()["count_keeper"]["image"]
    volume = site.state / "environments" / site.environment / "volumes" / "count_keeper-data"
    (volume / "precious").write_text("data")

    answer = site.roll("count_keeper", DOES_NOT_START)

    assert is_plain(answer, 4)
    assert answer.data["outcome"] == "discarded"
    status = site.status()["count_keeper"]
    assert status["image"] == image
    assert status["pool"]["serving"] == [old]
    assert starts(site) == before + 1
    assert site.run_inside(old, "cat", "/var/lib/echo/precious").text == "data"
    # The roll says how long nobody was served, and has copied the volume first.
    assert 0 < answer.data["downtime_s"] < answer.data["seconds"]["total"]
    [copy] = (site.state / "environments" / site.environment / "snapshots").iterdir()
    assert (copy / "precious").read_text() == "data"
    assert int((copy / "starts").read_text()) == before
    print(f"\ndowntime {answer.data['downtime_s']:.1f} s")


@pytest.mark.parametrize("way_on", ["resume", "abort"])
def test_a_stateful_roll_that_is_killed_between_two_machines(site, way_on):
    define(site.project, count_keeper={"snapshot": None})
    before = starts(site)
    set_note(site.project, "count_keeper", way_on)
    words = ("roll", site.environment, "count_keeper", "--image", site.image("v1", "count_keeper"))
    killed_at(site, "roll.launch.committed", *words)
    assert serving(site, "count_keeper") == []
    [result] = site.toolkit.result(way_on, site.environment)
    assert result["outcome"] == ("rolled" if way_on == "resume" else "discarded")
    # The new one has started once; on the way back the old one has, too.
    assert starts(site) == before + (1 if way_on == "resume" else 2)
    assert len(site.machines()) == 3


def test_a_roll_that_is_left_serves_on_until_the_next_replaces_all(site):
    settle(site, "v1", strategy="rolling", batch=1)
    old = serving(site)
    image = site.image("v2", "echo")
    killed_at(site, "roll.drain.committed", "roll", site.environment, "echo", "--image", image)
    answer = site.toolkit.run("abort", site.environment, "--leave")
    assert is_plain(answer, 0)
    [result] = answer.data
    assert result["outcome"] == "left"
    assert sorted(result["machines"]) == serving(site)
    assert len({*serving(site)} - {*old}) == 1
    assert len(serving(site)) == 2
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []
    assert site.roll("echo", "v2").data["outcome"] == "rolled"
    assert len(serving(site)) == 2
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []


def test_a_dead_machine_is_drift_too(site):
    settle(site, "v1")
    name = serving(site)[0]
    site.kill_machine(name)
    assert f"{name} is meant to run, and does not" in site.remarks()
    assert site.toolkit.result("up", site.environment)["machines"] == [name]
    assert len(serving(site)) == 2
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []


def test_a_copy_of_a_volume_is_gone_back_to_as_the_docs_say_and_goes_with_the_volumes(site):
    """The last of these tests: nothing is left of the environment."""
    define(site.project, count_keeper={"snapshot": True})
    directory = site.state / "environments" / site.environment
    volume = directory / "volumes" / "count_keeper-data"
    (volume / "precious").write_text("good")
    set_note(site.project, "count_keeper", "a roll that copies the volume first")
    roll = site.roll("count_keeper", "v1").data["roll"]
    (volume / "precious").write_text("bad")

    site.toolkit.result("down", site.environment)
    volume.rename(volume.with_name(".count_keeper-data.bad"))
    copy = directory / "snapshots" / f"count_keeper-data-{roll}"
    subprocess.run(["cp", "--archive", "--reflink=auto", copy, volume], check=True, timeout=60)
    site.toolkit.result("up", site.environment)
    assert site.roll("count_keeper", "v1").exit_code == 0
    [name] = serving(site, "count_keeper")
    assert site.run_inside(name, "cat", "/var/lib/echo/precious").text == "good"

    data = site.toolkit.result("down", site.environment, "--volumes")
    assert data["volumes"] is None
    assert list(directory.glob("volumes")) + list(directory.glob("snapshots")) == []
