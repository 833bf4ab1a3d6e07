"""Vault files through the real `ansible-vault`: who can open what, and what leaks meanwhile."""

from __future__ import annotations

import base64
import json
import os
import secrets
import select
import shutil
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.keyring import kept_in_kernel
from toolkit import shell
from toolkit.cli.context import Context
from toolkit.cli.secrets import secrets as secrets_group
from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.project.load import load_environment, load_project
from toolkit.project.model import Project
from toolkit.secrets.authority import create_authority, issue
from toolkit.secrets.keys import KeyRing, MissingKey
from toolkit.secrets.memory import VersionFile
from toolkit.secrets.search import VaultPlace, search
from toolkit.secrets.source import VaultSource
from toolkit.secrets.vaults import Vaults
from toolkit.state import RAM_ROOT, State
from toolkit.wiring import open_ledger

PASSWORD_CANARY = "can'ary\"ü\\\n\t$(x) 8c1f0b72a95d".encode()
TOKEN_CANARY = b"canary-4419d7ce60"
BINARY_CANARY = b"\x00\xffcanary-bin\x80-77d2b1\n"

SERVICE = """\
name: shop
source: .
roles:
  database: {layers: [database], port: 5432, protocol: tcp}
  app: {layers: [app], port: 8000, uses: [database]}
  web: {layers: [web], port: 8443, protocol: https, uses: [app]}
"""
DECLARED = {
    "database": "- {name: database_password, kind: password, description: x}",
    "app": "- {name: database_password, kind: password, description: x}\n"
    "- {name: licence, kind: file, description: x}",
    "web": "- {name: web_tls, kind: tls, description: x, dns_names: ['{environment}.internal']}",
}
INVENTORY = """\
plugin: toolkit
roles: {database: {machines: 1}, app: {machines: 2}, web: {machines: 2}}
"""


class Recorder(Context):
    """The command line's context with a list in place of the ledger."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "project", root / "state", is_quiet=True)
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def record(self, kind: str, **data: Any) -> None:
        self.entries.append((kind, data))


class Sampler:
    """Watches arguments and environments of every process below this one."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.commands = 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def _watch(self) -> None:
        known: set[int] = set()
        while not self._is_done.wait(0.003):
            for pid in self._children(os.getpid()):
                try:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    environ = Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:
                    continue
                self.seen |= {words, environ}
                if pid not in known and b"ansible-vault" in words:
                    known.add(pid)
                    self.commands += 1

    def _children(self, pid: int) -> Iterator[int]:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [c for task in tasks for c in (task / "children").read_text().split()]
        except OSError:
            return
        for child in children:
            yield int(child)
            yield from self._children(int(child))

    def holds(self, canary: bytes) -> bool:
        return any(form in text for text in self.seen for form in spellings(canary))


@dataclass
class Shop:
    """A project whose development environment has its secrets."""

    root: Path
    context: Recorder
    sampler: Sampler = field(default_factory=Sampler)
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def project(self) -> Project:
        return load_project(self.root / "project")

    @property
    def state(self) -> State:
        return State(self.root / "state")

    def vaults(self) -> Vaults:
        environment = load_environment(self.project, "development")
        return Vaults(environment, KeyRing(environment, self.state))

    def source(self) -> VaultSource:
        return VaultSource(self.project, self.state, VersionFile(self.state))

    def invoke(self, *words: str, stdin: bytes = b"") -> Result:
        self.context.as_json = False
        return CliRunner().invoke(secrets_group, list(words), obj=self.context, input=stdin)

    def call(self, *words: str, stdin: bytes = b"") -> str:
        result = self.invoke(*words, stdin=stdin)
        assert result.exit_code == 0, traceback.format_exception(result.exception)
        self.outputs[" ".join(words)] = result.output
        return result.output


def spellings(canary: bytes) -> tuple[bytes, ...]:
    return (canary, base64.b64encode(canary).rstrip(b"="), canary.hex().encode())


