"""Commands that look, where nothing can be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.ledger.database import open_ledger

pytestmark = pytest.mark.host

TOOLKIT = (sys.executable, "-c", "from toolkit.cli.main import main; main()")
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


@pytest.fixture
def state(tmp_path: Path) -> Path:
    root = tmp_path / "state"
    root.mkdir(mode=0o700)
    (root / "work").mkdir()
    ledger = open_ledger(root / "ledger.db")
    ledger.append("something", {"reason": "it was time"})
    ledger.close()
    return root


def toolkit(state: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a command in a mount namespace of its own, where the state directory is read-only."""
    command = [*TOOLKIT, "--state", str(state), *words]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(state), *command],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["history"], ["history", "--verify"]])
def test_the_ledger_is_read_where_nothing_can_be_written(state: Path, words: list[str]) -> None:
    answer = toolkit(state, *words)
    assert answer.returncode == 0, answer.stderr
    assert "it was time" in answer.stdout
    assert sorted(path.name for path in state.iterdir()) == ["ledger.db", "work"]


def test_what_must_be_written_says_what_is_wrong(state: Path) -> None:
    answer = toolkit(state, "bake")
    assert answer.returncode in {2, 3}
    assert "Traceback" not in answer.stderr
    assert "hint: " in answer.stderr
