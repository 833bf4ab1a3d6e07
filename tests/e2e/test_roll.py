"""A roll: what it says, what it does, and that nobody who uses the service notices."""

import pytest

from bench.load.process import LoadProcess
from tests.support.site import Site

pytestmark = [pytest.mark.host, pytest.mark.alone]

STATUS_FIELDS = [
    "environment", "role", "image", "release", "commit", "strategy", "machines", "pool", "since",
    "by",
]  # fmt: skip
MACHINE_FIELDS = ["name", "address", "state", "smoke", "since"]
ROLL_LIMIT_S = 10.0
ATTEMPTS = 3
"""Something else may be at work on the same host for a moment."""
EFFECTS = {
    "launch", "smoke", "register", "await-healthy", "admit", "drain", "await-drained",
    "deregister", "destroy",
}  # fmt: skip


def serving_addresses(site: Site, role: str) -> set[str]:
    """Ask the balancer itself."""
    with site.opened() as opened:
        return {one.address for one in opened.pools[role].targets() if one.is_serving}


def test_status_follows_its_contract(site):
    states = site.toolkit.result("status", site.environment)
    assert [(one["role"], len(one["machines"])) for one in states] == [
        ("database", 1), ("app", 2), ("web", 2),
    ]  # fmt: skip
    baked = site.bake("v1")
    for state in states:
        assert list(state) == [*STATUS_FIELDS, "wanted", "unfinished", "remarks"]
        assert state["environment"] == site.environment
        assert state["image"] == baked["images"][state["role"]]
        assert (state["release"], state["commit"]) == (baked["release"], baked["commit"])
        assert state["strategy"] == ("stateful" if state["role"] == "database" else "rolling")
        assert state["since"].endswith("Z")
        assert state["by"]
        assert list(state["pool"]) == ["name", "serving", "draining"]
        assert state["pool"]["draining"] == []
        for machine in state["machines"]:
            assert list(machine) == MACHINE_FIELDS
            assert (machine["state"], machine["smoke"]) == ("serving", "passed")
        addresses = {one["name"]: one["address"] for one in state["machines"]}
        serving = {addresses[name] for name in state["pool"]["serving"]}
        assert serving == set(addresses.values()) == serving_addresses(site, state["role"])


def test_status_believes_the_balancer_and_not_the_ledger(site):
    machine = site.status()["web"]["machines"][0]
    with site.opened() as opened:
        opened.pools["web"].drain([machine["address"]])
        try:
            pool = site.status()["web"]["pool"]
        finally:
            opened.pools["web"].admit([machine["address"]])
    assert pool["draining"] == [machine["name"]]
    assert machine["name"] not in pool["serving"]
    assert machine["name"] in site.status()["web"]["pool"]["serving"]


def test_a_roll_loses_no_request(site, tmp_path):
    assert site.get().headers["X-Guestbook-Version"] == "1"
    assert "X-Web-Version" not in site.get().headers
    before = site.machines()
    answers = {}
    settings = site.load(rate=150.0, requests=None, max_seconds=300.0)
    with LoadProcess(settings, tmp_path) as load:
        load.wait_for(requests_done=100, version="1")
        for role in ("web", "app"):
            answers[role] = site.roll(role, "v2")
        load.wait_for(requests_done=1500, version="2")
        report = load.stop()
    assert report.failed == 0, report.to_text()
    assert report.requests >= 1500
    assert set(report.versions) == {"1", "2"}
    baked = {version: site.bake(version)["images"] for version in ("v1", "v2")}
    for role, answer in answers.items():
        assert answer.exit_code == 0, answer.stderr
        result = answer.data
        assert (result["outcome"], result["role"]) == ("rolled", role)
        assert (result["previous"], result["image"]) == (baked["v1"][role], baked["v2"][role])
        assert result["roll"]
        assert sorted(result["machines"]) == sorted(site.status()[role]["pool"]["serving"])
        assert result["smoke"]["failed"] == 0
        assert result["smoke"]["passed"] == len(result["smoke"]["checks"]) > 0
        assert {one["machine"] for one in result["smoke"]["checks"]} == set(result["machines"])
        assert set(result["seconds"]) >= EFFECTS | {"total"}
    assert len(set(before) & set(site.machines())) == 1, "only the database stays"
    assert site.get().headers["X-Guestbook-Version"] == "2"
    assert site.get().headers["X-Web-Version"] == "2"


