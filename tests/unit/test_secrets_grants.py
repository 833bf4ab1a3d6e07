"""Who may know what, from the declarations."""

import ipaddress
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError, NotFound
from toolkit.project.load import load_project
from toolkit.project.model import (
    Canary,
    Deployment,
    Environment,
    KeySetting,
    SecretSpec,
    Soak,
    Timeouts,
)
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.grants import Matrix, compute_matrix, credential_names


def environment(name: str, **public: str | None) -> Environment:
    timeouts = Timeouts(1, 1, 1, 1, 1)
    return Environment(
        name=name,
        directory=Path("/nowhere") / name,
        network=ipaddress.IPv4Network("10.90.0.0/24"),
        keys=KeySetting(None, None),
        deployments={
            role: Deployment(
                role,
                1,
                listen,
                "rolling",
                1,
                Canary(1, 10, 0.0),
                Soak(0.0, 1.0, 1, 0.0),
                0.0,
                False,
                timeouts,
            )
            for role, listen in public.items()
        },
    )


def spec(name: str, kind: str = "password", **more: object) -> SecretSpec:
    return SecretSpec(name, kind, "", more.get("dns", ()), more.get("days"))  # type: ignore[arg-type]


DECLARED = {
    "web": [spec("web_tls", "tls", dns=("web.{environment}.internal",))],
    "app": [spec("database_password", days=90), spec("api_token", "token")],
    "database": [spec("database_password", days=30)],
    "idle": [],
}


def cells(matrix: Matrix) -> set[tuple[str, str, str]]:
    return {(g.environment, g.role, g.secret.name) for g in matrix.grants}


def test_the_matrix_is_exactly_what_is_declared_where_it_is_deployed() -> None:
    matrix = compute_matrix(
        "shop",
        DECLARED,
        [
            environment("development", web="127.0.0.1:8443", app=None, database=None, idle=None),
            environment("production", app=None, database=None),
        ],
    )
    assert cells(matrix) == {
        ("development", "web", "web_tls"),
        ("development", "app", "database_password"),
        ("development", "app", "api_token"),
        ("development", "database", "database_password"),
        ("development", "balancer", "edge_tls"),
        ("production", "app", "database_password"),
        ("production", "app", "api_token"),
        ("production", "database", "database_password"),
    }
    assert matrix.roles("production") == ("app", "database")
    assert matrix.sharers("production", "database_password") == ("app", "database")
    assert matrix.sharers("production", "web_tls") == ()


def test_names_are_filled_in_for_each_environment() -> None:
    matrix = compute_matrix(
        "shop", DECLARED, [environment(name, web="127.0.0.1:1") for name in ("a", "b")]
    )
    assert matrix.secret("b", "web", "web_tls").dns_names == ("web.b.internal",)
    edge = matrix.secret("a", "balancer", "edge_tls")
    assert edge.dns_names == ("localhost", "shop.a.internal", "127.0.0.1")


def test_roles_that_share_a_name_share_the_shortest_rotation() -> None:
    matrix = compute_matrix("shop", DECLARED, [environment("a", app=None, database=None)])
    for role in ("app", "database"):
        assert matrix.secret("a", role, "database_password").rotate_days == 30


def test_one_name_of_two_kinds_is_refused() -> None:
    declared = {"app": [spec("key")], "database": [spec("key", "file")]}
    with pytest.raises(ConfigurationError, match="database declares the secret key as file"):
        compute_matrix("shop", declared, [])


@pytest.mark.parametrize("name", ["balancer", "authority"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="reserved"):
        compute_matrix("shop", {name: []}, [])


def test_what_is_not_declared_is_not_found() -> None:
    matrix = compute_matrix("shop", DECLARED, [environment("a", app=None, web=None)])
    with pytest.raises(NotFound, match="'web_tls'"):
        matrix.secret("a", "app", "web_tls")


def test_a_certificate_becomes_two_credentials() -> None:
    assert credential_names(spec("web_tls", "tls")) == {
        "certificate": "web_tls.crt",
        "key": "web_tls.key",
    }
    assert credential_names(spec("api_token", "token")) == {"value": "api_token"}


def test_a_role_has_what_its_layers_and_its_own_name_declare(tmp_path: Path) -> None:
    (tmp_path / "service.yml").write_text(
        "name: shop\nsource: .\nroles:\n  app: {layers: [python, shop], port: 80}\n"
    )
    for role in ("python", "shop", "app"):
        meta = tmp_path / "roles" / role / "meta"
        meta.mkdir(parents=True)
        (meta / "secrets.yml").write_text(
            f"secrets: [{{name: of_{role}, kind: token, description: x}}]\n"
        )
    inventory = tmp_path / "inventories" / "a"
    inventory.mkdir(parents=True)
    (inventory / "toolkit.yml").write_text("plugin: toolkit\nroles: {app: {machines: 1}}\n")
    matrix = load_matrix(load_project(tmp_path))
    assert [s.name for s in matrix.secrets("a", "app")] == ["of_python", "of_shop", "of_app"]
