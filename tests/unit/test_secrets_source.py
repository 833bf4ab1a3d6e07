"""What machines get: exactly what is declared, never an older version."""

import json
import stat
import threading
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.model import Secret
from toolkit.project.model import SecretSpec
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.memory import VersionFile
from toolkit.secrets.source import refuse_replay, select
from toolkit.state import State

TLS = SecretSpec("web_tls", "tls", "", (), None)
TOKEN = SecretSpec("token", "token", "", (), None)
DOCUMENT = Document(
    "a",
    "web",
    {
        "web_tls": Entry("web_tls", 3, 0.0, {"certificate": b"crt", "key": b"key"}),
        "token": Entry("token", 1, 0.0, {"value": b"t"}),
        "stray": Entry("stray", 1, 0.0, {"value": b"s"}),
    },
)


def test_exactly_what_is_declared_is_delivered() -> None:
    delivered = select(DOCUMENT, [TLS, TOKEN], "x")
    assert delivered == {
        "web_tls.crt": Secret("web_tls.crt", 3, b"crt"),
        "web_tls.key": Secret("web_tls.key", 3, b"key"),
        "token": Secret("token", 1, b"t"),
    }
    assert set(select(DOCUMENT, [TOKEN], "x")) == {"token"}


@pytest.mark.parametrize(("kind", "command"), [("token", "init a"), ("file", "import a web lost")])
def test_a_missing_value_is_named_with_the_command_that_makes_it(kind: str, command: str) -> None:
    with pytest.raises(ConfigurationError, match=f"lost \\({kind}\\) is missing") as caught:
        select(DOCUMENT, [SecretSpec("lost", kind, "", (), None)], "vault.yml")
    assert caught.value.hint and f"toolkit secrets {command}" in caught.value.hint


def test_an_older_version_than_one_seen_before_is_refused(tmp_path: Path) -> None:
    memory = VersionFile(State(tmp_path))
    refuse_replay(DOCUMENT, [TLS], memory, "x")
    memory.remember("a", "web", "web_tls", 3)
    refuse_replay(DOCUMENT, [TLS], memory, "x")
    memory.remember("a", "web", "web_tls", 4)
    with pytest.raises(ConfigurationError, match="version 3, but version 4 was seen") as caught:
        refuse_replay(DOCUMENT, [TLS, TOKEN], memory, "x")
    assert caught.value.exit_code == 2


def test_the_highest_version_is_kept_for_each_secret(tmp_path: Path) -> None:
    memory = VersionFile(State(tmp_path / "state"))
    assert memory.highest("a", "web", "t") is None
    for version in (2, 5, 3):
        memory.remember("a", "web", "t", version)
    memory.remember("b", "web", "t", 1)
    again = VersionFile(State(tmp_path / "state"))
    assert again.highest("a", "web", "t") == 5
    assert again.highest("b", "web", "t") == 1
    assert again.highest("a", "app", "t") is None
    path = tmp_path / "state" / "secret-versions.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"a/web/t": 5, "b/web/t": 1}


def test_memories_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    def work(role: str) -> None:
        for version in range(1, 15):
            VersionFile(State(tmp_path)).remember("a", role, "t", version)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [VersionFile(State(tmp_path)).highest("a", f"r{n}", "t") for n in range(4)] == [14] * 4


@pytest.mark.parametrize(
    "content",
    ["{", "", "[]", "null", "1", '{"a/web/t": "3"}', '{"a/web/t": null}', '{"a/web/t": true}'],
)
def test_a_damaged_memory_is_an_error_and_not_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret-versions.json").write_text(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        VersionFile(State(tmp_path)).highest("a", "web", "t")
