"""The documentation names every command, option, setting and exit code; its links lead on."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from toolkit import errors, faults
from toolkit.ansible import hooks
from toolkit.bake import base, builder, seal
from toolkit.cli.main import COMMANDS, cli
from toolkit.machines import nspawn
from toolkit.project import schema, source
from toolkit.roll import lease, proof
from toolkit.secrets import keys
from toolkit.smoke import plugin

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()

SECTIONS = {
    "## service.yml": schema.ServiceFile,
    "## inventories/ENVIRONMENT/toolkit.yml": schema.EnvironmentFile,
    "## Roles": schema.SecretsFile,
}
"""Heading of the reference to the file that it describes."""


def tracked(pattern: str) -> list[Path]:
    """Return files that git knows or would take, so that no scratch directory counts."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files", "-z", "--cached", "--others",
         "--exclude-standard", "--", pattern],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(ROOT / name for name in listing.stdout.split("\0") if name)


PAGES = [path for path in tracked("*.md") if path.is_file()]

NAMED_FILE = re.compile(
    r"(?<![\w/.}>…-])((?:docs|toolkit|bench|examples|tests|requirements)"
    r"/[\w./-]*\w\.(?:md|py|txt|yml|j2))(?:::(\w+))?"
)
"""A file of the project, as a comment or a page names it from the root; `::test` may follow."""

NAMING = [
    path
    for pattern in ("*.md", "*.py", "*.yml", "*.toml", "*.j2", "Makefile", ".ci/*")
    for path in tracked(pattern)
    if path.is_file() and path != Path(__file__)
]


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            yield from leaves(f"{name} {sub}", command.get_command(context, sub))
    else:
        yield name, command


def all_commands() -> Iterator[tuple[str, click.Command]]:
    for name, place in COMMANDS.items():
        module, _, attribute = place.partition(":")
        yield from leaves(name, getattr(importlib.import_module(module), attribute))


def section(heading: str) -> str:
    """Return the part of the reference below a heading, up to the next of its kind."""
    marks = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}( .*)?$", REFERENCE, re.MULTILINE)
    assert found, f"docs/reference.md has no section {heading}"
    return re.split(rf"^#{{2,{len(marks)}}} ", REFERENCE[found.end() :], flags=re.MULTILINE)[0]


def fields(annotation: Any) -> Iterator[str]:
    """Yield the settings of a model and of all models below it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield name
            yield from fields(field.annotation)
    for part in get_args(annotation):
        yield from fields(part)


def anchors(page: Path) -> set[str]:
    """Return the fragments that a page's headings can be reached by."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("name", "command"), list(all_commands()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_command_its_arguments_and_options_are_documented(name: str, command: click.Command):
    text = section(f"### `toolkit {name}{arguments(command)}`")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"| `{parameter.opts[0]}` |" in text, parameter.opts
    documented = re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)
    assert set(documented) == {
        option.opts[0] for option in command.params if isinstance(option, click.Option)
    }


def arguments(command: click.Command) -> str:
    context = click.Context(command)
    found = [one for one in command.params if isinstance(one, click.Argument)]
    return "".join(f" {one.make_metavar(context)}" for one in found)


def test_options_of_the_toolkit_itself_are_documented():
    introduction = REFERENCE.partition("## Exit codes")[0]
    for option in cli.params:
        assert f"`{option.opts[0]}" in introduction, option.opts
    assert "`--help`" in introduction


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_setting_is_documented(heading: str):
    names = set(fields(SECTIONS[heading]))
    cells = " ".join(re.findall(r"`([^`]+)`", section(heading)))
    missing = sorted(name for name in names if not re.search(rf"(?<!\w){name}(?!\w)", cells))
    assert names
    assert not missing


def test_every_model_is_in_a_section():
    models = {m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, BaseModel)}
    covered: set[type] = set()

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            covered.add(annotation)
            for field in annotation.model_fields.values():
                walk(field.annotation)
        for part in get_args(annotation):
            walk(part)

    for model in SECTIONS.values():
        walk(model)
    assert models - covered == {BaseModel, schema.Strict}


def test_every_exit_code_is_documented_and_no_other():
    kinds = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.ToolkitError)
    ]
    codes = {kind.exit_code for kind in kinds} | {0, errors.EXIT_BUG, errors.EXIT_INTERRUPTED}
    documented = re.findall(r"^\| (\d+) \|", section("## Exit codes"), re.MULTILINE)
    assert sorted(map(int, documented)) == sorted(codes)


def test_fixed_deadlines_are_the_documented_ones():
    documented = re.findall(r"^\| .* \| (\d+) \|$", section("## Fixed deadlines"), re.MULTILINE)
    assert [float(one) for one in documented] == [
        source.FETCH_TIMEOUT_S,
        base.BOOTSTRAP_TIMEOUT_S,
        builder.APPLY_TIMEOUT_S,
        seal.MKFS_TIMEOUT_S,
        nspawn.SNAPSHOT_TIMEOUT_S,
        hooks.HOOK_TIMEOUT_S,
        plugin.COMMAND_TIMEOUT_S,
        plugin.HTTP_TIMEOUT_S,
        nspawn.RENEW_TIMEOUT_S,
        proof.PROBE_TIMEOUT_S,
        keys.COMMAND_DEADLINE_S,
        lease.TIME_TO_LIVE_S,
    ]


def test_every_failpoint_is_documented():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section("## Failpoints"), re.MULTILINE))
    documented = {scope: set(re.findall(r"`([\w-]+)`", cell)) for scope, cell in rows.items()}
    assert documented == {scope: set(effects) for scope, effects in faults.EFFECTS.items()}
    for moment in faults.MOMENTS:
        assert f"`{moment}`" in section("## Failpoints")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        assert other.is_relative_to(ROOT), target
        if fragment:
            assert fragment in anchors(other), target


def dangling(text: str) -> list[str]:
    """Return files and tests of the project that a text names, and that do not exist."""
    found = []
    for name, test in NAMED_FILE.findall(text):
        path = ROOT / name
        if not path.is_file():
            found.append(name)
        elif test and not re.search(rf"^ *(async )?(def|class) {test}\b", path.read_text(), re.M):
            found.append(f"{name}::{test}")
    return found


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path: Path):
    assert dangling(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see docs/rolls.md.", []),
        ('"""See\ndocs/decisions/0001-libraries.md\n"""', []),
        ("`tests/unit/test_docs.py::dangling`, `<state>/docs/absent.md`", []),
        ("see docs/absent.md.", ["docs/absent.md"]),
        ("(docs/decisions/0099-none.md)", ["docs/decisions/0099-none.md"]),
        ("`toolkit/bake/absent.py`", ["toolkit/bake/absent.py"]),
        ("`tests/unit/test_docs.py::test_absent`", ["tests/unit/test_docs.py::test_absent"]),
    ],
)
def test_dangling_reference_is_seen(text: str, expected: list[str]):
    assert dangling(text) == expected


def test_index_leads_to_every_page():
    directory = ROOT / "docs"
    index = directory / "README.md"
    targets = re.findall(r"\]\(([^)#\s]+)", index.read_text())
    reached = {(directory / target).resolve() for target in targets}
    pages = {page for page in PAGES if page.is_relative_to(directory)} - {index}
    assert not pages - reached


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_have_as_many_cells_in_every_row(page: Path):
    width = None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line)))
        width = width or cells
        assert cells == width, f"line {number}"
        assert line.endswith("|"), f"line {number}"
