"""A role's settings: what it declares, what an environment says, and what a machine is told."""

import ipaddress
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.project.load import role_settings
from toolkit.project.model import BaseSpec, Environment, KeySetting, Project

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


def test_a_default_of_another_type_than_declared(tmp_path: Path) -> None:
    specs = "argument_specs: {config: {options: {size: {type: int, default: big}}}}\n"
    with pytest.raises(ConfigurationError, match="size: must be of type int"):
        settings(tmp_path, "", specs)
