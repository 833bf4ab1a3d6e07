"""What the launcher does for a machine before it becomes systemd-nspawn."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.traces import loop_devices
from toolkit import shell

pytestmark = pytest.mark.host

MACHINES = 4
ROUNDS = 5
"""Without the lock, more than half of all rounds end with a device too many."""
MOUNT = """
import sys
from pathlib import Path
from toolkit.machines.launcher import mount_layer
print("ready", flush=True)
sys.stdin.readline()
mount_layer(Path(sys.argv[1]), Path(sys.argv[2]))
print((Path(sys.argv[2]) / "file").read_text(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    shell.run(
        ["mkfs.erofs", tmp_path / "layer.erofs", tree], env=shell.environment(), timeout_s=60.0
    )
    return tmp_path / "layer.erofs"


def start(layer: Path, directory: Path) -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    private = ["unshare", "--mount", "--propagation", "private"]
    return subprocess.Popen(
        [*private, sys.executable, "-c", MOUNT, layer, directory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def test_machines_that_start_at_once_share_a_loop_device(tmp_path: Path, layer: Path):
    for _ in range(ROUNDS):
        machines = [start(layer, tmp_path / f"mount-{number}") for number in range(MACHINES)]
        try:
            assert [one.stdout.readline() for one in machines] == ["ready\n"] * MACHINES
            for one in machines:
                one.stdin.write("\n")
            assert [one.stdout.readline() for one in machines] == ["content\n"] * MACHINES
            assert loop_devices(tmp_path) == [str(layer)]
        finally:
            for one in machines:
                one.communicate("\n", timeout=30.0)
        assert loop_devices(tmp_path) == []
