"""Break things from outside while the toolkit is at work."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.echo import define
from examples.command import Answer, Running
from tests.support.site import EchoSite, Site
from tests.support.traces import processes
from toolkit.state import State

DEADLINE_S = 60.0
"""For whatever should happen at once, on a host that is busy with something else."""

PLAIN = {
    "strategy": None,
    "batch": None,
    "canary": None,
    "soak": None,
    "keep_warm_s": None,
    "snapshot": None,
}
"""Settings of a role; what a test does not name is as it was in the beginning."""

GATE = """
import time
from pathlib import Path

GATE = Path({gate!r})


def test_waits_at_the_gate(machine):
    (GATE / machine.name).touch()
    deadline = time.monotonic() + 60.0
    while GATE.exists() and not (GATE / "open").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


def eventually(is_so: Callable[[], object], *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until something has come true."""
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, is_so
        time.sleep(0.02)


@contextmanager
def smoke_test(site: Site, role: str, text: str) -> Iterator[None]:
    """Give a role one more smoke test for a time, before its own."""
    path = site.project.root / "roles" / role / "smoke" / "test_before_all.py"
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def gate(site: Site, role: str) -> Iterator["Gate"]:
    """Have the smoke tests of a role wait until they are let through."""
    directory = site.directory / "gate"
    directory.mkdir()
    try:
        with smoke_test(site, role, GATE.format(gate=str(directory))):
            yield Gate(directory)
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


class Gate:
    """Where smoke tests wait."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def waiting(self) -> list[str]:
        """Return the machines whose smoke tests have got here."""
        return sorted(path.name for path in self._directory.iterdir() if path.name != "open")

    def open(self) -> None:
        (self._directory / "open").touch()


def started(running: Running, effect: str) -> bool:
    """Whether a roll has begun with an effect, as its progress says."""
    assert running.is_running, running.stderr
    return f'"event": "started", "step": "{effect} ' in running.stderr


def is_plain(answer: Answer, code: int) -> bool:
    """Whether a command ended with an exit code and an error that is no traceback."""
    assert answer.exit_code == code, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.exit_code == 0 or answer.error["error"], answer.stderr
    return True


def balancer_pids(site: Site) -> list[int]:
    """Return the process ids of the balancer's master and workers, the master first."""
    balancers, _ = processes(site.state, site.state_id)
    pids = sorted(int(line.split()[0]) for line in balancers)
    master = int(balancer_file(site, "haproxy.pid").read_text().split()[0])
    return sorted(pids, key=lambda pid: pid != master)


def balancer_file(site: Site, name: str) -> Path:
    return State(site.state).runtime / site.environment / "balancer" / name


def kill_balancer(site: Site) -> None:
    pids = balancer_pids(site)
    assert pids
    for pid in pids:
        send(pid, signal.SIGKILL)
    eventually(lambda: not processes(site.state, site.state_id)[0])


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def hang(site: Site, machine: str) -> None:
    """Let the machine of `echo` run on and answer nobody."""
    words = ("systemctl", "kill", "--signal=SIGSTOP", "echo.service")
    assert site.run_inside(machine, *words).exit_code == 0


def places(site: Site, role: str) -> list[str]:
    """Return a pool's places as `ADDRESS:PORT WEIGHT STATE`, whichever slots they are."""
    return sorted(line.partition(" ")[2] for line in site.snapshots()[role].splitlines())


def serving(site: Site, role: str = "echo") -> list[str]:
    """Return the names of the machines that the balancer itself reports as serving."""
    with site.opened() as opened:
        addresses = {one.address for one in opened.pools[role].targets() if one.is_serving}
        return sorted(one.name for one in opened.provider.machines() if one.address in addresses)


def settle(site: EchoSite, version: str, **settings: object) -> None:
    """Have `echo` run a version, whatever an earlier test has left; then it gets these settings."""
    define(site.project, echo={**PLAIN, "timeouts": settings.get("timeouts")})
    wanted = site.image(version, "echo")
    with site.opened() as opened:
        members = opened.ledger.machines(site.environment, "echo")
        unfinished = opened.ledger.unfinished_rolls(site.environment)
    if unfinished:
        site.toolkit.run("up", site.environment, "--repair")
        site.toolkit.run("abort", site.environment)
    if unfinished or {one.image for one in members if one.is_member} != {wanted}:
        site.toolkit.result("roll", site.environment, "echo", "--image", wanted)
    define(site.project, echo=settings)
