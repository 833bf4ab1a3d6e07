"""A project's files that are malformed are refused with their place, never with a traceback."""

from pathlib import Path

import pytest

from toolkit.canonical import canonical_json
from toolkit.errors import ConfigurationError, NotFound
from toolkit.project.load import (
    load_environment,
    load_project,
    load_secret_specs,
    need_usable_name,
)
from toolkit.project.model import Project

SERVICE = """\
name: shop
source: .
roles:
  app:
    layers: [{role: app, vars: {released: VALUE}}]
    port: 80
"""


def project(root: Path, service: str) -> Project:
    (root / "roles/app").mkdir(parents=True, exist_ok=True)
    (root / "service.yml").write_text(service)
    return load_project(root)


@pytest.mark.parametrize("value", ["2024-01-31", "2024-02-30", "2024-01-31 10:00:00"])
def test_a_date_is_text_as_it_is_written(tmp_path: Path, value: str) -> None:
    (layer,) = project(tmp_path, SERVICE.replace("VALUE", value)).roles["app"].layers
    assert layer.variables == {"released": value}
    assert value.encode() in canonical_json(dict(layer.variables))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("!!timestamp 2024-01-31", "service.yml:roles.app.layers.0.vars.released"),
        ("!!timestamp 2024-02-30", "service.yml: not YAML"),
        ("!!int canary", "service.yml: not YAML"),
        ("!!set {a}", "service.yml:roles.app.layers.0.vars.released"),
        ("1, released: 2", "service.yml:5: not YAML: the key released is there twice"),
        ("[" * 2000 + "]" * 2000, "service.yml"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path: Path, value: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        project(tmp_path, SERVICE.replace("VALUE", value))
    assert problem in caught.value.message
    assert "canary" not in caught.value.message


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"service\.yml:7: .* name is there twice"):
        project(tmp_path, SERVICE.replace("VALUE", "1") + "name: other\n")


def test_a_merged_key_is_not_there_twice(tmp_path: Path) -> None:
    value = "{<<: {a: 1, b: 2}, a: 3}"
    (layer,) = project(tmp_path, SERVICE.replace("VALUE", value)).roles["app"].layers
    assert layer.variables == {"released": {"a": 3, "b": 2}}


@pytest.mark.parametrize("name", ["my env", "Test", "@build-1", "1st", "-x", "ü", "a" * 32])
def test_a_name_that_no_host_can_have_is_refused(tmp_path: Path, name: str) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    directory = tmp_path / "inventories" / name
    directory.mkdir(parents=True)
    (directory / "toolkit.yml").write_text("{plugin: toolkit, roles: {app: {machines: 1}}}\n")
    with pytest.raises(ConfigurationError, match="the name of an environment") as caught:
        need_usable_name(load_environment(shop, name))
    assert "rename the directory" in (caught.value.hint or "")
    directory.rename(directory.with_name("a_b-1"))
    need_usable_name(load_environment(shop, "a_b-1"))


TWO_ROLES = """
name: shop
source: .
roles:
  app: {layers: [app], port: 8000}
  admin: {layers: [app], port: PORT}
"""


def test_roles_of_one_environment_have_ports_of_their_own(tmp_path: Path) -> None:
    """The balancer would listen twice, and give each role the other's requests."""
    directory = tmp_path / "inventories/test"
    directory.mkdir(parents=True)
    definition = directory / "toolkit.yml"
    definition.write_text("{plugin: toolkit, roles: {app: {machines: 1}, admin: {machines: 1}}}\n")
    with pytest.raises(ConfigurationError, match="app and admin have the same port 8000"):
        load_environment(project(tmp_path, TWO_ROLES.replace("PORT", "8000")), "test")
    assert load_environment(project(tmp_path, TWO_ROLES.replace("PORT", "8001")), "test")
    definition.write_text("{plugin: toolkit, roles: {app: {machines: 1}}}\n")
    assert load_environment(project(tmp_path, TWO_ROLES.replace("PORT", "8000")), "test")


@pytest.mark.parametrize(
    "network", ["127.0.0.0/24", "224.0.0.0/24", "240.0.0.0/24", "0.0.0.0/24", "0.0.0.0/0"]
)
def test_a_network_of_addresses_that_no_machine_can_have_is_refused(
    tmp_path: Path, network: str
) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    definition = tmp_path / "inventories/test/toolkit.yml"
    definition.parent.mkdir(parents=True)
    text = "{plugin: toolkit, network: NETWORK, roles: {app: {machines: 1}}}\n"
    definition.write_text(text.replace("NETWORK", network))
    with pytest.raises(ConfigurationError, match="addresses that machines can have"):
        load_environment(shop, "test")
    definition.write_text(text.replace("NETWORK", "192.168.7.0/28"))
    assert load_environment(shop, "test").name == "test"


