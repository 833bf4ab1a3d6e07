"""Ctrl-C, and programs that a killed toolkit leaves running.

Ctrl-C once stops at the next safe point, twice stops now; either way the operator is told how to go
on, and can. A smoke test or a hook that was running ends before anybody else acts.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.command import Running
from tests.support.siege import Siege, besieged, outcomes
from tests.support.site import EchoSite
from tests.support.traces import namespaces
from toolkit.errors import EXIT_INTERRUPTED

pytestmark = pytest.mark.host

PATIENCE_S = 60.0
STOP_NOW_S = 20.0
"""Far less than what was running would have taken."""

SLEEP = "sleep 271"

SLOW_TEST = """
from pathlib import Path

def test_that_may_be_slow(host):
    if Path({flag!r}).exists():
        host.run("{sleep}; touch /run/late")
"""

PLAYBOOK = """
- name: A hook that may be slow
  hosts: all
  gather_facts: false
  tasks:
    - name: Wait
      ansible.builtin.command: {argv}
      changed_when: false
"""


@pytest.fixture(scope="module")
def siege(
    new_echo: Callable[..., EchoSite], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Siege]:
    with besieged(new_echo(), tmp_path_factory.mktemp("load")) as siege:
        flag = siege.site.directory / "slow"
        test = SLOW_TEST.format(flag=str(flag), sleep=SLEEP)
        root = siege.site.project.root
        (root / "roles" / "echo" / "smoke" / "test_slow.py").write_text(test)
        siege.define("echo", strategy="blue-green")
        yield siege


def sleepers(siege: Siege) -> list[str]:
    """Return what sleeps inside a machine, whichever control group it is in."""
    names = namespaces(siege.site.state_id)
    spaces = {Path(f"/run/netns/{name}").stat().st_ino for name in names}
    wanted, found = SLEEP.replace(" ", "\0").encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            is_inside = (entry / "ns" / "net").stat().st_ino in spaces
        except OSError:
            continue
        if is_inside and words == wanted + b"\0":
            found.append(entry.name)
    return found


@contextmanager
def slow(siege: Siege, what: str) -> Iterator[None]:
    """Make smoke tests, or a hook, last for minutes."""
    flag: Path = siege.site.directory / "slow"
    playbook = siege.site.project.root / "playbooks" / "wait.yml"
    try:
        if what == "smoke":
            flag.touch()
        else:
            playbook.write_text(PLAYBOOK.format(argv=SLEEP))
            siege.set_hooks(before="wait.yml")
        yield
    finally:
        flag.unlink(missing_ok=True)
        if what == "hook":
            playbook.write_text(PLAYBOOK.format(argv="/bin/true"))


def until(is_so: Callable[[], object], running: Running) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert running.is_running, running.stderr
        assert time.monotonic() < deadline, running.stderr
        time.sleep(0.02)


@contextmanager
def started(siege: Siege) -> Iterator[Running]:
    """Start a roll; end it if the test does not."""
    siege.settle()
    words = ("roll", siege.site.environment, "echo", "--image", siege.other())
    running = siege.site.toolkit.start(*words)
    try:
        yield running
    finally:
        running.send(signal.SIGKILL)
        running.wait()


def take_up(siege: Siege, recovery: str) -> None:
    """Resume or abort, and look whether everything is as it should be."""
    before, target = siege.current(), siege.other()
    answer = siege.site.toolkit.run(recovery, siege.site.environment)
    expected = {"resume": ["rolled"], "abort": ["discarded"]}[recovery]
    assert outcomes(answer) == expected, answer
    assert sleepers(siege) == []
    siege.check_settled(image=target if recovery == "resume" else before)
    siege.set_hooks()


@pytest.mark.parametrize("recovery", ["resume", "abort"])
def test_once_stops_at_the_next_safe_point(recovery, siege):
    siege.check_load()
    with siege.watched() as watch:
        with started(siege) as running:
            until(lambda: '"started", "step": "smoke' in running.stderr, running)
            running.send(signal.SIGINT)
            answer = running.wait()
        assert answer.exit_code == EXIT_INTERRUPTED
        # The step that was under way was finished, and no other begun.
        assert '"finished", "step": "smoke' in answer.stderr
        assert '"started", "step": "register' not in answer.stderr
        assert "once more stops now" in answer.stderr
        for word in ("resume", "abort"):
            assert f"'toolkit {word} {siege.site.environment}'" in answer.error["hint"]
        take_up(siege, recovery)
    siege.check_capacity(watch)
    siege.check_load()


@pytest.mark.parametrize("recovery", ["resume", "abort"])
@pytest.mark.parametrize("what", ["smoke", "hook"])
def test_twice_stops_now(what, recovery, siege):
    siege.check_load()
    with siege.watched() as watch:
        with slow(siege, what), started(siege) as running:
            until(lambda: sleepers(siege), running)
            running.send(signal.SIGINT)
            until(lambda: "once more stops now" in running.stderr, running)
            began = time.monotonic()
            running.send(signal.SIGINT)
            answer = running.wait()
        assert time.monotonic() - began < STOP_NOW_S
        assert answer.exit_code == EXIT_INTERRUPTED
        assert f"'toolkit resume {siege.site.environment}'" in answer.stderr
        assert sleepers(siege) == []
        take_up(siege, recovery)
    siege.check_capacity(watch)
    siege.check_load()


@pytest.mark.parametrize("recovery", ["resume", "abort"])
@pytest.mark.parametrize("what", ["smoke", "hook"])
def test_what_a_killed_toolkit_left_running_ends_with_the_recovery(what, recovery, siege):
    siege.check_load()
    with siege.watched() as watch:
        with slow(siege, what), started(siege) as running:
            until(lambda: sleepers(siege), running)
            running.send(signal.SIGKILL)
            assert running.wait().exit_code == -signal.SIGKILL
            assert sleepers(siege), "a test that cannot fail"
        take_up(siege, recovery)
    siege.check_capacity(watch)
    siege.check_load()
