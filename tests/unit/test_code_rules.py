"""The project's own rules about its code, held by tests.

Every rule is a function from a module to what breaks the rule; each is tried on a module that
breaks it, so that a rule which has gone blind is seen.
"""

import ast
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest

from toolkit.cli.main import COMMANDS, SUMMARIES, cli

ROOT = Path(__file__).parents[2]
LARGEST_MODULE_LINES = 400

PROCESS_MODULES = {"subprocess", "pty", "multiprocessing", "popen2", "pexpect", "sh"}
PROCESS_CALLS = re.compile(
    r"os\.(system|popen|fork\w*|exec\w+|spawn\w+|posix_spawn\w*)|asyncio\.create_subprocess_\w+"
)
PROCESS_EXCEPTIONS = {
    ("toolkit.shell", "*"): "it is the module that starts processes",
    ("toolkit.machines.launcher", "os.execvpe"): "it becomes systemd-nspawn, and starts nothing",
    ("toolkit.secrets.search", "os.fork"): (
        "each vault is opened in a process of its own, sharing the memory that is searched; the "
        "search itself is a child that toolkit.shell started"
    ),
}

RUNNER_EXCEPTIONS = {
    ("toolkit.ansible.child", "ansible_runner"): "the child process that Ansible runs in",
}

PURE = (
    "toolkit.canonical",
    "toolkit.errors",
    "toolkit.model",
    "toolkit.*.model",
    "toolkit.*.plan",
    "toolkit.*.manifest",
    "toolkit.*.past",
    "toolkit.*.chain",
    "toolkit.*.grants",
    "toolkit.bake.gpt",
    "toolkit.doctor.checks",
    "toolkit.doctor.needs",
)
"""Modules without I/O, clock or chance."""
PURE_LIBRARIES = {
    "__future__", "base64", "binascii", "bisect", "collections", "dataclasses", "enum",
    "functools", "graphlib", "hashlib", "heapq", "ipaddress", "itertools", "json", "math",
    "operator", "re", "statistics", "string", "struct", "textwrap", "types", "typing",
    "uuid.UUID", "uuid.uuid5",
    # As a value only; what touches the disk is in IMPURE_CALLS.
    "pathlib.Path", "pathlib.PurePath", "pathlib.PurePosixPath",
}  # fmt: skip
IMPURE_CALLS = re.compile(
    r"(?:^|\.)(?:open|print|input|exec|eval|__import__|read_text|read_bytes|write_text|write_bytes"
    r"|exists|is_file|is_dir|is_symlink|iterdir|glob|rglob|walk|stat|lstat|resolve|absolute"
    r"|expanduser|cwd|home|mkdir|rmdir|touch|unlink|rename|symlink_to|chmod|readlink|samefile)$"
)

PROVIDERS = (
    "toolkit.machines.nspawn",
    "toolkit.machines.qemu",
    "toolkit.network.namespaces",
    "toolkit.pools.local",
    "toolkit.pools.haproxy*",
    "toolkit.secrets.source",
    "toolkit.smoke.runner",
    "toolkit.store.local",
)
PROVIDER_EXCEPTIONS = {
    ("toolkit.machines.nspawn", "toolkit.network.namespaces"): (
        "machines and network of one host are one provider in two packages"
    ),
    ("toolkit.bake.run", "toolkit.store.local"): (
        "a bake writes layers as files, which only a store on this host can take; what reads "
        "images goes by ports.ImageCatalog"
    ),
}

DIRECTION_EXCEPTIONS = {
    ("toolkit.ansible.plugins.inventory.toolkit", "toolkit.wiring"): (
        "Ansible enters here, as an operator enters by a command"
    ),
}

# In pieces, so that this file does not name any.
HOSTS = tuple(
    r"\.".join(parts)
    for parts in (
        ("py" + "pi", "org"),
        ("python" + "hosted", "org"),
        (r"(?:deb|ftp|cdn\S*|security|snapshot|archive)(?:\.\w+)*", "deb" + "ian", "org"),
        (r"\w+", "ub" + "untu", "com"),
        ("doc" + "ker", "(?:io|com)"),
        ("gh" + "cr", "io"),
        ("gc" + "r", "io"),
        ("qu" + "ay", "io"),
        ("npm" + "js", "(?:org|com)"),
        ("crates", "io"),
        ("galaxy", "ans" + "ible", "com"),
    )
)
NAMED_HOST = re.compile(rf"(?<![\w-])(?:{'|'.join(HOSTS)})(?![\w-])")
PRIVATE_PATH = re.compile(r"(?<![\w.})*-])/(?:home|Users|work|ro" + r"ot)/[\w.]\S*")


