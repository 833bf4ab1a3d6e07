"""The leak gate on real bakes: each role here does one thing that no image may hold."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from bench.lab import copy_layers
from examples.command import Answer, Toolkit
from examples.versions import Edit
from tests.support.sabotage import sabotaged

pytestmark = pytest.mark.host

ENVIRONMENT = "test"
KEY_TASK = """
- name: Make a key
  ansible.builtin.command: openssl genpkey -algorithm ed25519 -out {path}
"""
CANARY = "canary-in-the-operators-environment"
INDEX = "https://packages.invalid/simple"


class Leaky:
    """A project of one role above the operating system, which this test writes."""

    def __init__(self, directory: Path, store: Path) -> None:
        self.root = directory / "project"
        role = self.root / "roles" / "leaky"
        for path in ("tasks", "meta", "files", "smoke"):
            (role / path).mkdir(parents=True)
        (self.root / "playbooks").mkdir()
        (self.root / "source").mkdir()
        (self.root / "playbooks" / "bake.yml").write_text(
            "- hosts: all\n  gather_facts: false\n  roles: [{role: '{{ toolkit_role }}'}]\n"
        )
        (self.root / "service.yml").write_text(
            "name: leaky\nsource: source\nroles: {leaky: {layers: [leaky], port: 1, "
            "protocol: tcp}}\n"
        )
        (role / "meta" / "secrets.yml").write_text(
            "secrets:\n"
            "  - {name: token_one, kind: token, description: a}\n"
            "  - {name: tls_one, kind: tls, description: b, dns_names: [a.internal]}\n"
        )
        inventory = self.root / "inventories" / ENVIRONMENT
        inventory.mkdir(parents=True)
        (inventory / "toolkit.yml").write_text("plugin: toolkit\nroles: {leaky: {machines: 1}}\n")
        self.role = role
        self.toolkit = Toolkit(self.root, directory / "state")
        self.store = directory / "state" / "store"
        copy_layers(store, self.store)
        self.toolkit.result("secrets", "init", ENVIRONMENT)
        self._git("init", "-q")

    def secret(self, name: str) -> dict:
        return self.toolkit.result("secrets", "show", ENVIRONMENT, "leaky", name, "--yes")

    def bake(self, tasks: str, *, exceptions: str = "", toolkit: Toolkit | None = None) -> Answer:
        (self.role / "tasks" / "main.yml").write_text(tasks)
        (self.root / "leak-exceptions.yml").write_text(exceptions or "exceptions: []\n")
        self._git("add", "-A", ".")
        self._git("commit", "-qm", "x", "--allow-empty")
        return (toolkit or self.toolkit).run("bake")

    def sealed(self, content: bytes) -> bool:
        """Whether a layer holds some bytes."""
        return any(content in path.read_bytes() for path in self.layers())

    def layers(self) -> list[Path]:
        found = []
        for key in self.store.glob("keys/*.json"):
            document = json.loads(key.read_bytes())
            if document["name"] == "leaky":
                name = document["digest"].removeprefix("sha256:")
                found.append(self.store / "layers" / f"{name}.erofs")
        return found

    def _git(self, *words: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(["git", "-C", self.root, *who, *words], check=True)


@pytest.fixture(scope="module")
def leaky(baked, tmp_path_factory):
    baked.bake("v1")
    return Leaky(tmp_path_factory.mktemp("leaky"), baked.store)


def refused(answer: Answer, *places: str) -> None:
    """Check that the bake failed and named every path with its rule."""
    assert answer.exit_code == 1, answer.stderr
    message = answer.error["error"]
    missing = [place for place in places if place not in message]
    assert not missing, message


def test_what_is_in_the_tree_is_found(leaky):
    """One bake, a file for each rule; nothing is stored."""
    token = leaky.secret("token_one")["value"]
    key = leaky.secret("tls_one")["key"]
    (leaky.role / "files" / "encoded").write_bytes(base64.b64encode(f"x:{token}".encode()))
    (leaky.role / "files" / "hexadecimal").write_text(token.encode().hex())
    (leaky.role / "files" / "der").write_bytes(base64.b64decode("".join(key.split("\n")[1:-2])))
    # Beyond the part of a large file that is copied for the search.
    (leaky.role / "files" / "large").write_bytes(b"." * 300_000 + token.encode() + b"." * 300_000)
    told = ["env", f"PIP_INDEX_URL={INDEX}"]
    toolkit = Toolkit(leaky.root, leaky.toolkit.state, prefix=told)
    answer = leaky.bake(
        KEY_TASK.format(path="/opt/server.pem")
        + """
- name: Write what no image may hold
  ansible.builtin.shell: |
    mkdir -p ~/.ssh /etc/credstore ~/.aws
    echo 'ssh-ed25519 AAAA me' > ~/.ssh/authorized_keys
    echo 'ls' > ~/.python_history
    echo 'key' > /etc/ssh_host; mkdir -p /etc/ssh; echo k > /etc/ssh/ssh_host_rsa_key
    echo 'value' > /etc/credstore/database_password
    echo '[default]' > ~/.aws/credentials
    mkdir -p /etc/apt/auth.conf.d; echo 'machine x' > /etc/apt/auth.conf.d/x
    echo seed > /var/lib/systemd/credential.secret
    printf '[global]\\nindex-url = %s\\n' INDEX > /etc/pip.conf
    echo 0123456789abcdef0123456789abcdef > /var/lib/dbus/machine-id || true
- name: Copy what no image may hold
  ansible.builtin.copy: {src: '{{ item }}', dest: '/opt/{{ item }}', mode: '0644'}
  loop: [encoded, hexadecimal, der, large]
