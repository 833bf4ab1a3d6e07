"""The vaults' part of a rotation."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.project.model import SecretSpec
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.grants import Grant, Matrix
from toolkit.secrets.rotate import Announce, Rotation, begin, finish, need_finished

SPEC = SecretSpec("api_token", "token", "", (), None)
RENEWED = replace(SPEC, renew="/usr/bin/renew")


def matrix_of(spec: SecretSpec) -> Matrix:
    return Matrix(tuple(Grant("test", role, spec) for role in ("web", "app")))


MATRIX = matrix_of(SPEC)
FIRST, SECOND, OTHER = ({"value": value} for value in (b"first", b"second", b"other"))


class MemoryVaults:
    """Vaults of the environment `test` that are nowhere else, and the versions seen."""

    environment: Any = SimpleNamespace(name="test")
    newest: int | None = None

    def __init__(self) -> None:
        entry = Entry("api_token", 1, 0.0, FIRST)
        self.documents = {
            role: Document("test", role, {"api_token": entry}) for role in ("web", "app")
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def read_all(self, roles: Collection[str]) -> Mapping[str, Document | None]:
        return {role: self.documents.get(role) for role in roles}

    def write(self, documents: Collection[Document]) -> None:
        self.documents |= {one.role: one for one in documents}

    def path(self, role: str) -> Path:
        return Path(role, "vault.yml")

    def highest(self, *_name: str) -> int | None:
        return self.newest

    def remember(self, *_name: object) -> None: ...
    def prepare(self) -> None: ...


@pytest.fixture
def vaults() -> Any:
    return MemoryVaults()


def silent(_rotation: Rotation) -> None: ...


def rotate(
    vaults: Any,
    given: Mapping[str, bytes] | None,
    announce: Announce = silent,
    *,
    is_back: bool = False,
    spec: SecretSpec = SPEC,
) -> Rotation:
    return begin(
        matrix_of(spec),
        vaults,
        vaults,
        name="api_token",
        make=lambda _spec: {"value": b"made"},
        given=given,
        is_back=is_back,
        announce=announce,
        now=1.0,
    )


def test_a_value_that_is_given_is_the_new_one(vaults: Any) -> None:
    rotation = rotate(vaults, SECOND)
    assert (rotation.new.parts, rotation.old.parts) == (SECOND, FIRST)
    assert not rotation.is_resumed
    assert rotate(vaults, None).new == rotation.new
    assert rotate(vaults, SECOND).is_resumed, "the same command goes on"


def test_another_value_is_refused_where_services_were_told_the_one_that_is_under_way(
    vaults: Any,
) -> None:
    assert rotate(vaults, None, spec=RENEWED).new.parts == {"value": b"made"}
    before = dict(vaults.documents)
    with pytest.raises(ConfigurationError, match="begun before") as caught:
        rotate(vaults, OTHER, spec=RENEWED)
    assert "without --stdin" in (caught.value.hint or "")
    assert "other" not in caught.value.message.replace("another", "")
    assert vaults.documents == before
    finish(vaults, rotate(vaults, None, spec=RENEWED))
    assert rotate(vaults, OTHER, spec=RENEWED).new.parts == OTHER


@pytest.mark.parametrize("is_back", [False, True])
def test_another_value_takes_the_place_of_one_that_does_not_work(
    vaults: Any, is_back: bool
) -> None:
    """Also where the old one does not work any more: there must be a way on."""
    under_way = rotate(vaults, SECOND)
    if is_back:
        under_way = rotate(vaults, None, is_back=True)
    rotation = rotate(vaults, OTHER)
    assert (rotation.new.parts, rotation.new.version) == (OTHER, under_way.new.version + 1)
    assert rotation.old == under_way.old and rotation.is_resumed
    assert rotate(vaults, OTHER).new == rotation.new, "the same command goes on"
    finish(vaults, rotate(vaults, None))
    for document in vaults.documents.values():
        assert document.entries == {"api_token": rotation.new}


def test_a_rotation_is_announced_once_it_is_possible_and_before_it_is_written(vaults: Any) -> None:
    announced: list[bool] = []

    def announce(rotation: Rotation) -> None:
        assert rotation.is_resumed or vaults.documents == before
        announced.append(rotation.is_resumed)

    before = dict(vaults.documents)
    rotate(vaults, SECOND, announce)
    assert announced == [False]
    with pytest.raises(ConfigurationError, match="has or had that value"):
        rotate(vaults, FIRST, announce)
    assert announced == [False], "one that is refused is not announced"
    rotate(vaults, None, announce)
    assert announced == [False, True]


def test_nothing_is_written_where_the_announcement_fails(vaults: Any) -> None:
    def refuse(_rotation: Rotation) -> None:
        raise OutsideError("the ledger could not be used")

    before = dict(vaults.documents)
    with pytest.raises(OutsideError):
        rotate(vaults, SECOND, refuse)
    assert vaults.documents == before


def test_an_older_vault_is_refused(vaults: Any) -> None:
    vaults.newest = 2
    before = dict(vaults.documents)
    with pytest.raises(ConfigurationError, match="version 1, but version 2 was seen"):
        rotate(vaults, None)
    assert vaults.documents == before


def test_a_value_that_it_has_already_is_refused(vaults: Any) -> None:
    """It could not die: the rotation would never end."""
    before = dict(vaults.documents)
    with pytest.raises(ConfigurationError, match="has or had that value"):
        rotate(vaults, FIRST)
    assert vaults.documents == before


def test_a_rotation_can_go_back(vaults: Any) -> None:
    """The old value is a version of its own, as old as it was, and the other one has to die."""
    rotate(vaults, SECOND)
    rotation = rotate(vaults, None, is_back=True)
    assert (rotation.new.version, rotation.new.created, rotation.new.parts) == (3, 0.0, FIRST)
    assert (rotation.old.version, rotation.old.parts) == (2, SECOND)
    assert rotation.is_resumed and rotation.is_back
    for document in vaults.documents.values():
        assert document.entries == {"api_token": rotation.new, rotation.old.name: rotation.old}
    finish(vaults, rotation)
    for document in vaults.documents.values():
        assert document.entries == {"api_token": rotation.new}
    assert rotate(vaults, OTHER).new.version == 4


@pytest.mark.parametrize("is_back", [True, False])
@pytest.mark.parametrize("written", [("web",), ("app",), ("web", "app")])
def test_going_back_goes_on_however_it_was_interrupted(
    vaults: Any, written: tuple[str, ...], is_back: bool
) -> None:
    """The vaults are several files; --back again must not turn round once more."""
    rotate(vaults, SECOND)
    forward = dict(vaults.documents)
    first = rotate(vaults, None, is_back=True)
    vaults.documents |= {role: forward[role] for role in forward if role not in written}
    again = rotate(vaults, None, is_back=is_back)
    assert (again.new, again.old) == (first.new, first.old)
    assert again.is_back
    for document in vaults.documents.values():
        assert document.entries == {"api_token": again.new, again.old.name: again.old}


def test_going_back_from_nothing_or_to_what_has_to_die_is_refused(vaults: Any) -> None:
    with pytest.raises(ConfigurationError, match="nothing to go back from"):
        rotate(vaults, None, is_back=True)
    rotate(vaults, SECOND)
    with pytest.raises(ConfigurationError, match="could not die") as caught:
        rotate(vaults, FIRST)
    assert "--back" in (caught.value.hint or "")
    rotate(vaults, None, is_back=True)
    with pytest.raises(ConfigurationError, match="could not die") as caught:
        rotate(vaults, SECOND)
    assert "--stdin" in (caught.value.hint or "")


def test_a_secret_whose_rotation_goes_back_is_not_changed_meanwhile(vaults: Any) -> None:
    for is_back in (False, True):
        rotate(vaults, None, is_back=is_back)
        with pytest.raises(ConfigurationError, match="is not finished") as caught:
            need_finished(vaults.documents.values(), "api_token")
        assert "--back" in (caught.value.hint or "")
