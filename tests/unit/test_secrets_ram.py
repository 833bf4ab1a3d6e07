"""Private directories in memory, and files that are replaced together."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import OutsideError
from toolkit.secrets.files import create_exclusively, replace_all
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


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "missing" / "second"
    first.write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_all({first: b"new", second: b"new"})
    assert first.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    replace_all({first: b"new"})
    assert first.read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_exclusively(path, b"one")
    assert not create_exclusively(path, b"two")
    assert path.read_bytes() == b"one"
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