@dataclass(frozen=True)
class Module:
    """One Python file of the project, parsed."""

    name: str
    tree: ast.Module
    lines: int = 0

    @property
    def package(self) -> str:
        return self.name.rpartition(".")[0]

    def imports(self, *, with_types: bool = False) -> Iterator[str]:
        """Yield what is imported: `module`, or `module.name` for `from module import name`."""
        hidden = set() if with_types else set(_type_checking_nodes(self.tree))
        for node in ast.walk(self.tree):
            if node in hidden:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = self.name.split(".")[: -node.level]
                    base = ".".join([*parents, *filter(None, [node.module])])
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def uses(self) -> Iterator[str]:
        """Yield every dotted name that is looked up, and every one that is called."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute | ast.Name):
                yield ast.unparse(node)


def breaches_of_processes(module: Module) -> list[str]:
    """Only `toolkit.shell` starts processes."""
    imported = list(module.imports())
    found = {name for name in imported if name.split(".")[0] in PROCESS_MODULES}
    found |= {name for name in (*imported, *module.uses()) if PROCESS_CALLS.fullmatch(name)}
    return _without(module, found, PROCESS_EXCEPTIONS)


def breaches_of_runner(module: Module) -> list[str]:
    """Only one module runs Ansible, in a process of its own."""
    found = {name.split(".")[0] for name in module.imports()} & {"ansible_runner"}
    return _without(module, found, RUNNER_EXCEPTIONS)


def breaches_of_purity(module: Module) -> list[str]:
    """What plans, and what the words are defined in, knows neither disk nor clock nor chance."""
    if not _is_one_of(module.name, PURE):
        return []
    bad = [name for name in module.imports() if not _is_pure(name)]
    bad += [name for name in module.uses() if IMPURE_CALLS.search(name)]
    return bad


def breaches_of_direction(module: Module) -> list[str]:
    """Imports point one way: cli → wiring → packages → ports and model."""
    imported = list(module.imports())
    if module.package == "toolkit.cli":
        return []
    found = {
        top
        for top in ("toolkit.cli", "toolkit.wiring")
        if any(_is_in(name, top) for name in imported)
    }
    bad = _without(module, found, DIRECTION_EXCEPTIONS)
    if module.name in {"toolkit.errors", "toolkit.model", "toolkit.ports"}:
        allowed = ("toolkit.errors", "toolkit.model")
        ours = [name for name in imported if _is_in(name, "toolkit")]
        bad += [name for name in ours if not any(_is_in(name, one) for one in allowed)]
    return bad


def breaches_of_wiring(module: Module) -> list[str]:
    """Only `toolkit.wiring` knows providers; the modules of a provider's own package help it."""
    if module.name == "toolkit.wiring":
        return []
    found = set()
    for name in module.imports():
        for candidate in (name, name.rpartition(".")[0]):
            if _is_one_of(candidate, PROVIDERS) and module.package != candidate.rpartition(".")[0]:
                found.add(candidate)
    return _without(module, found, PROVIDER_EXCEPTIONS)


def breaches_of_size(module: Module) -> list[str]:
    """A module that one can read in one go."""
    return [f"{module.lines} lines"] if module.lines > LARGEST_MODULE_LINES else []


EXCEPTIONS = (PROCESS_EXCEPTIONS, RUNNER_EXCEPTIONS, DIRECTION_EXCEPTIONS, PROVIDER_EXCEPTIONS)

