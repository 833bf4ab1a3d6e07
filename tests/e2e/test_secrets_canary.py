"""Sixty-four values of every shape go through an environment's life and are found nowhere else.

They are in the vaults before anything is baked. The search is this test's own, by `find` and
`grep`, and shares no code with the toolkit's. Values below six bytes are not used: anything holds
them by chance. Of a value of several lines the longest line is searched for. A file that nobody
has changed since the values were made cannot hold one, so it is not read.
"""

import base64
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from bench.lab import copy_layers
from examples.command import Answer, Toolkit
from examples.versions import DOES_NOT_START
from tests.support.site import Site
from toolkit.project.load import load_environment, load_project
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.vaults import Vaults
from toolkit.state import State

pytestmark = pytest.mark.host

NOISY = ("env", "ANSIBLE_DEBUG=1", "ANSIBLE_VERBOSITY=4", "PYTHONDEVMODE=1")
VALUES = 64
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/log", str(Path.home()))
"""Where anything on this host may have put something, beside the site's own directory."""

GIVEN = "/run/host/credentials/"
"""Where a machine has what it was given; its service's own copies hold only what that declares."""

GROUP_FILES = 400
PATIENCE_S = 120.0
CLOCK_SLACK_S = 0.1
"""The kernel stamps files with a clock that is up to one tick (10 ms) late."""


def make_values() -> dict[str, bytes]:
    shapes = [
        lambda text: f"!{text[:4]}~".encode(),
        lambda text: f"line one\n{text}\n\tline 'three'\n".encode(),
        lambda text: f"\"{text}' \\ $({text[:5]}) ; %s".encode(),
        lambda text: f"größe-{text}-ключ".encode(),
        lambda text: b"\x00\xff\xfe" + text.encode() + b"\x80" + secrets.token_bytes(40),
        lambda text: text.encode(),
        lambda text: (text * 200).encode(),
        lambda text: f"https://user:{text}@host/?a=b&c=d".encode(),
    ]
    return {
        f"canary_{number}": shapes[number % len(shapes)](secrets.token_urlsafe(12))
        for number in range(VALUES)
    }


def spellings(value: bytes) -> set[bytes]:
    found = {max(value.split(b"\n"), key=len)}
    if len(value) < 8:
        return found
    found |= {value[:24].hex().encode(), value[:24].hex().upper().encode(), quote(value).encode()}
    for shift in range(3):
        digits = base64.b64encode(b"\0" * shift + value)[4 if shift else 0 :]
        found.add(digits[:40].rstrip(b"=")[:-1])
    return found


@dataclass(frozen=True)
class Search:
    """Looks for values in files."""

    patterns: frozenset[bytes]

    def hits(self, *places: Path | str, since: float, inside: int | None = None) -> set[Path]:
        """Return the files that hold a value.

        Args:
            places: Files and directories.
            since: Files that did not change after this are not read; seconds since the epoch.
            inside: Process id of a machine's init, whose places these are; else this host's.
        """
        enter = ["nsenter", "--target", str(inside), "--all", "--"] if inside else []
        skipped = ["(", "-path", "/proc", "-o", "-path", "/sys", ")", "-prune", "-o"]
        wanted = ["-type", "f", "-newerct", f"@{since:.3f}", "-printf", r"%D:%i:%p\0"]
        listing = self._run([*enter, "find", *map(str, places), *skipped, *wanted])
        found = dict(self._inode_and_path(line) for line in listing.split(b"\0")[:-1])
        paths = list(found.values())
        hits = b"".join(
            self._run(
                [*enter, "grep", "-laFsZ", "-f", "-", "--", *group],
                stdin=b"\n".join(sorted(self.patterns)) + b"\n",
            )
            for group in (paths[at : at + GROUP_FILES] for at in range(0, len(paths), GROUP_FILES))
        )
        return {Path(os.fsdecode(name)) for name in hits.split(b"\0") if name}

    def is_in(self, texts: Iterable[bytes]) -> bool:
        joined = b"\0".join(texts)
        return any(pattern in joined for pattern in self.patterns)

    @staticmethod
    def _inode_and_path(line: bytes) -> tuple[bytes, bytes]:
        device, inode, path = line.split(b":", 2)
        return device + b":" + inode, path

    @staticmethod
    def _run(argv: Sequence[str | bytes], stdin: bytes = b"") -> bytes:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        # Files come and go meanwhile, so that neither exit code says anything.
        return subprocess.run(
            argv, input=stdin, env=environment, capture_output=True, check=False
        ).stdout


