"""The leak gate and vaults that it can or cannot open."""

from pathlib import Path

import pytest

from toolkit.bake import leak
from toolkit.bake.leak import HostConfiguration, LeakGate
from toolkit.errors import BakeFailed, ConfigurationError
from toolkit.project.load import load_environment, load_project
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.vaults import Vaults
from toolkit.state import State

VALUE = b"a-value-of-the-vault-8d2f"


class Place:
    """A project of one role with one secret, and a tree that is to be sealed."""

    def __init__(self, directory: Path) -> None:
        root = directory / "project"
        (root / "roles/app/meta").mkdir(parents=True)
        (root / "inventories/test").mkdir(parents=True)
        (root / "service.yml").write_text(
            "name: shop\nsource: .\nroles: {app: {layers: [app], port: 1, protocol: tcp}}\n"
        )
        (root / "roles/app/meta/secrets.yml").write_text(
            "secrets:\n- {name: api_token, kind: token, description: x}\n"
        )
        (root / "inventories/test/toolkit.yml").write_text(
            "plugin: toolkit\nroles: {app: {machines: 1}}\n"
        )
        self.project, self.state = load_project(root), State(directory / "state")
        self.state.prepare()
        environment = load_environment(self.project, "test")
        self.keys = KeyRing(environment, self.state)
        self.keys.make_password("app")
        self.vaults = Vaults(environment, self.keys)
        entry = Entry("api_token", 1, 0.0, {"value": VALUE})
        self.vaults.write([Document("test", "app", {"api_token": entry})])
        self.tree, self.sealed = directory / "tree", directory / "sealed"
        self.tree.mkdir()
        self.sealed.write_bytes(b"\0" * 64)

    def check(self) -> None:
        LeakGate(self.project, self.state).check("app", tree=self.tree, sealed=self.sealed)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    nothing = HostConfiguration(frozenset(), ())
    monkeypatch.setattr(leak, "host_configuration", lambda: nothing)
    return Place(tmp_path)


def damage(place: Place) -> None:
    path = place.vaults.path("app")
    path.write_bytes(path.read_bytes()[:-81])


def decrypt(place: Place) -> None:
    place.vaults.path("app").write_bytes(b"api_token: plain\n")


def change_the_key(place: Place) -> None:
    place.keys.path("app").unlink()
    place.keys.make_password("app")


def share_the_key(place: Place) -> None:
    place.keys.path("app").chmod(0o640)


def test_a_value_of_a_vault_that_opens_is_looked_for(place: Place) -> None:
    place.check()
    (place.tree / "leaked").write_bytes(VALUE)
    with pytest.raises(BakeFailed, match="leaked: known-secret"):
        place.check()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage, "cut off or damaged"),
        (decrypt, "not encrypted"),
        (change_the_key, "does not open it"),
        (share_the_key, "others than its owner"),
    ],
)
def test_a_vault_that_cannot_be_opened_is_no_reason_to_pass(place: Place, spoil, reason) -> None:
    spoil(place)
    (place.tree / "leaked").write_bytes(VALUE)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        place.check()
    assert "test.app" in caught.value.message


def test_a_vault_without_a_key_is_not_searched_for(place: Place) -> None:
    place.keys.path("app").unlink()
    (place.tree / "leaked").write_bytes(VALUE)
    place.check()
