"""Vault files stay the property of whoever's project they are in."""

import ipaddress
import os
import stat
import time
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.project.model import BaseSpec, Environment, KeySetting, Project
from toolkit.secrets import vault
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.files import create_exclusively, replace_all
from toolkit.secrets.generate import AuthoritySource
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.vaults import Vaults
from toolkit.state import State

SOMEBODY, GROUP = 61234, 61235


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def test_a_file_keeps_its_mode_and_a_new_one_is_private(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    replace_all({old: b"x", new: b"y"})
    assert (mode(old), mode(new)) == (0o640, 0o600)
    assert (old.read_bytes(), new.read_bytes()) == (b"x", b"y")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner_and_a_new_one_has_its_directorys(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    old, new = project / "old", project / "group_vars" / "web" / "new"
    old.touch()
    os.chown(project, SOMEBODY, GROUP)
    os.chown(old, SOMEBODY + 9, GROUP + 9)
    replace_all({old: b"x", new: b"y"})
    assert owner(old) == (SOMEBODY + 9, GROUP + 9)
    assert owner(new.parent.parent) == owner(new.parent) == owner(new) == (SOMEBODY, GROUP)


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "file" / "second"
    first.write_text("old")
    second.parent.touch()
    with pytest.raises(OutsideError, match="could not be written"):
        replace_all({first: b"new", second: b"new"})
    assert first.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"first", "file"}
    replace_all({first: b"new"})
    assert first.read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_exclusively(path, b"one")
    assert not create_exclusively(path, b"two")
    assert path.read_bytes() == b"one"
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


@pytest.fixture
def vaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vaults:
    """Those of an environment whose password is at hand."""
    monkeypatch.setattr(vault, "encrypt", lambda plaintext, *, password: b"encrypted")
    environment = Environment(
        "test", tmp_path / "test", ipaddress.IPv4Network("10.9.0.0/24"), KeySetting(None, None), {}
    )
    keys = KeyRing(environment, State(tmp_path / "state"))
    keys.make_password("web")
    return Vaults(environment, keys)


def test_a_project_that_cannot_be_written_says_so(vaults: Vaults, tmp_path: Path) -> None:
    document = Document("test", "web", {"token": Entry("token", 1, 0.0, {"value": b"value"})})
    (tmp_path / "test").mkdir()
    (tmp_path / "test/group_vars").touch()
    with pytest.raises(OutsideError, match="could not be written"):
        vaults.write([document])
    (tmp_path / "test/group_vars").unlink()
    vaults.write([document])
    assert vaults.path("web").read_bytes() == b"encrypted"


def test_an_environment_that_cannot_be_opened_says_so(vaults: Vaults) -> None:
    with pytest.raises(ConfigurationError, match="No such file"), vaults.locked():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_authority_belongs_to_whoever_owns_the_project(vaults: Vaults) -> None:
    vaults.environment.directory.mkdir()
    os.chown(vaults.environment.directory, SOMEBODY, GROUP)
    project = Project(
        vaults.environment.directory, "shop", "/source", BaseSpec("bookworm", None, ()), {}
    )
    assert AuthoritySource(project, vaults.environment, vaults, now=time.time()).get()
    made = vaults.environment.directory / "authority.pem"
    assert (owner(made), mode(made)) == ((SOMEBODY, GROUP), 0o644)
