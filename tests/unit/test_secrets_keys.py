"""Where vault passwords come from."""

import errno
import ipaddress
import secrets
import stat
import sys
from pathlib import Path

import pytest

from tests.support.keyring import kept_in_kernel
from toolkit.errors import ConfigurationError, OutsideError
from toolkit.project.load import load_environment, load_project
from toolkit.project.model import Environment, KeySetting
from toolkit.secrets import kernel_keyring
from toolkit.secrets.keys import KeyRing, MissingKey
from toolkit.state import State

CANARY = "canary-5d0c9be1-and-long-enough-for-128-bits"


def ring(root: Path, setting: KeySetting | None = None, name: str = "production") -> KeyRing:
    environment = Environment(
        name=name,
        directory=root / "inventories" / name,
        network=ipaddress.IPv4Network("10.90.0.0/24"),
        keys=setting or KeySetting(None, None),
        deployments={},
    )
    return KeyRing(environment, State(root / "state"))


def command(root: Path, code: str) -> KeySetting:
    script = root / "keys.py"
    script.write_text(code)
    return KeySetting(None, (sys.executable, str(script)))


def test_a_password_is_made_once_and_private(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    assert keys.make_password("web")
    first = keys.password("web")
    assert not keys.make_password("web")
    assert keys.password("web") == first
    assert len(first.reveal()) == 43
    assert first.name == "production.web"
    path = tmp_path / "state" / "keys" / "production" / "web.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_every_environment_and_role_has_another(tmp_path: Path) -> None:
    seen = set()
    for environment in ("a", "b"):
        keys = ring(tmp_path, KeySetting(tmp_path / "elsewhere", None), environment)
        for role in ("web", "app"):
            keys.make_password(role)
            seen.add(keys.password(role).reveal())
    assert len(seen) == 4
    assert (tmp_path / "elsewhere" / "b" / "app.key").exists()


def test_a_missing_password_names_whose_it_is(tmp_path: Path) -> None:
    with pytest.raises(MissingKey, match=r"production\.web") as caught:
        ring(tmp_path).password("web")
    assert caught.value.exit_code == 2
    assert caught.value.hint and "secrets init production" in caught.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_password_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    keys = ring(tmp_path)
    keys.make_password("web")
    keys.path("web").chmod(mode)
    with pytest.raises(ConfigurationError, match="others than its owner"):
        keys.password("web")


@pytest.mark.parametrize("content", [b"short", b"", b"a" * 30 + b"\n" + b"b" * 30])
def test_a_weak_password_is_refused(tmp_path: Path, content: bytes) -> None:
    keys = ring(tmp_path)
    keys.make_password("web")
    keys.path("web").write_bytes(content)
    with pytest.raises(ConfigurationError, match="128 bits"):
        keys.password("web")


def test_a_command_is_asked_for_one_role_and_sees_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATORS_OWN", CANARY)
    code = "import os, sys; print('.'.join(sys.argv[1:]), '-' * 30, 'OPERATORS_OWN' in os.environ)"
    keys = ring(tmp_path, command(tmp_path, code))
    assert keys.password("web").reveal() == f"production.web {'-' * 30} False".encode()
    assert not keys.is_directory
    with pytest.raises(ConfigurationError, match="come from a command"):
        keys.make_password("web")
    assert keys.authority_key() is None


@pytest.mark.parametrize("ending", ["sys.exit(1)", "print('\\nsecond line')"])
def test_what_a_failing_command_prints_is_not_repeated(tmp_path: Path, ending: str) -> None:
    keys = ring(tmp_path, command(tmp_path, f"import sys; print('{CANARY}'); {ending}"))
    with pytest.raises(ConfigurationError, match=r"production\.web") as caught:
        keys.password("web")
    assert CANARY not in caught.value.message + str(caught.value.hint)


def test_a_failing_command_is_named_with_what_it_complains_of(tmp_path: Path) -> None:
    code = (
        f"import sys; print('{CANARY}'); print('the safe is locked', file=sys.stderr); sys.exit(7)"
    )
    keys = ring(tmp_path, command(tmp_path, code))
    with pytest.raises(
        MissingKey, match=r"exited with 7 .*production\.web: the safe is locked"
    ) as no:
        keys.password("web")
    assert CANARY not in no.value.message
    assert "secrets init" not in (no.value.hint or "")


def test_a_command_that_prints_nothing_is_no_reason_to_make_a_password(tmp_path: Path) -> None:
    with pytest.raises(MissingKey) as caught:
        ring(tmp_path, command(tmp_path, "")).password("web")
    assert "secrets init" not in (caught.value.hint or "")


def test_a_command_without_an_interpreter_says_so(tmp_path: Path) -> None:
    script = tmp_path / "keys"
    script.write_text("echo no shebang\n")
    script.chmod(0o755)
    with pytest.raises(OutsideError, match="could not be started") as caught:
        ring(tmp_path, KeySetting(None, (str(script),))).password("web")
    assert "#!" in (caught.value.hint or "")


def test_a_place_for_passwords_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keys = ring(tmp_path, KeySetting(tmp_path / "file" / "keys", None))
    with pytest.raises(ConfigurationError, match="could not be made") as caught:
        keys.make_password("web")
    assert "keys.directory" in (caught.value.hint or "")


def test_a_keyring_is_asked_for_one_role(tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(8)}"
    keys = ring(tmp_path, KeySetting(None, None, name))
    with pytest.raises(MissingKey, match=rf"{name}:production\.web"):
        keys.password("web")
    assert not keys.is_at_hand("web")
    with kept_in_kernel(f"{name}:production.web", f"{CANARY}\n".encode()):
        assert keys.password("web").reveal() == CANARY.encode()
        assert keys.is_at_hand("web")
        assert not keys.is_at_hand("app")
        assert not ring(tmp_path, KeySetting(None, None, name), "staging").is_at_hand("web")
        with pytest.raises(ConfigurationError, match="come from a keyring"):
            keys.make_password("web")
    assert not keys.is_at_hand("web")
    assert keys.authority_key() is None
    assert not (tmp_path / "state").exists()


def test_a_kernel_without_a_keyring_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose system calls are filtered."""
    monkeypatch.setattr(kernel_keyring, "KEYCTL_NUMBERS", {})
    with pytest.raises(ConfigurationError, match="keyring cannot be used here"):
        kernel_keyring.read("anything")
    monkeypatch.setattr(kernel_keyring, "ABSENT", {*kernel_keyring.ABSENT, errno.ENOSYS})
    assert kernel_keyring.read("anything") is None


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("directory: keys", "keys.directory: must begin with / or ~"),
        ("directory: {project}/keys", "keys.directory: must be outside of the project"),
        ("directory: {project}/../project", "keys.directory: must be outside of the project"),
        ("command: []", "keys.command: "),
        ("keyring: 'a b'", "keys.keyring: "),
        ("keyring: a, directory: /keys", "keys: must have one of"),
        ("command: [a], directory: /keys", "keys: must have one of"),
    ],
)
def test_where_keys_may_be(tmp_path: Path, setting: str, problem: str) -> None:
    root = tmp_path / "project"
    inventory = root / "inventories" / "production" / "toolkit.yml"
    inventory.parent.mkdir(parents=True)
    (root / "roles" / "web").mkdir(parents=True)
    (root / "service.yml").write_text(
        "name: shop\nsource: .\nroles: {web: {layers: [web], port: 80}}\n"
    )
    keys = "{" + setting.format(project=root) + "}"
    inventory.write_text(f"plugin: toolkit\nroles: {{web: {{machines: 1}}}}\nkeys: {keys}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_environment(load_project(root), "production")
    assert f"{inventory}:{problem}" in caught.value.message