RULES = (
    breaches_of_processes,
    breaches_of_runner,
    breaches_of_purity,
    breaches_of_direction,
    breaches_of_wiring,
    breaches_of_size,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_is_kept(rule: Callable[[Module], list[str]]):
    breaches = {module.name: bad for module in modules() if (bad := rule(module))}
    assert breaches == {}, rule.__doc__


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (breaches_of_processes, "toolkit.bake.seal", "import subprocess"),
        (breaches_of_processes, "toolkit.bake.seal", "def f():\n    from subprocess import run"),
        (breaches_of_processes, "toolkit.bake.seal", "import os\nos.system('ls')"),
        (breaches_of_processes, "toolkit.bake.seal", "from os import posix_spawn"),
        (breaches_of_processes, "toolkit.bake.seal", "import os\nrun = os.execvpe"),
        (breaches_of_processes, "toolkit.machines.launcher", "import os\nos.execv('a', [])"),
        (breaches_of_processes, "bench.roll", "import asyncio\nasyncio.create_subprocess_exec"),
        (breaches_of_runner, "toolkit.ansible.runner", "import ansible_runner"),
        (breaches_of_runner, "toolkit.ansible.runner", "from ansible_runner.config import a"),
        (breaches_of_purity, "toolkit.roll.plan", "import time"),
        (breaches_of_purity, "toolkit.roll.plan", "from datetime import datetime"),
        (breaches_of_purity, "toolkit.roll.plan", "from uuid import uuid4"),
        (breaches_of_purity, "toolkit.roll.plan", "from toolkit.state import State"),
        (breaches_of_purity, "toolkit.roll.plan", "from toolkit import shell"),
        (breaches_of_purity, "toolkit.model", "import random"),
        (breaches_of_purity, "toolkit.canonical", "import time"),
        (breaches_of_purity, "toolkit.project.model", "def f(p):\n    return p.read_text()"),
        (breaches_of_purity, "toolkit.ledger.chain", "f = open('x')"),
        (breaches_of_direction, "toolkit.roll.run", "from toolkit.cli.context import Context"),
        (breaches_of_direction, "toolkit.roll.run", "from toolkit import wiring"),
        (breaches_of_direction, "toolkit.roll.run", "def f():\n    import toolkit.cli.main"),
        (breaches_of_direction, "toolkit.ports", "from toolkit.roll.run import Roll"),
        (breaches_of_wiring, "toolkit.roll.run", "from toolkit.machines import nspawn"),
        (breaches_of_wiring, "toolkit.roll.run", "from toolkit.pools.haproxy_pool import A"),
        (breaches_of_wiring, "toolkit.cli.images", "from toolkit.store.local import LocalStore"),
        (breaches_of_wiring, "toolkit.roll.run", "from ..network.namespaces import A"),
        (breaches_of_size, "toolkit.roll.run", "\n" * LARGEST_MODULE_LINES + "x = 1"),
    ],
)
def test_rule_sees_a_breach(rule: Callable[[Module], list[str]], name: str, source: str):
    assert rule(parse(name, source))


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (breaches_of_processes, "toolkit.shell", "import subprocess"),
        (breaches_of_processes, "toolkit.machines.launcher", "import os\nos.execvpe('a', [], {})"),
        (breaches_of_processes, "toolkit.bake.seal", "import os\nos.open('a', os.O_RDONLY)"),
        (breaches_of_runner, "toolkit.ansible.child", "import ansible_runner"),
        (breaches_of_purity, "toolkit.roll.run", "import time"),
        (breaches_of_purity, "toolkit.bake.plan", "from toolkit.canonical import canonical_json"),
        (breaches_of_direction, "toolkit.cli.bake", "from toolkit import wiring"),
        (
            breaches_of_direction,
            "toolkit.wiring",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from toolkit.cli.context import Context",
        ),
        (breaches_of_wiring, "toolkit.wiring", "from toolkit.store.local import LocalStore"),
        (breaches_of_wiring, "toolkit.pools.local", "from toolkit.pools import haproxy"),
    ],
)
def test_rule_lets_what_is_right_pass(rule: Callable[[Module], list[str]], name: str, source: str):
    assert rule(parse(name, source)) == []


def test_make_test_runs_every_directory_of_tests():
    line = re.search(r"^TESTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line
    tops = [ROOT / word for word in line[1].split()]
    files = list((ROOT / "tests").rglob("test_*.py"))
    assert len(files) > 20
    assert [one for one in files if not any(one.is_relative_to(top) for top in tops)] == []


def test_every_exception_is_still_used():
    by_name = {module.name: module for module in modules()}
    unused = [
        (name, thing)
        for table in EXCEPTIONS
        for name, thing in table
        if thing != "*"
        and not any(_is_in(one, thing) for one in (*by_name[name].imports(), *by_name[name].uses()))
    ]
    assert unused == []


def test_no_file_names_a_registry_or_mirror():
    assert _matches(NAMED_HOST) == {}, "leave it to the tool's own default, or to a setting"


def test_no_file_names_a_private_directory():
    assert _matches(PRIVATE_PATH) == {}
    here = re.compile(re.escape(str(ROOT)) + r"(?!\w)")
    assert len(ROOT.parts) < 3 or _matches(here) == {}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (NAMED_HOST, "https://py" + "pi.org/simple"),
        (NAMED_HOST, "deb http://deb.deb" + "ian.org/debian bookworm main"),
        (NAMED_HOST, "ftp.de.deb" + "ian.org"),
        (NAMED_HOST, "FROM gh" + "cr.io/a/b"),
        (PRIVATE_PATH, "cd /ho" + "me/kim/toolkit"),
        (PRIVATE_PATH, "PYTHON=/ro" + "ot/.pyenv/bin"),
    ],
)
def test_names_of_hosts_and_private_directories_are_recognised(pattern: re.Pattern[str], text: str):
    assert pattern.search(text)


