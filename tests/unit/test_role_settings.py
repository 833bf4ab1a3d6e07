"""A role's settings: what it declares, what an environment says, and what a machine is told."""

import ipaddress
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.project.model import BaseSpec, Environment, KeySetting, Project
from toolkit.project.settings import role_settings

SPECS = """\
argument_specs:
  main:
    options: {app_port: {type: int, default: 8000}}
  config:
    options:
      title: {type: str, default: Guestbook}
      workers: {type: int, default: 1}
      ratio: {type: float}
      is_loud: {type: bool, default: false}
      names: {type: list, elements: str}
      limits: {type: dict}
      level: {type: str, choices: [low, high], default: low}
      zone: {type: str, required: true}
"""
DEFAULTS = {"title": "Guestbook", "workers": 1, "is_loud": False, "level": "low"}


def settings(root: Path, content: str, specs: str = SPECS) -> dict[str, object]:
    """Return what a machine of the role `app` is told with this `config.yml`."""
    meta = root / "roles" / "app" / "meta"
    inventory = root / "inventories" / "test"
    for directory in (meta, inventory / "group_vars" / "app"):
        directory.mkdir(parents=True, exist_ok=True)
    (meta / "argument_specs.yml").write_text(specs)
    (inventory / "group_vars" / "app" / "config.yml").write_text(content)
    project = Project(root, "shop", str(root), BaseSpec("bookworm", None, ()), {})
    environment = Environment(
        "test", inventory, ipaddress.IPv4Network("10.9.0.0/24"), KeySetting(None, None), {}
    )
    return dict(role_settings(project, environment, "app"))


def test_defaults_hold_where_nothing_is_said(tmp_path: Path) -> None:
    assert settings(tmp_path, "zone: a\n") == {**DEFAULTS, "zone": "a"}


def test_what_is_said_is_told_with_its_type(tmp_path: Path) -> None:
    given = (
        "{title: T, workers: 2, ratio: 1, is_loud: true, names: [a, b], limits: {a: 1}, "
        "level: high, zone: b}"
    )
    assert settings(tmp_path, given) == {
        "title": "T",
        "workers": 2,
        "ratio": 1,
        "is_loud": True,
        "names": ["a", "b"],
        "limits": {"a": 1},
        "level": "high",
        "zone": "b",
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("colour: red", "colour: unknown key"),
        ("app_port: 80", "app_port: unknown key"),
        ("title: 7", "title: must be of type str"),
        ("workers: many", "workers: must be of type int"),
        ("workers: 1.5", "workers: must be of type int"),
        ("workers: true", "workers: must be of type int"),
        ("is_loud: 1", "is_loud: must be of type bool"),
        ("names: canary", "names: must be of type list"),
        ("names: [a, 2]", "names[1]: must be of type str"),
        ("limits: [canary]", "limits: must be of type dict"),
        ("level: canary", "level: must be one of low, high"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, f"zone: a\n{line}\n")
    file = tmp_path / "inventories/test/group_vars/app/config.yml"
    assert caught.value.message == f"{file}:{problem}"
    assert "canary" not in caught.value.message
    assert caught.value.exit_code == 2


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, "workers: x\ncolour: red\n")
    problems = [line.partition("config.yml:")[2] for line in caught.value.message.splitlines()]
    assert sorted(problems) == [
        "colour: unknown key",
        "workers: must be of type int",
        "zone: is missing",
    ]


@pytest.mark.parametrize("content", ["- a\n", "just text\n"])
def test_a_file_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a mapping"):
        settings(tmp_path, content)


@pytest.mark.parametrize(
    ("specs", "problem"),
    [
        ("[]", " must be a mapping of settings"),
        ("argument_specs: [config]", "argument_specs: must be a mapping"),
        ("argument_specs: {config: {options: [port]}}",
         "argument_specs.config.options: must be a mapping"),
        ("argument_specs: {config: {options: {port: }}}",
         "argument_specs.config.options.port: must be a mapping"),
        ("argument_specs: {config: {options: {port: {choices: 3}}}}",
         "argument_specs.config.options.port.choices: must be a list"),
        ("argument_specs: {config: {options: {port: {type: integer}}}}",
         "argument_specs.config.options.port.type: Input should be 'str', 'int', 'float', "),
        ("argument_specs: {config: {options: {port: {type: int, default: canary}}}}",
         "argument_specs.config.options.port.default: must be of type int"),
        ("argument_specs: {config: {options: {port: {choices: [a], default: canary}}}}",
         "argument_specs.config.options.port.default: must be one of a"),
    ],
)  # fmt: skip
def test_a_declaration_that_is_wrong_is_blamed_itself(
    tmp_path: Path, specs: str, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, "", f"{specs}\n")
    file = tmp_path / "roles/app/meta/argument_specs.yml"
    assert caught.value.message.startswith(f"{file}:{problem}")
    assert "canary" not in caught.value.message


@pytest.mark.parametrize("specs", ["", "argument_specs:\n", "argument_specs: {main: [x]}\n"])
def test_a_declaration_of_nothing(tmp_path: Path, specs: str) -> None:
    assert settings(tmp_path, "", specs) == {}


def test_a_date_is_text(tmp_path: Path) -> None:
    given = settings(tmp_path, "{zone: 2024-02-30, limits: {since: 2024-01-31}}\n")
    assert (given["zone"], given["limits"]) == ("2024-02-30", {"since": "2024-01-31"})


@pytest.mark.parametrize(
    "value",
    ["{since: !!timestamp 2024-01-31}", "{1: a}", "{a: !!binary aGVsbG8=}", "{a: !!set {b}}"],
)
def test_what_json_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.yml:limits: must hold nothing but"):
        settings(tmp_path, f"{{zone: a, limits: {value}}}\n")