def test_what_serves_already_is_left_alone(site):
    site.roll("app", "v2")
    before = site.machines(), site.snapshots()
    answer = site.roll("app", "v2")
    assert answer.exit_code == 0
    assert (answer.data["outcome"], answer.data["roll"]) == ("unchanged", None)
    assert answer.data["machines"] == []
    assert (site.machines(), site.snapshots()) == before


def test_a_release_rolls_every_role(site):
    release = site.bake("v1")["release"]
    results = site.toolkit.result("roll", site.environment, "--release", release)
    assert {one["role"] for one in results} == {"database", "app", "web"}
    outcomes = {one["role"]: one["outcome"] for one in results}
    assert outcomes["database"] == "unchanged"
    assert {state["release"] for state in site.status().values()} == {release}


def test_a_plan_is_what_a_roll_does(site):
    target = "v2" if site.status()["web"]["image"] == site.image("v1", "web") else "v1"
    before = site.machines(), site.snapshots()
    image = site.image(target, "web")
    plan = site.toolkit.result("plan", site.environment, "web", "--image", image)
    assert (site.machines(), site.snapshots()) == before
    assert plan["is_warm"] is False
    assert plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["rolls"] >= 1
    effects = [step["effect"] for step in plan["steps"]]
    assert effects.index("smoke") < effects.index("register") < effects.index("admit")
    assert effects.index("admit") < effects.index("drain") < effects.index("destroy")
    answer = site.roll("web", target)
    assert set(effects) == set(answer.data["seconds"]) - {"total"}


def test_a_rollback_goes_back_once(site):
    before = site.status()["web"]["image"]
    dry = site.toolkit.result("rollback", site.environment, "web", "--dry-run")
    result = site.toolkit.result("rollback", site.environment, "web")
    assert (result["outcome"], result["previous"]) == ("rolled", before)
    assert result["image"] == dry["image"] != before
    assert result["smoke"]["failed"] == 0
    again = site.toolkit.run("rollback", site.environment, "web", "--dry-run")
    assert again.exit_code == 2 or again.data["image"] not in {before, result["image"]}
    kinds = site.toolkit.result("history", site.environment, "web", "--limit", "1")
    assert kinds[0]["data"]["is_rollback"] is True


def test_a_roll_of_two_machines_is_quick(site):
    seconds = []
    for _ in range(ATTEMPTS):
        target = "v2" if site.status()["app"]["image"] == site.image("v1", "app") else "v1"
        seconds.append(site.roll("app", target).data["seconds"]["total"])
        if seconds[-1] < ROLL_LIMIT_S:
            return
    pytest.fail(f"each took {ROLL_LIMIT_S:g} s or more: {seconds}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["app", "--image", "sha256:" + "0" * 64], "0" * 64),
        (["app", "--image", "123456789abc"], "123456789abc"),
        (["app", "--release", "r-000000000000"], "r-000000000000"),
        (["nothing"], "nothing"),
    ],
)
def test_what_does_not_exist_is_not_rolled(words, named, site):
    before = site.machines(), site.snapshots()
    answer = site.toolkit.run("roll", site.environment, *words)
    assert answer.exit_code == 2
    assert named in answer.error["error"]
    assert answer.stdout == ""
    assert (site.machines(), site.snapshots()) == before


def test_an_image_of_another_role_is_not_rolled(site):
    image = site.image("v1", "web")
    answer = site.toolkit.run("roll", site.environment, "app", "--image", image)
    assert answer.exit_code == 2
    assert "web" in answer.error["error"]


def test_a_wrong_setting_stops_a_roll_before_it_begins(site):
    before = site.machines(), site.snapshots()
    file = site.project.environment_file(site.environment).parent / "group_vars/app/config.yml"
    text = file.read_text()
    try:
        file.write_text(f"{text}colour: green\npool_size: many\n")
        answer = site.toolkit.run("roll", site.environment, "app")
    finally:
        file.write_text(text)
    assert answer.exit_code == 2
    assert f"{file}:colour: unknown key" in answer.error["error"]
    assert f"{file}:pool_size: " in answer.error["error"]
    assert "many" not in answer.error["error"]
    assert (site.machines(), site.snapshots()) == before


def test_history_tells_what_was_done(site):
    entries = site.toolkit.result("history", site.environment, "--verify", "--limit", "50")
    kinds = [entry["kind"] for entry in entries]
    assert "roll.rolled" in kinds
    rolled = entries[kinds.index("roll.rolled")]
    assert rolled["by"]
    assert rolled["data"]["image"].startswith("sha256:")