@pytest.mark.parametrize("name", ["none", "a" * 300, "../test", ""])
def test_an_environment_that_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    definition = tmp_path / "inventories/test/toolkit.yml"
    definition.parent.mkdir(parents=True)
    definition.write_text("{plugin: toolkit, roles: {app: {machines: 1}}}\n")
    with pytest.raises(NotFound) as caught:
        load_environment(shop, name)
    assert caught.value.hint == "known environments: test"


@pytest.mark.parametrize(
    "settings",
    ["keep_warm_s: .inf", "keep_warm_s: .nan", "soak: {seconds: 1.0e+30}", "timeouts: {stop_s: 0}",
     "timeouts: {boot_s: .inf}", "canary: {watch_s: .inf}", "soak: {max_response_ratio: .inf}"],
)  # fmt: skip
def test_a_time_that_no_clock_can_wait_for_is_refused(tmp_path: Path, settings: str) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    directory = tmp_path / "inventories/test"
    directory.mkdir(parents=True)
    (directory / "toolkit.yml").write_text(
        f"{{plugin: toolkit, roles: {{app: {{machines: 1, {settings}}}}}}}\n"
    )
    with pytest.raises(ConfigurationError, match=f"roles.app.{settings.split(':')[0]}"):
        load_environment(shop, "test")


@pytest.mark.parametrize(
    "volumes",
    ["a: /srv/../etc", "a: /srv/", "a: //srv", "a: /proc/x", "a: /run", "a: /srv, b: /srv",
     "a: /srv, b: /srv/b"],
)  # fmt: skip
def test_mount_points_that_cannot_be_are_refused(tmp_path: Path, volumes: str) -> None:
    with pytest.raises(ConfigurationError, match=r"roles\.app\.volumes"):
        project(tmp_path, SERVICE.replace("VALUE", "1") + f"    volumes: {{{volumes}}}\n")


def test_volumes_beside_each_other_are_fine(tmp_path: Path) -> None:
    service = SERVICE.replace("VALUE", "1") + "    volumes: {a: /srv/a, b: /srv/b}\n"
    assert project(tmp_path, service).roles["app"].volumes == {"a": "/srv/a", "b": "/srv/b"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{released: VALUE}", "{ansible_connection: local}"),
        ("{released: VALUE}", "{toolkit_watch: no}"),
        ("[{role: app", "[app, {role: app"),
        ("{role: app,", '{role: app, source: ["-x"],'),
        ("{role: app,", '{role: app, source: [""],'),
        ("port:", "health: /a{b}, port:"),
        ("port:", "health: /prüfung, port:"),
    ],
)
def test_what_would_fail_in_a_bake_or_at_the_balancer_is_refused(
    tmp_path: Path, before: str, after: str
) -> None:
    service = SERVICE.replace(before, after).replace(", port:", "\n    port:")
    assert service != SERVICE
    with pytest.raises(ConfigurationError, match=r"service\.yml:roles\.app\."):
        project(tmp_path, service.replace("VALUE", "1"))


def test_an_ansible_role_is_not_called_like_the_operating_systems_layer(tmp_path: Path) -> None:
    (tmp_path / "roles/os").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="os is the name of another layer"):
        project(tmp_path, SERVICE.replace("{role: app,", "os, {role: app,").replace("VALUE", "1"))


@pytest.mark.parametrize("path", ["/", "/healthz", "/h?full=1&x=%20", "/a_b/-~"])
def test_paths_of_health_checks_that_can_be(tmp_path: Path, path: str) -> None:
    service = SERVICE.replace("port:", f"health: {path}\n    port:").replace("VALUE", "1")
    assert project(tmp_path, service).roles["app"].health == path


@pytest.mark.parametrize(
    ("name", "why"), [("config", "get their settings as"), ("edge_tls", "balancer's own")]
)
def test_no_secret_takes_the_place_of_one_of_ours(tmp_path: Path, name: str, why: str) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    (tmp_path / "roles/app/meta").mkdir()
    (tmp_path / "roles/app/meta/secrets.yml").write_text(
        f"secrets: [{{name: {name}, kind: token, description: x}}]\n"
    )
    with pytest.raises(ConfigurationError, match=why):
        load_secret_specs(shop, "app")


def test_the_home_of_a_user_who_does_not_exist(tmp_path: Path) -> None:
    shop = project(tmp_path, SERVICE.replace("VALUE", "1"))
    directory = tmp_path / "inventories/test"
    directory.mkdir(parents=True)
    (directory / "toolkit.yml").write_text(
        "{plugin: toolkit, roles: {app: {machines: 1}}, keys: {directory: ~no-such-user/keys}}\n"
    )
    with pytest.raises(ConfigurationError, match=r"toolkit\.yml:keys\.directory: there is no such"):
        load_environment(shop, "test")
