"""The disk is full: nothing is half-written, the error is clear, and with space all goes on.

A file system in memory, of a few megabytes, is filled up to a few pages, so that the kernel refuses
the next write, the one after it, and so on through all of them.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.echo import set_note
from tests.support.breakage import is_plain, serving
from tests.support.site import EchoSite
from toolkit.errors import NotFound, OutsideError
from toolkit.ledger.database import open_ledger
from toolkit.ledger.ledger import Ledger, MachineRecord, RollRecord
from toolkit.store.local import LocalStore

pytestmark = pytest.mark.host

PAGE = 4096
RECORD = MachineRecord("m", "test", "app", "sha256:1", None, "10.0.0.2", "new", "i", 0.0)
ROLL = RollRecord("r", "test", "app", "sha256:1", None, None, "running", "me", 0.0, None, {})


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path))

    def fill(self, *, free_pages: int) -> None:
        self.empty()
        available = os.statvfs(self.path).f_bavail - free_pages
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, available * PAGE)

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        run("umount", "--lazy", str(self.path))


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=30)


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    disk = Disk(path, megabytes)
    try:
        yield disk
    finally:
        disk.unmount()


def writes(ledger: Ledger) -> list[Callable[[], None]]:
    """Return what a roll writes, one transaction each."""
    names = [f"m{number}" for number in range(3)]
    return [
        lambda: ledger.set_up("test", is_up=True),
        lambda: ledger.start_roll(replace(ROLL, order={"plan": "x" * 9000})),
        lambda: ledger.append("effect.intent", {"machines": names}, environment="test", roll="r"),
        lambda: ledger.add_machines([replace(RECORD, name=name) for name in names]),
        lambda: ledger.append("effect.done", {"seen": "y" * 9000}, environment="test", roll="r"),
        lambda: ledger.set_standing(names, "member"),
        lambda: ledger.forget_machines(names[:1]),
        lambda: ledger.end_roll("r", "rolled", {"smoke": "z" * 9000}),
    ]


def state_of(ledger: Ledger) -> tuple:
    return (
        [(one["kind"], one["data"]) for one in ledger.entries()],
        ledger.machines("test"),
        [(roll.id, roll.outcome) for roll in ledger.rolls("test")],
        ledger.is_up("test"),
    )


def test_every_write_of_the_ledger(tmp_path):
    # What each write makes of it, where there is space.
    with closing(open_ledger(tmp_path / "model.db")) as ledger:
        expected = [state_of(ledger)]
        for write in writes(ledger):
            write()
            expected.append(state_of(ledger))
    failed_at = set()
    with small_disk(tmp_path / "disk", 2) as disk:
        for free_pages in range(120):
            disk.empty()
            for path in disk.path.glob("ledger.db*"):
                path.unlink()
            disk.fill(free_pages=free_pages)
            done = attempt(disk.path / "ledger.db")
            failed_at.add(done)
            disk.empty()
            with closing(open_ledger(disk.path / "ledger.db")) as ledger:
                # Not half of the write that failed, and all of those before it.
                assert state_of(ledger) == expected[max(done, 0)], free_pages
                assert ledger.first_break() is None
                for write in writes(ledger)[max(done, 0) :]:
                    write()
                assert state_of(ledger) == expected[-1]
                assert ledger.first_break() is None
            if done == len(expected) - 1:
                break
    # It was full for each of them, from opening on.
    assert failed_at == set(range(-1, len(expected)))


def attempt(path: Path) -> int:
    """Write until the disk is full; return how many writes succeeded, -1 if it did not open."""
    done = -1
    try:
        ledger = open_ledger(path)
    except OutsideError as error:
        assert_clear(error)
        return done
    with closing(ledger):
        done = 0
        for write in writes(ledger):
            try:
                write()
            except OutsideError as error:
                assert_clear(error)
                return done
            done += 1
    return done


def assert_clear(error: OutsideError) -> None:
    assert error.message.startswith("the ledger could not be used: ")
    assert error.hint is not None and "full" in error.hint


def manifest(role: str) -> bytes:
    document = {
        "role": role, "layers": [], "source": {"commit": "c", "dirty": False}, "pad": "x" * 20000,
    }  # fmt: skip
    return json.dumps(document).encode()


def test_every_write_of_the_store(tmp_path):
    image = manifest("app")
    failures = 0
    with small_disk(tmp_path / "disk", 2) as disk:
        for free_pages in range(60):
            disk.empty()
            run("rm", "-rf", str(disk.path / "store"), str(disk.path / "work"))
            work = disk.path / "work"
            work.mkdir()
            (work / "layer").write_bytes(b"l" * 5 * PAGE)
            store = LocalStore(disk.path / "store")
            disk.fill(free_pages=free_pages)
            is_full = False
            try:
                put(store, work / "layer", image)
            except OutsideError as error:
                assert "No space left on device" in error.message
                is_full, failures = True, failures + 1
            # Whole or not there, and nothing beside it.
            assert [path for path in disk.path.rglob(".*") if path.is_file()] == []
            check_whole(store, image)
            disk.empty()
            if not is_full:
                break
            if not (work / "layer").exists():
                # It is in the store under its digest; a bake without its key makes it again.
                (work / "layer").write_bytes(b"l" * 5 * PAGE)
            put(store, work / "layer", image)
            assert len(store.images()) == len(store.releases()) == len(store.layers()) == 1
        assert not is_full
    assert failures > 10


def put(store: LocalStore, file: Path, image: bytes) -> None:
    store.refresh(store.new_refresh_mark())
    store.put_layer("base", "key", {"input": "x" * 9000}, ["package"] * 500, file)
    stored = store.put_image(image)
    release = {"service": "s", "commit": "c", "dirty": False, "images": {"app": stored.digest}}
    store.put_release(json.dumps(release | {"pad": "x" * 9000}).encode())


def check_whole(store: LocalStore, image: bytes) -> None:
    for found in store.images():
        assert store.manifest(found.digest) == json.loads(image)
    for release in store.releases():
        assert store.image(release.images["app"])
    sealed = store.find_layer("key")
    if sealed is not None:
        assert store.layer_path(sealed.layer.digest).stat().st_size == 5 * PAGE
    with pytest.raises(NotFound):
        store.release("another")


class FullSite:
    """An environment whose ledger is on a small disk; the store is on the large one."""

    def __init__(self, site: EchoSite) -> None:
        self.site = site
        self.disk = Disk(site.state, 16)
        (site.directory / "store").mkdir()
        (site.state / "store").symlink_to(site.directory / "store")
        site.start("v1")

    def remove(self) -> None:
        self.disk.empty()
        self.site.toolkit.run("down", self.site.environment, "--volumes")
        self.disk.unmount()


@pytest.fixture(scope="module")
def full(new_echo: Callable[..., EchoSite]) -> Iterator[FullSite]:
    full = FullSite(new_echo())
    try:
        yield full
    finally:
        full.remove()


SAMPLES = (0, 30, 75, 130)
"""Free pages, of which a roll takes about 200."""


@pytest.mark.parametrize(
    "free_pages",
    [
        pytest.param(number, marks=() if number in SAMPLES else pytest.mark.exhaustive)
        for number in sorted({*SAMPLES, *range(0, 260, 5)})
    ],
)
def test_a_roll(full, free_pages):
    site = full.site
    set_note(site.project, "echo", f"with {free_pages} pages")
    full.disk.fill(free_pages=free_pages)
    answer = site.roll("echo", "v1")
    full.disk.empty()
    assert len(serving(site)) >= 2
    with site.opened() as opened:
        assert opened.ledger.first_break() is None
        unfinished = opened.ledger.unfinished_rolls(site.environment)
    if answer.exit_code == 0:
        assert not unfinished
        return
    assert is_plain(answer, 3)
    assert "full" in answer.error["error"] + answer.error["hint"]
    # On its way back it ends as the roll would have: a full disk is no version that failed.
    resumed = site.toolkit.run("resume", site.environment)
    results = resumed.data
    is_back = any(result["outcome"] != "rolled" for result in results)
    assert resumed.exit_code in ({3, 5} if is_back else {0}), resumed
    assert [result["outcome"] in {"rolled", "rolled-back", "discarded"} for result in results] == (
        [True] * len(unfinished)
    )
    assert len(serving(site)) == 2
    assert len(site.machines()) == 3
    with site.opened() as opened:
        assert opened.ledger.first_break() is None
        assert opened.ledger.unfinished_rolls(site.environment) == []


def test_the_samples_did_meet_a_full_disk(full):
    """Else the rolls above would prove nothing."""
    set_note(full.site.project, "echo", "the last one")
    full.disk.fill(free_pages=SAMPLES[-1])
    assert full.site.roll("echo", "v1").exit_code == 3
    full.disk.empty()
    full.site.toolkit.result("abort", full.site.environment)