def make_shop(root: Path) -> Shop:
    project = root / "project"
    project.mkdir()
    (project / "service.yml").write_text(SERVICE)
    for role, declared in DECLARED.items():
        meta = project / "roles" / role / "meta"
        meta.mkdir(parents=True)
        lines = declared.replace("\n", "\n  ")
        (meta / "secrets.yml").write_text(f"secrets:\n  {lines}\n")
    for environment in ("development", "production"):
        (project / "inventories" / environment).mkdir(parents=True)
        (project / "inventories" / environment / "toolkit.yml").write_text(INVENTORY)
    return Shop(root, Recorder(root))


def write_editor(root: Path) -> Path:
    """Write an editor that changes the password, and notes where it worked."""
    (root / "new-value").write_bytes(TOKEN_CANARY)
    editor = root / "editor.py"
    editor.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, re, sys\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "new = (root / 'new-value').read_text()\n"
        "text = re.sub(r'    value: .*(\\n      .*)*', f'    value: {new}', file.read_text(), 1)\n"
        "file.write_text(text)\n"
        "(root / 'edited').write_text(f'{file}\\n{os.environ[\"HOME\"]}')\n"
    )
    editor.chmod(0o755)
    return editor


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Run every operation once with canary values, watched."""
    root = tmp_path_factory.mktemp("shop")
    made = make_shop(root)
    patch = pytest.MonkeyPatch()
    patch.setenv("EDITOR", str(write_editor(root)))
    patch.delenv("VISUAL", raising=False)
    (root / "licence").write_bytes(BINARY_CANARY)
    with made.sampler:
        made.call("init", "development", "--json")
        made.call("set", "development", "app", "database_password", stdin=PASSWORD_CANARY + b"\n")
        made.call("import", "development", "app", "licence", str(root / "licence"))
        made.call("show", "development", "app", "licence", "--yes", "--json")
        made.call("edit", "development", "database")
    patch.undo()
    (root / "licence").unlink()
    (root / "new-value").unlink()
    yield made


def test_init_makes_what_it_can_and_says_what_it_cannot(shop: Shop) -> None:
    outcome = json.loads(shop.outputs["init development --json"])
    assert outcome["passwords"] == ["database", "app", "web"]
    assert {(i["role"], i["name"], i["version"]) for i in outcome["made"]} == {
        ("database", "database_password", 1),
        ("app", "database_password", 1),
        ("web", "web_tls", 1),
    }
    assert outcome["by_hand"] == [{"role": "app", "name": "licence", "version": 0}]
    inventory = shop.root / "project" / "inventories" / "development"
    assert stat.S_IMODE((inventory / "group_vars/web/vault.yml").stat().st_mode) == 0o600
    assert (inventory / "authority.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE")
    held = {path.name for path in (shop.root / "state" / "keys" / "development").iterdir()}
    assert held == {"app.key", "authority.key", "database.key", "web.key"}


def test_each_role_gets_exactly_its_own(shop: Shop) -> None:
    source = shop.source()
    app = source.secrets("development", "app")
    assert {name: s.version for name, s in app.items()} == {"database_password": 3, "licence": 1}
    assert app["database_password"].reveal() == TOKEN_CANARY
    assert app["licence"].reveal() == BINARY_CANARY
    web = source.secrets("development", "web")
    assert {name: s.version for name, s in web.items()} == {"web_tls.crt": 1, "web_tls.key": 1}
    assert b"PRIVATE" not in web["web_tls.crt"].reveal()


def test_what_was_done_is_recorded_without_values(shop: Shop) -> None:
    assert [kind for kind, _ in shop.context.entries] == [
        *("secrets-changing", "secrets-made"),
        *("secrets-changing", "secrets-changed"),
        *("secrets-changing", "secrets-changed"),
        "secret-shown",
        *("secrets-changing", "secrets-changed"),
    ]
    shared = [
        {"role": "database", "name": "database_password", "version": 2},
        {"role": "app", "name": "database_password", "version": 2},
    ]
    assert shop.context.entries[2][1]["secrets"] == shared
    assert shop.context.entries[3][1]["secrets"] == shared
    assert shop.context.entries[6][1] == {
        "environment": "development",
        "role": "app",
        "name": "licence",
        "version": 1,
    }


def test_an_edit_happens_in_memory_and_nothing_of_it_is_left(shop: Shop) -> None:
    file, home = (shop.root / "edited").read_text().splitlines()
    assert Path(file).is_relative_to(RAM_ROOT) and Path(home).is_relative_to(RAM_ROOT)
    assert not Path(home).exists()


def leaks(shop: Shop) -> set[str]:
    """Return where a value or a password was seen: a kind of place, or a file."""
    keys = shop.root / "state" / "keys" / "development"
    passwords = [path.read_bytes().strip() for path in keys.glob("*.key")]
    assert len(passwords) == 4
    found = set()
    for canary in (PASSWORD_CANARY, TOKEN_CANARY, BINARY_CANARY, *passwords):
        if shop.sampler.holds(canary):
            found.add("process")
        if canary in repr(shop.context.entries).encode():
            found.add("ledger")
        for command, output in shop.outputs.items():
            if not command.startswith("show") and canary.decode("latin-1") in output:
                found.add(command)
        for path in (p for p in shop.root.rglob("*") if p.is_file() and p.parent != keys):
            content = path.read_bytes()
            if any(form in content for form in spellings(canary)):
                found.add(path.name)
    return found


def test_no_process_file_or_record_shows_a_value(shop: Shop) -> None:
    assert shop.sampler.commands >= 10, "the sampler saw too little"
    assert leaks(shop) == set()
    shown = json.loads(shop.outputs["show development app licence --yes --json"])
    assert base64.b64decode(shown["value"]) == BINARY_CANARY


def test_the_sampler_sees_what_it_is_there_to_see() -> None:
    with Sampler() as sampler:
        subprocess.run(["sleep", "0.1"], env={"VALUE": "canary-in-environment"}, check=True)
        subprocess.run(["sh", "-c", "sleep 0.1; :", "canary-in-argument"], check=True)
    assert sampler.holds(b"canary-in-environment") and sampler.holds(b"canary-in-argument")


def password_on_disk(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Instead of a file in memory, which a killed process takes with it."""
    count = iter(range(1000))

    def create(name: str, flags: int = 0) -> int:
        return os.open(root / f"{name}-{next(count)}", os.O_RDWR | os.O_CREAT)

    patch.setattr(os, "memfd_create", create)


