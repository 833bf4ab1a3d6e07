"""A vault that is not what it should be: the roll is refused, and nothing is started."""

import re
import shutil

import pytest

from toolkit.state import State

pytestmark = pytest.mark.host

OTHER = "production"


@pytest.fixture(scope="module")
def two(site):
    """A running environment, and the vaults of a second one."""
    site.toolkit.result("secrets", "init", OTHER)
    return site


def vault(site, role: str, environment: str):
    return site.project.root / "inventories" / environment / "group_vars" / role / "vault.yml"


def key(site, role: str, environment: str):
    return State(site.state).keys / environment / f"{role}.key"


def wrong_key(site, env):
    key(site, "app", env).write_bytes(key(site, "web", env).read_bytes())


def relabelled(site, env):
    path = vault(site, "database", env)
    stolen = path.read_bytes().replace(f"{env}.database".encode(), f"{env}.app".encode(), 1)
    vault(site, "app", env).write_bytes(stolen)


def of_another_role(site, env):
    shutil.copy(vault(site, "web", env), vault(site, "app", env))


def of_another_environment(site, env):
    shutil.copy(vault(site, "app", OTHER), vault(site, "app", env))


def of_another_environment_with_its_key(site, env):
    """The same password for both, and the label changed: only the content tells."""
    key(site, "app", env).write_bytes(key(site, "app", OTHER).read_bytes())
    moved = vault(site, "app", OTHER).read_bytes().replace(OTHER.encode(), env.encode(), 1)
    vault(site, "app", env).write_bytes(moved)


def replayed(site, env):
    path = vault(site, "app", env)
    older = path.read_bytes()
    done = site.toolkit.run("secrets", "init", env)
    assert done.exit_code == 0
    value = site.toolkit.result("secrets", "show", env, "app", "database_password", "--yes")
    source = site.directory / "value"
    source.write_text(value["value"] + "x")
    site.toolkit.result("secrets", "import", env, "app", "database_password", source)
    source.unlink()
    path.write_bytes(older)


def truncated(site, env):
    path = vault(site, "app", env)
    path.write_bytes(path.read_bytes()[:-81])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_key, "does not open it"),
        (relabelled, "does not open it"),
        (of_another_role, "is the vault of"),
        (of_another_environment, "is the vault of"),
        (of_another_environment_with_its_key, "was made for environment"),
        (replayed, "was seen before"),
        (truncated, "was cut off"),
    ],
)
def test_nothing_starts_with_a_vault_that_is_not_right(two, tmp_path, spoil, reason):
    env = two.environment
    kept = {"inventories": two.project.root / "inventories", "keys": State(two.state).keys}
    memory = two.state / "secret-versions.json"
    for name, path in kept.items():
        shutil.copytree(path, tmp_path / name)
    shutil.copy(memory, tmp_path / "memory")
    machines, places = two.machines(), two.snapshots()
    try:
        spoil(two, env)
        answer = two.roll("app", "v2")
        assert answer.exit_code == 2, answer.stderr
        assert reason in answer.error["error"]
        assert two.machines() == machines
        assert two.snapshots() == places
        assert two.get("/api/entries").status_code == 200
    finally:
        for name, path in kept.items():
            shutil.rmtree(path)
            shutil.copytree(tmp_path / name, path)
        shutil.copy(tmp_path / "memory", memory)


def test_with_everything_put_back_the_same_roll_succeeds(two):
    answer = two.roll("app", "v2")
    assert answer.exit_code == 0, answer.stderr


def test_a_changed_setting_or_secret_is_seen_with_the_same_image(two):
    """No bake: other machines of the same image, which were told something else."""
    env = two.environment
    assert two.roll("app", "v2").data["outcome"] == "unchanged"
    file = two.project.environment_file(env).parent / "group_vars/app/config.yml"
    settings = file.read_text()
    assert "title: " in settings
    file.write_text(re.sub("title: .*", "title: Another title", settings))
    before = two.status()
    assert two.roll("app", "v2").data["outcome"] == "rolled"
    assert "Another title" in two.get("/").text

    web = two.toolkit.result("secrets", "show", env, "web", "web_tls", "--yes")
    bundle = two.directory / "bundle"
    bundle.write_text(web["key"] + web["certificate"])
    # The same value as the next version: versions decide.
    two.toolkit.result("secrets", "import", env, "web", "web_tls", bundle)
    bundle.unlink()
    image = before["web"]["image"]
    rolled = two.toolkit.result("roll", env, "web", "--image", image)
    assert rolled["outcome"] == "rolled"
    after = two.status()
    for role in ("app", "web"):
        assert before[role]["image"] == after[role]["image"]
        names = [{one["name"] for one in status[role]["machines"]} for status in (before, after)]
        assert names[0].isdisjoint(names[1])
    assert two.toolkit.result("roll", env, "web", "--image", image)["outcome"] == "unchanged"
    assert two.roll("app", "v2").data["outcome"] == "unchanged"
