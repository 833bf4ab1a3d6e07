"""Private directories in memory, and files that are replaced together."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import OutsideError
from toolkit.secrets.ram import ram_directory

HOLDER = """
import sys, time
from toolkit.secrets.ram import ram_directory
with ram_directory() as directory:
    (directory / "value").write_text("canary")
    print(directory, flush=True)
    time.sleep(60)
"""


def test_a_directory_is_private_and_gone_afterwards() -> None:
    with ram_directory() as directory:
        assert directory.is_relative_to("/dev/shm")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "deep").mkdir()
        value = directory / "deep" / "value"
        value.write_text("canary")
        kept = value.open("rb")
    assert not directory.exists()
    with kept:
        assert kept.read() == bytes(6)


def test_an_error_inside_wipes_too() -> None:
    with pytest.raises(RuntimeError), ram_directory() as directory:
        raise RuntimeError
    assert not directory.exists()


def test_what_a_killed_process_left_is_wiped_and_what_a_living_one_holds_is_not() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        directory = Path(holder.stdout.readline().strip())
        with ram_directory():
            assert (directory / "value").read_text() == "canary"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert directory.exists()
    with ram_directory():
        assert not directory.exists()


def test_a_disk_is_refused() -> None:
    with pytest.raises(OutsideError, match="not on a RAM file system"), ram_directory(Path("/")):
        pass
