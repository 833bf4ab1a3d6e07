"""A role's settings: what its `meta/argument_specs.yml` declares, and what an environment says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from toolkit.errors import ConfigurationError
from toolkit.project.documents import complain, parse_file, read_yaml
from toolkit.project.model import Environment, Project

_Type = Literal["str", "int", "float", "bool", "list", "dict", "path", "raw"]

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
    "path": str,
    "raw": object,
}

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


class _Lenient(BaseModel):
    """The format is Ansible's, which has more keys than concern us."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Option(_Lenient):
    type: _Type = "str"
    elements: _Type | None = None
    default: JsonValue = None
    required: bool = False
    choices: tuple[JsonValue, ...] | None = None


class _EntryPoint(_Lenient):
    options: dict[str, _Option] | None = None


class _EntryPoints(_Lenient):
    config: _EntryPoint | None = None


class _SpecsFile(_Lenient):
    argument_specs: _EntryPoints | None = None


def role_settings(project: Project, environment: Environment, role: str) -> Mapping[str, Any]:
    """Return a role's settings in an environment: its declared defaults under `config.yml`.

    The role declares them as the entry point `config` of its `meta/argument_specs.yml`.

    Raises:
        ConfigurationError: A setting is unknown, missing, or of another type than declared; or
            the declaration itself is wrong.
    """
    options = _declared(project.role_directory(role) / "meta" / "argument_specs.yml")
    path = environment.directory / "group_vars" / role / "config.yml"
    given = (read_yaml(path) if path.is_file() else None) or {}
    if not isinstance(given, dict):
        raise ConfigurationError(f"{path}: must be a mapping of settings")
    problems = [f"{name}: unknown key" for name in given if name not in options]
    settings: dict[str, Any] = {}
    for name, option in options.items():
        value = given.get(name)
        if value is None:
            value = option.default
        else:
            problems += _problems(name, option, value)
        if value is not None:
            settings[name] = value
        elif option.required:
            problems.append(f"{name}: is missing")
    complain(path, problems)
    return settings


def _declared(path: Path) -> Mapping[str, _Option]:
    """Read what a role declares; its defaults have to be as it says too."""
    if not path.is_file() or read_yaml(path) is None:
        return {}
    specs = parse_file(_SpecsFile, path).argument_specs
    options = (specs.config.options if specs and specs.config else None) or {}
    field = "argument_specs.config.options"
    complain(
        path,
        [
            problem
            for name, option in options.items()
            if option.default is not None
            for problem in _problems(f"{field}.{name}.default", option, option.default)
        ],
    )
    return options


def _problems(name: str, option: _Option, value: Any) -> list[str]:
    is_stray_bool = isinstance(value, bool) and option.type not in {"bool", "raw"}
    if not isinstance(value, _TYPES[option.type]) or is_stray_bool:
        return [f"{name}: must be of type {option.type}"]
    if option.choices and value not in option.choices:
        return [f"{name}: must be one of {', '.join(map(str, option.choices))}"]
    if isinstance(value, list) and option.elements:
        element = _Option(type=option.elements)
        return [
            problem
            for index, one in enumerate(value)
            for problem in _problems(f"{name}[{index}]", element, one)
        ]
    try:
        _JSON.validate_python(value)
    except ValidationError:
        return [f"{name}: must hold nothing but texts, numbers, lists and mappings of names"]
    return []
