"""Sixty-four values of every shape go through an environment's life and are found nowhere else.

The search is this test's own, by `grep -r`, and shares no code with the toolkit's. Values below
six bytes are not used: anything holds them by chance. Of a value of several lines the longest
line is searched for.
"""

import base64
import os
import secrets
import subprocess
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from examples.command import Toolkit
from examples.versions import DOES_NOT_START
from toolkit.project.load import load_environment, load_project
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.vaults import Vaults
from toolkit.state import State

pytestmark = pytest.mark.host

NOISY = ("env", "ANSIBLE_DEBUG=1", "ANSIBLE_VERBOSITY=4", "PYTHONDEVMODE=1")


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
        for number in range(64)
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


def grep(patterns: set[bytes], *places: Path | str) -> set[Path]:
    done = subprocess.run(
        ["grep", "-rlaFsZ", "-D", "skip", "-f", "-", *map(str, places)],
        input=b"\n".join(sorted(patterns)) + b"\n",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    return {Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name}


class Watch:
    """Keeps arguments and environment of every process on the host."""

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


@pytest.fixture(scope="module")
def planted(new_site):
    site = new_site()
    values = make_values()
    declared = site.project.root / "roles/app/meta/secrets.yml"
    lines = [f"  - {{name: {name}, kind: file, description: x}}\n" for name in values]
    declared.write_text(declared.read_text() + "".join(lines))
    site.bake("v1")
    site.bake("v2")
    site.bake(DOES_NOT_START)
    declared.write_text(declared.read_text().partition("  - {name: canary_")[0] + "".join(lines))
    site.toolkit.result("secrets", "init", site.environment)
    state = State(site.state)
    environment = load_environment(load_project(site.project.root), site.environment)
    vaults = Vaults(environment, KeyRing(environment, state))
    document = vaults.read("app")
    entries = {name: Entry(name, 1, 1.7e9, {"value": value}) for name, value in values.items()}
    vaults.write([Document(site.environment, "app", {**document.entries, **entries})])
    return site, set().union(*map(spellings, values.values()))


def test_no_value_is_anywhere_but_with_the_machines_that_may_know_it(planted, tmp_path):
    site, patterns = planted
    env = site.environment
    loud = Toolkit(site.project.root, site.state, prefix=NOISY)
    killed = Toolkit(
        site.project.root, site.state, prefix=[*NOISY, "TOOLKIT_FAILPOINT=roll.launch.acted"]
    )
    image = site.image("v2", "app")
    broken = site.image(DOES_NOT_START, "app")
    first = site.bake("v1")["release"]
    places = [site.directory, "/dev/shm", "/run/toolkit", "/var/log", "/var/tmp"]
    state = State(site.state)

    def is_clean() -> None:
        for path in grep(patterns, *places):
            is_given = path.is_relative_to(state.ram) and any("app" in p for p in path.parts)
            assert is_given, path

    with Watch() as watch:
        for tool, words, code in (
            (loud, ("up", env), 0),
            (loud, ("roll", env, "--release", first), 0),
            (killed, ("roll", env, "app", "--image", image), -9),
            (loud, ("resume", env), 0),
            (loud, ("roll", env, "app", "--image", broken), 4),
            (loud, ("secrets", "rotate", env, "database_password"), 0),
            (loud, ("secrets", "audit", env), 0),
        ):
            answer = tool.run("--debug", *words)
            assert answer.exit_code == code, (words, answer.stderr[-2000:])
            (tmp_path / "output").write_text(answer.stdout + answer.stderr)
            assert not grep(patterns, tmp_path)
            is_clean()
    assert len(watch.seen) > 50
    planted_file = state.root / "planted"
    planted_file.write_bytes(b"x" + sorted(patterns)[0])
    with pytest.raises(AssertionError):
        is_clean()
    planted_file.unlink()
    (tmp_path / "output").write_bytes(b"\0".join(watch.seen))
    assert not grep(patterns, tmp_path)


def test_the_search_finds_every_spelling(planted, tmp_path):
    """What it is there to see, one after the other, and in a process."""
    _, patterns = planted
    assert len(patterns) >= 64
    for pattern in sorted(patterns)[::25]:
        (tmp_path / "file").write_bytes(b"\0\n x" + pattern + b"y")
        assert grep(patterns, tmp_path) == {tmp_path / "file"}
    (tmp_path / "file").write_bytes(b"nothing")
    assert not grep(patterns, tmp_path)
    with Watch() as watch:
        subprocess.run(["sleep", "0.5"], env={"V": "canary-in-environment"}, check=True)
    assert any(b"canary-in-environment" in text for text in watch.seen)