@dataclass(frozen=True)
class Machine:
    name: str
    role: str
    pid: int


class Watch:
    """Keeps arguments and environment of every process on the host, those of machines too."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        known: set[str] = set()
        while not self._done.wait(0.01):
            present = {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}
            # Twice, since a process is a copy of its parent before it becomes a program.
            for name in present:
                for file in ("cmdline", "environ") if f"{name}+" not in known else ():
                    try:
                        self.seen.add(Path(f"/proc/{name}/{file}").read_bytes())
                    except OSError:
                        continue
                known.add(f"{name}+" if name in known else name)


class Planted:
    """A site whose vault of `app` holds the values; nothing is baked or started yet."""

    def __init__(self, site: Site, values: dict[str, bytes], since: float) -> None:
        self.site = site
        self.values = values
        self.search = Search(frozenset().union(*map(spellings, values.values())))
        self.since = self._looked = since
        self._seen: set[Machine] = set()
        self._outputs: list[bytes] = []
        declared = site.project.root / "roles/app/meta/secrets.yml"
        lines = [f"  - {{name: {name}, kind: file, description: x}}\n" for name in values]
        declared.write_text(declared.read_text() + "".join(lines))
        site.project.commit("Declare what is looked for")
        site.toolkit.result("secrets", "init", site.environment)
        environment = load_environment(load_project(site.project.root), site.environment)
        vaults = Vaults(environment, KeyRing(environment, State(site.state)))
        document = vaults.read("app")
        entries = {name: Entry(name, 1, 1.7e9, {"value": value}) for name, value in values.items()}
        vaults.write([Document(site.environment, "app", {**document.entries, **entries})])

    def run(self, *words: str | Path, code: int = 0, failpoint: str = "") -> dict:
        """Run a command as loudly as it goes, then look everywhere."""
        prefix = [*NOISY, *([f"TOOLKIT_FAILPOINT={failpoint}"] if failpoint else [])]
        tool = Toolkit(self.site.project.root, self.site.state, prefix=prefix)
        answer = tool.run("--debug", *words)
        assert answer.exit_code == code, (words, answer.stderr[-2000:])
        self._look(answer)
        return answer.data if code == 0 else {}

    def kill(self, *words: str | Path, when: str) -> None:
        """Kill a command as soon as it says something, then look everywhere."""
        tool = Toolkit(self.site.project.root, self.site.state, prefix=NOISY)
        running = tool.start("--debug", *words)
        deadline = time.monotonic() + PATIENCE_S
        while when not in running.stderr and running.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send(signal.SIGKILL)
        answer = running.wait()
        assert answer.exit_code == -signal.SIGKILL, (words, answer.stderr[-2000:])
        self._look(answer)

    def misplaced(self, since: float, machines: Iterable[Machine]) -> set[str]:
        """Return where a value is that may not be there: on this host, and inside of machines.

        Args:
            since: What did not change on this host after this is not read.
            machines: What they wrote is read whole.
        """
        found = {str(path) for path in self.search.hits(self.site.directory, *PLACES, since=since)}
        for machine in machines:
            allowed = self.given if machine.role == "app" else set()
            found |= {f"{machine.name}:{path}" for path in self.held(machine) - allowed}
        return found

    def held(self, machine: Machine) -> set[str]:
        """Return the files of a machine that hold a value."""
        return set(map(str, self.search.hits("/", since=self.since, inside=machine.pid)))

    def machines(self) -> set[Machine]:
        """Return what runs."""
        if not (self.site.state / "ledger.db").exists():
            return set()
        with self.site.opened() as opened:
            pids = {one: opened.provider.init_pid(one.name) for one in opened.provider.machines()}
        return {Machine(one.name, one.role, pid) for one, pid in pids.items() if pid is not None}

    @property
    def given(self) -> set[str]:
        return {GIVEN + name for name in self.values}

    def _look(self, answer: Answer) -> None:
        self._outputs.append((answer.stdout + answer.stderr).encode())
        assert not self.search.is_in(self._outputs)
        since, self._looked = self._looked, time.time() - CLOCK_SLACK_S
        machines = self.machines()
        # What has been looked at is looked at again in the end.
        assert self.misplaced(since, machines - self._seen) == set()
        self._seen |= machines


@pytest.fixture(scope="module")
def planted(new_site, baked):
    site = new_site()
    # Layers below the application's; that one is baked here, with the values in the vault.
    for version in ("v1", "v2"):
        baked.bake(version)
    copy_layers(baked.store, site.state / "store", without=("app",))
    since = time.time() - CLOCK_SLACK_S
    return Planted(site, make_values(), since)


def test_no_value_is_anywhere_but_with_the_machines_that_may_know_it(planted):
    env, site = planted.site.environment, planted.site
    app = ("roll", env, "app", "--image")
    rotate = ("secrets", "rotate", env, "database_password")
    with Watch() as watch:
        first = planted.run("bake", "--ref", "v1")
        planted.kill("bake", "--ref", "v2", when="ansible: ")
        second = planted.run("bake", "--ref", "v2")
        planted.run("up", env, code=-9, failpoint="up.balancer.acted")
        planted.run("up", env)
        planted.run("roll", env, "--release", first["release"])
        planted.run(*app, second["images"]["app"], code=-9, failpoint="roll.launch.acted")
        planted.run("resume", env)
        planted.run(*app, site.image(DOES_NOT_START, "app"), code=4)
        planted.run(*rotate, code=-9, failpoint="rotate.renew.acted")
        planted.run(*rotate)
        planted.kill("secrets", "audit", env, when="search for every secret")
        audit = planted.run("secrets", "audit", env)
    machines = planted.machines()
    assert planted.misplaced(planted.since, machines) == set()
    assert sorted(one.role for one in machines) == ["app", "app", "database", "web", "web"]
    for one in machines:
        assert one.role != "app" or planted.held(one) == planted.given
    assert len(watch.seen) > 50
    assert not planted.search.is_in(watch.seen)
    cells = [one for one in audit["cells"] if one["secret"] in planted.values]
    assert {(one["role"], one["state"]) for one in cells} == {
        ("app", "right"), ("web", "absent"), ("database", "absent"), ("balancer", "absent"),
    }  # fmt: skip


def test_a_value_that_lies_about_is_found(planted):
    """The same search as above, after one value was put wherever it may not be."""
    began = time.time() - CLOCK_SLACK_S
    name = f"planted-{secrets.token_hex(4)}"
    machine = next(one for one in planted.machines() if one.role == "web")
    inside = Path(f"/proc/{machine.pid}/root/var")
    files = [Path(place) / name for place in (*PLACES, planted.site.state, inside)]
    try:
        for file in files:
            file.write_bytes(b"x" + min(planted.search.patterns))
        expected = {str(file) for file in files[:-1]} | {f"{machine.name}:/var/{name}"}
        assert planted.misplaced(began, [machine]) == expected
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    assert planted.misplaced(began, [machine]) == set()


def test_the_search_finds_every_spelling(planted, tmp_path):
    """What it is there to see, one after the other, and in a process."""
    assert len(planted.values) >= VALUES
    files = {}
    for number, pattern in enumerate(sorted(planted.search.patterns)):
        files[tmp_path / f"file-{number}"] = pattern
        (tmp_path / f"file-{number}").write_bytes(b"\0\n x" + pattern + b"y")
        assert planted.search.is_in([b"\0\n x" + pattern + b"y"])
    (tmp_path / "other").write_bytes(b"nothing")
    assert planted.search.hits(tmp_path, since=planted.since) == set(files)
    assert not planted.search.hits(tmp_path, since=time.time() + 3600.0)
    with Watch() as watch:
        subprocess.run(["sleep", "0.5"], env={"V": "canary-in-environment"}, check=True)
    assert any(b"canary-in-environment" in text for text in watch.seen)
