"""The documentation names every command, option, setting and exit code; its links lead on."""

import importlib
import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from toolkit import errors
from toolkit.cli.main import COMMANDS
from toolkit.project import schema

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", ".build", "node_modules"} & set(path.parts)
)


def leaves(name: str, command: click.Command):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            yield from leaves(f"{name} {sub}", command.get_command(context, sub))
    else:
        yield name, command


def all_commands():
    for name, place in COMMANDS.items():
        module, _, attribute = place.partition(":")
        yield from leaves(name, getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize(
    ("name", "command"), list(all_commands()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_command_and_its_options_are_documented(name, command):
    _, found, section = REFERENCE.partition(f"### `toolkit {name}")
    assert found, f"docs/reference.md has no section on toolkit {name}"
    section = section.partition("\n### ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}`" in section, parameter.opts


def test_every_setting_is_documented():
    models = [m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    fields = {field for model in models for field in model.model_fields}
    assert fields
    missing = [field for field in sorted(fields) if not re.search(rf"\b{field}\b", REFERENCE)]
    assert not missing


def test_every_exit_code_is_documented():
    kinds = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.ToolkitError)
    ]
    codes = {kind.exit_code for kind in kinds} | {0, errors.EXIT_BUG, errors.EXIT_INTERRUPTED}
    for code in codes:
        assert f"| {code} |" in REFERENCE


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