@pytest.mark.parametrize("text", ["the home/page", "/run/x/root/etc", "{tree}/root/etc", "deb ian"])
def test_other_names_are_left_alone(text: str):
    assert not NAMED_HOST.search(text)
    assert not PRIVATE_PATH.search(text)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, by its words after `toolkit`."""
    for name in sorted(COMMANDS):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", one) for sub, one in sorted(command.commands.items()))
        else:
            yield name, command


def test_every_command_has_a_summary():
    assert set(SUMMARIES) == set(COMMANDS)


def test_every_command_has_an_example_in_its_help_and_the_example_is_right():
    wrong = {}
    for name, command in commands():
        examples = examples_of(command)
        if not any(f"toolkit {name}" in _without_options(one) for one in examples):
            wrong[name] = "no example"
        for example in examples:
            try:
                follow(example)
            except click.ClickException as error:
                wrong[name] = f"{example}: {error.format_message()}"
    assert wrong == {}


def test_every_command_takes_json():
    options = {
        name: {o for one in command.params for o in one.opts} for name, command in commands()
    }
    assert len(options) > 20
    assert [name for name, found in options.items() if "--json" not in found] == []


@pytest.mark.parametrize("example", ["toolkit no-such", "toolkit bake --no-such", "toolkit images"])
def test_wrong_example_is_recognised(example: str):
    with pytest.raises(click.ClickException):
        follow(example)


def test_reference_names_every_command():
    reference = ROOT / "docs/reference.md"
    if not reference.is_file():
        pytest.skip("there is no reference yet")
    text = reference.read_text()
    assert [name for name, _ in commands() if f"toolkit {name}" not in text] == []


def examples_of(command: click.Command) -> list[str]:
    """Return the command lines of a command's help that begin with `toolkit`."""
    text = f"{command.help or ''}\n{command.epilog or ''}"
    _, _, after = text.partition("Example")
    return re.findall(r"(?:^|[\s|])(toolkit [^\n|]+)", after)


def follow(example: str) -> None:
    """Walk an example's words through the commands.

    Raises:
        ClickException: It names a command or an option that does not exist.
    """
    command: click.Command = cli
    words = shlex.split(example)[1:]
    while True:
        context = click.Context(command)
        _, words, _ = command.make_parser(context).parse_args(list(words))
        if not isinstance(command, click.Group):
            return
        _, found, words = command.resolve_command(context, words or [""])
        assert found is not None
        command = found


def _without_options(example: str) -> str:
    """Drop options that stand before the command, with their values."""
    return re.sub(r"^toolkit( --\w+ \S+)+", "toolkit", example)


@cache
def modules() -> tuple[Module, ...]:
    """Parse every Python file of the toolkit, the benchmarks and the examples."""
    paths = [
        path for top in ("toolkit", "bench", "examples") for path in (ROOT / top).rglob("*.py")
    ]
    assert len(paths) > 50, "the tests look in the wrong place"
    return tuple(parse(_name_of(path), path.read_text()) for path in sorted(paths))


def parse(name: str, source: str) -> Module:
    """Return a module from its source."""
    return Module(name, ast.parse(source), len(source.splitlines()))


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _type_checking_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from ast.walk(statement)


def _is_pure(imported: str) -> bool:
    names = (imported, imported.rpartition(".")[0], imported.partition(".")[0])
    return any(name in PURE_LIBRARIES or _is_one_of(name, PURE) for name in names)


def _is_in(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    words = name.split(".")
    return any(
        len(words) == len(globs := pattern.split(".")) and all(map(fnmatch, words, globs))
        for pattern in patterns
    )


def _without(module: Module, found: set[str], exceptions: dict[tuple[str, str], str]) -> list[str]:
    allowed = {thing for name, thing in exceptions if name == module.name}
    return sorted(name for name in found if name not in allowed and "*" not in allowed)


@cache
def _files() -> tuple[Path, ...]:
    """Return the files that are, or are about to be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nobody knows which files belong to the repository")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-zco", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout
    paths = {ROOT / name.decode() for name in listing.split(b"\0") if name}
    assert ROOT / "pyproject.toml" in paths
    return tuple(sorted(path for path in paths if path.is_file()))


def _matches(pattern: re.Pattern[str]) -> dict[str, list[str]]:
    found = {}
    for path in _files():
        lines = path.read_text(errors="replace").splitlines()
        hits = [
            f"{n}: {match[0]}" for n, line in enumerate(lines, 1) if (match := pattern.search(line))
        ]
        if hits:
            found[str(path.relative_to(ROOT))] = hits
    return found
