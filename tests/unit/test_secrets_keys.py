"""Where vault passwords come from."""

import ipaddress
import stat
import sys
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.project.model import Environment, KeySetting
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
