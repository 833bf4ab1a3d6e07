"""Read files that people write in YAML; report everything that is wrong with a file at once.

Every complaint reads `file:field: what is wrong`. Values are never echoed, since a secret may
have been pasted into the wrong place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from toolkit.errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)

if TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"

_MESSAGES = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "is empty, and needs at least one entry",
}
"""Pydantic's kind of error to what people are told, where its own words are about Python."""


class _Loader(_SafeLoader):
    """YAML as JSON knows it: a date is text, and a key is there once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is there twice: YAML's last one would win in silence."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} is there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Raises:
        ConfigurationError: It is not readable, not YAML, has a key twice, or is not text.
    """
    try:
        return yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        # A tag may promise what the value is not.
        raise ConfigurationError(f"{path}: not YAML") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def parse_file(model: type[Model], path: Path) -> Model:
    """Read a file as a model; one that says nothing has no settings.

    Raises:
        ConfigurationError: It is not readable or not what the model says.
    """
    document = read_yaml(path)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: must be a mapping of settings")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = [
            _problem(e["loc"], e["type"], e["msg"]) for e in error.errors(include_input=False)
        ]
        complain(path, problems)
        raise


def complain(path: Path, problems: Sequence[str]) -> None:
    """Refuse a file for what is wrong with it.

    Raises:
        ConfigurationError: There are problems; each is named with the file.
    """
    if problems:
        raise ConfigurationError("\n".join(f"{path}:{problem}" for problem in problems))


def _problem(location: Iterable[int | str], kind: str, message: str) -> str:
    field = ".".join(str(part) for part in location)
    return f"{field}: {_MESSAGES.get(kind, message.removeprefix('Value error, '))}"