def password_in_environment(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Instead of a descriptor: a program that prints a variable."""
    original = shell.run
    program = root / "password"
    program.write_text('#!/bin/sh\necho "$VAULT_PASSWORD"\n')
    program.chmod(0o755)

    def run(argv: Sequence[str | Path], **named: Any) -> shell.Completed:
        if "--vault-id" not in argv:
            return original(argv, **named)
        password = os.pread(named["pass_fds"][0], 1000, 0).decode()
        words = [f"{str(word).partition('@')[0]}@{program}" if "@/proc" in str(word) else word
                 for word in argv]  # fmt: skip
        return original(words, **{**named, "env": {**named["env"], "VAULT_PASSWORD": password}})

    patch.setattr(shell, "run", run)


@pytest.mark.parametrize(
    ("sabotage", "place"),
    [(password_on_disk, "vault-password-0"), (password_in_environment, "process")],
)
def test_without_the_memory_file_passwords_are_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[Path, pytest.MonkeyPatch], None],
    place: str,
) -> None:
    """Sabotage: what is checked above is not so when passwords take another way."""
    made = make_shop(tmp_path)
    sabotage(tmp_path, monkeypatch)
    with made.sampler:
        made.call("init", "development")
    assert place in leaks(made)


def test_ansible_vault_itself_reads_the_files(shop: Shop, tmp_path: Path) -> None:
    vaults = shop.vaults()
    completed = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-vault",
            "view",
            "--vault-password-file",
            vaults.keys.path("app"),
            vaults.path("app"),
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert TOKEN_CANARY in completed.stdout


def test_a_second_init_keeps_everything(shop: Shop) -> None:
    before = {role: shop.vaults().path(role).read_bytes() for role in DECLARED}
    context = Recorder(shop.root)
    result = CliRunner().invoke(secrets_group, ["init", "development", "--json"], obj=context)
    assert json.loads(result.output)["made"] == []
    assert len(json.loads(result.output)["kept"]) == 4
    assert context.entries == []
    assert before == {role: shop.vaults().path(role).read_bytes() for role in DECLARED}


@pytest.fixture
def broken(shop: Shop, tmp_path: Path) -> Shop:
    """A copy that a test may spoil."""
    for part in ("project", "state"):
        shutil.copytree(shop.root / part, tmp_path / part)
    return Shop(tmp_path, Recorder(tmp_path))


def refusal(shop: Shop, role: str, environment: str = "development") -> str:
    with pytest.raises(ConfigurationError) as caught:
        shop.source().secrets(environment, role)
    assert caught.value.exit_code == 2
    told = "".join(traceback.format_exception(caught.value)).encode()
    for canary in (PASSWORD_CANARY, TOKEN_CANARY, BINARY_CANARY):
        assert canary not in told
    return caught.value.message


def test_a_wrong_key_is_refused(broken: Shop) -> None:
    keys = broken.vaults().keys
    keys.path("app").write_bytes(keys.path("web").read_bytes())
    assert "the password is another one" in refusal(broken, "app")


def test_a_missing_key_is_refused_and_never_made_anew(broken: Shop) -> None:
    broken.vaults().keys.path("app").unlink()
    assert "no vault password for development.app" in refusal(broken, "app")
    result = broken.invoke("init", "development")
    assert isinstance(result.exception, MissingKey)
    listed = json.loads(broken.call("list", "development", "--json"))
    assert {(s["role"], s["presence"]) for s in listed} == {
        ("database", "set"),
        ("app", "no-key"),
        ("web", "set"),
    }
    assert not broken.vaults().keys.path("app").exists()


def test_swapped_and_relabelled_vaults_are_refused(broken: Shop) -> None:
    vaults = broken.vaults()
    of_database, of_app = (vaults.path(role) for role in ("database", "app"))
    stolen = of_app.read_bytes()
    of_database.write_bytes(stolen)
    assert "is the vault of 'development.app', not of 'development.database'" in refusal(
        broken, "database"
    )
    of_database.write_bytes(stolen.replace(b"development.app", b"development.database", 1))
    assert "relabelled" in refusal(broken, "database")
    production = broken.root / "project/inventories/production/group_vars/app/vault.yml"
    production.parent.mkdir(parents=True)
    production.write_bytes(stolen)
    keys = broken.root / "state" / "keys"
    shutil.copytree(keys / "development", keys / "production")
    assert "is the vault of 'development.app', not of 'production.app'" in refusal(
        broken, "app", "production"
    )
    # With one password for both, the label alone would let it pass.
    production.write_bytes(stolen.replace(b"development.app", b"production.app", 1))
    assert "made for environment 'development'" in refusal(broken, "app", "production")


def test_a_truncated_vault_is_refused(broken: Shop) -> None:
    path = broken.vaults().path("app")
    path.write_bytes(path.read_bytes()[:-81])
    assert "cut off" in refusal(broken, "app")


def test_an_older_vault_is_refused(broken: Shop) -> None:
    VersionFile(broken.state).remember("development", "app", "licence", 2)
    assert "licence is version 1, but version 2 was seen" in refusal(broken, "app")


def test_an_absent_vault_names_the_command_that_makes_it(shop: Shop) -> None:
    assert "needs database_password, licence" in refusal(shop, "app", "production")


def test_matrix_lists_every_grant_of_every_environment(shop: Shop) -> None:
    rows = json.loads(shop.call("matrix", "--json"))
    assert {(r["environment"], r["role"], r["secret"]) for r in rows} == {
        (environment, role, name)
        for environment in ("development", "production")
        for role, name in (
            ("database", "database_password"),
            ("app", "database_password"),
            ("app", "licence"),
            ("web", "web_tls"),
        )
    }
    assert "web_tls.crt, web_tls.key" in shop.call("matrix", "development")


def test_a_secret_is_not_shown_without_a_terminal_or_consent(shop: Shop) -> None:
    before = len(shop.context.entries)
    result = shop.invoke("show", "development", "app", "licence")
    assert isinstance(result.exception, ConfigurationError)
    assert "not a terminal" in str(result.exception)
    assert len(shop.context.entries) == before


def ask(shop: Shop, answer: str) -> tuple[int, str]:
    """Have the real command show a secret on a terminal; return its exit code and the screen."""
    ours, theirs = os.openpty()
    argv = [
        Path(sys.executable).with_name("toolkit"),
        f"--project={shop.root / 'project'}",
        f"--state={shop.root / 'state'}",
        *("secrets", "show", "development", "app", "database_password"),
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(shop.root), "TERM": "dumb"}
    process = subprocess.Popen(
        argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    screen = ""
    is_answered = False
    try:
        while select.select([ours], [], [], 60.0)[0]:
            try:
                screen += os.read(ours, 4096).decode(errors="replace")
            except OSError:
                break
            if "[y/N]" in screen and not is_answered:
                is_answered = True
                assert TOKEN_CANARY.decode() not in screen
                os.write(ours, f"{answer}\n".encode())
    finally:
        os.close(ours)
        if not is_answered:
            process.kill()
    return process.wait(60.0), screen


def test_on_a_terminal_a_secret_is_shown_after_a_question(broken: Shop) -> None:
    """And the ledger knows of it, where it was shown."""

    def shown() -> list[dict[str, Any]]:
        with open_ledger(broken.state) as ledger:
            return ledger.entries(environment="development", role="app", kinds=["secret-shown"])

    code, screen = ask(broken, "n")
    assert code != 0
    assert TOKEN_CANARY.decode() not in screen
    assert shown() == []
    code, screen = ask(broken, "y")
    assert code == 0
    assert TOKEN_CANARY.decode() in screen
    [entry] = shown()
    assert entry["data"]["name"] == "database_password"
    assert entry["by"]
    assert TOKEN_CANARY.decode() not in json.dumps(entry)


def test_passwords_in_the_kernels_keyring_open_what_files_opened(broken: Shop) -> None:
    """An operator with the keys of one role, in memory alone; the search finds them too."""
    name = f"test-{secrets.token_hex(8)}"
    key = broken.vaults().keys.path("app")
    password = key.read_bytes()
    shutil.rmtree(key.parent)
    inventory = broken.root / "project/inventories/development/toolkit.yml"
    inventory.write_text(f"{INVENTORY}keys: {{keyring: {name}}}\n")
    (broken.root / "leaked").write_bytes(TOKEN_CANARY)
    place = VaultPlace(load_environment(broken.project, "development"), "app")

    def find() -> dict[str, Any]:
        return search([place], [broken.root / "leaked"], state=broken.state)[0]

    with kept_in_kernel(f"{name}:development.app", password):
        assert broken.source().secrets("development", "app")["licence"].reveal() == BINARY_CANARY
        assert [hit["secret"] for hit in find()["hits"]] == ["database_password"]
        listed = json.loads(broken.call("list", "development", "--json"))
        assert {(s["role"], s["presence"]) for s in listed} == {
            ("database", "no-key"), ("app", "set"), ("web", "no-key"),
        }  # fmt: skip
    assert "there is no vault password for development.app" in refusal(broken, "app")
    assert f"{name}:development.app" in find()["error"]


def test_what_cannot_be_set_is_refused_without_quoting_it(shop: Shop) -> None:
    authority = create_authority("shop", "development", now=time.time())
    one, other = (issue(authority, ["localhost"], now=time.time()) for _ in range(2))
    for role, name, value in (
        ("web", "web_tls", TOKEN_CANARY),
        ("web", "web_tls", one[0] + other[1]),
        ("web", "database_password", TOKEN_CANARY),
        ("nobody", "database_password", TOKEN_CANARY),
        ("app", "database_password", b""),
    ):
        result = shop.invoke("set", "development", role, name, stdin=value)
        assert isinstance(result.exception, ToolkitError)
        assert result.exception.exit_code == 2
        assert TOKEN_CANARY.decode() not in result.output + str(result.exception)
        assert b"PRIVATE" not in str(result.exception).encode()


@pytest.mark.parametrize("name", secrets_group.commands)
def test_every_command_explains_itself_with_an_example(shop: Shop, name: str) -> None:
    assert "Example: " in shop.call(name, "--help")
    assert "--json" in shop.call(name, "--help")