""".replace("INDEX", INDEX),
        toolkit=toolkit,
    )
    refused(
        answer,
        "opt/server.pem: private-key",
        "root/.ssh/authorized_keys: authorized-keys",
        "root/.python_history: shell-history",
        "etc/ssh/ssh_host_rsa_key: ssh-host-key",
        "etc/credstore/database_password: credential-store",
        "root/.aws/credentials: package-credentials",
        "etc/apt/auth.conf.d/x: package-credentials",
        "var/lib/systemd/credential.secret: random-seed",
        "etc/pip.conf: build-host",
        f"opt/hexadecimal: known-secret (token_one of {ENVIRONMENT}.leaky, hex)",
        f"opt/encoded: known-secret (token_one of {ENVIRONMENT}.leaky, base64)",
        f"opt/der: known-secret (tls_one of {ENVIRONMENT}.leaky, key)",
        f"opt/large: known-secret (token_one of {ENVIRONMENT}.leaky, raw)",
    )
    assert token not in answer.stderr
    assert leaky.layers() == []
    for name in ("encoded", "hexadecimal", "der", "large"):
        (leaky.role / "files" / name).unlink()


@pytest.mark.parametrize("path", ["/srv/key.pem", "/tmp/key.pem", "/dev/shm/key.pem"])
def test_a_key_that_a_later_task_removes_is_found(leaky, path):
    """Also with errors ignored, on a disk or in memory."""
    answer = leaky.bake(
        KEY_TASK.format(path=path)
        + f"""
- name: Remove the key
  ansible.builtin.file: {{path: {path}, state: absent}}
  ignore_errors: true
"""
    )
    refused(answer, f"{path[1:]}: private-key (PRIVATE KEY, while the role was applied)")
    assert leaky.layers() == []


def test_an_exception_counts_for_what_it_names(leaky):
    removed = (
        KEY_TASK.format(path="/opt/test.pem")
        + "\n- name: Remove the key\n  ansible.builtin.file: {path: /opt/test.pem, state: absent}\n"
    )
    entry = "exceptions:\n- {path: opt/*.pem, rule: private-key, reason: a key of the tests%s}\n"
    during = entry % ", allowed: during-bake"
    refused(leaky.bake(KEY_TASK.format(path="/opt/test.pem"), exceptions=during), "opt/test.pem")
    assert leaky.layers() == []
    assert leaky.bake(removed, exceptions=during).exit_code == 0
    assert leaky.bake(KEY_TASK.format(path="/opt/test.pem"), exceptions=entry % "").exit_code == 0
    assert len(leaky.layers()) == 2


KEEP_ENVIRONMENT = """
- name: Keep the environment
  ansible.builtin.shell: |
    env > /opt/environment
    cat /proc/1/environ /proc/self/environ >> /opt/environment
"""
OPERATORS = (
    f"CANARY={CANARY}", f"PIP_INDEX_URL=https://{CANARY}.invalid/", f"HTTP_X={CANARY}",
)  # fmt: skip


def test_nothing_of_the_operators_environment_is_sealed(leaky):
    """A canary in the environment of the bake, and the environment as the role sees it."""
    toolkit = Toolkit(leaky.root, leaky.toolkit.state, prefix=["env", *OPERATORS])
    answer = leaky.bake(KEEP_ENVIRONMENT, toolkit=toolkit)
    assert answer.exit_code == 0, answer.stderr
    assert leaky.sealed(b"PATH=")
    assert not leaky.sealed(CANARY.encode())


NO_ALLOW_LIST = (
    Edit(
        "toolkit/shell.py",
        "return {**MINIMAL_ENVIRONMENT, **extra}",
        "return {**os.environ, **MINIMAL_ENVIRONMENT, **extra}",
    ),
    Edit(
        "toolkit/machines/enter.py",
        "INSIDE_ENVIRONMENT = {**shell.MINIMAL_ENVIRONMENT,",
        "INSIDE_ENVIRONMENT = {**shell.environment(),",
    ),
)
NO_GATE = Edit("toolkit/bake/leak.py", "        if kept:\n", "        if not self:\n")


def test_without_the_allow_list_the_environment_is_sealed(leaky, tmp_path):
    """Sabotage: what is checked above is not so when children inherit the environment.

    Of a package index, the gate would see it even so.
    """
    program = sabotaged(tmp_path, *NO_ALLOW_LIST)
    toolkit = Toolkit(
        leaky.root, leaky.toolkit.state, prefix=["env", OPERATORS[0]], program=program
    )
    answer = leaky.bake(KEEP_ENVIRONMENT + "# Without an allow-list.\n", toolkit=toolkit)
    assert answer.exit_code == 0, answer.stderr
    assert leaky.sealed(CANARY.encode())


def test_without_the_gate_a_key_is_sealed(leaky, tmp_path):
    """Sabotage: it is the gate that refuses, and nothing else would."""
    toolkit = Toolkit(leaky.root, leaky.toolkit.state, program=sabotaged(tmp_path, NO_GATE))
    token = leaky.secret("token_one")["value"]
    (leaky.role / "files" / "token").write_text(token)
    answer = leaky.bake(
        KEY_TASK.format(path="/opt/server.pem")
        + "\n- name: Copy a token\n"
        + "  ansible.builtin.copy: {src: token, dest: /opt/token, mode: '0644'}\n",
        toolkit=toolkit,
    )
    with pytest.raises(AssertionError):
        refused(answer, "opt/server.pem: private-key")
    assert answer.exit_code == 0, answer.stderr
    assert leaky.sealed(b"-----BEGIN PRIVATE KEY-----")
    assert leaky.sealed(token.encode())
