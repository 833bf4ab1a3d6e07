"""Whatever a command does and however it ends, it leaves nothing behind.

The tests of this module go on from one another, in one environment.
"""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from examples.versions import DOES_NOT_START, git
from tests.support.site import Site
from tests.support.traces import groups, leftovers, processes, store_listing

pytestmark = pytest.mark.host

FAILING_TASK = """
- name: Fail on purpose
  ansible.builtin.command:
    argv: [/bin/sh, -c, "echo the disk is on fire >&2; exit 3"]
  changed_when: false
"""


@pytest.fixture(scope="module")
def site(new_site: Callable[..., Site]) -> Site:
    """Layers are copies: a loop device is then this site's own and nobody else's."""
    site = new_site(is_linked=False)
    site.start("v1")
    return site


def left_by(site: Site, machines: list[str] | None = None) -> list[str]:
    expected = site.machines() if machines is None else machines
    return leftovers(site.state, site.state_id, expected, site.environment)


@pytest.fixture
def broken_role(site: Site) -> Iterator[None]:
    """A task at the end of the application's role fails."""
    tasks = site.project.root / "roles" / "app" / "tasks" / "main.yml"
    tasks.write_text(tasks.read_text() + FAILING_TASK)
    site.project.commit("A role that fails")
    yield
    git(site.project.root, "reset", "--quiet", "--hard", "HEAD~1")


def change_source(site: Site, colour: str) -> None:
    """Commit a change of the application, so that there is a layer to bake."""
    page = site.project.source / "guestbook" / "page.py"
    page.write_text(f"{page.read_text()}\n# {colour}\n")
    git(site.project.source, "commit", "--all", "--quiet", "--message", colour)


def test_a_running_environment_has_only_what_belongs_to_its_machines(site):
    assert len(site.machines()) == 5
    assert left_by(site) == []


def test_something_left_behind_would_be_seen(site):
    machines = site.machines()
    missing = machines.pop()
    found = left_by(site, machines)
    for kind in ("control group", "network namespace", "mount", "file"):
        assert any(line.startswith(kind) and missing in line for line in found), (kind, found)
    found = left_by(site, [])
    for kind in ("process haproxy", "loop device"):
        name = kind.removeprefix("process ")
        assert any(name in line for line in found), (kind, found)


def test_after_a_roll(site):
    assert site.roll("web", "v2").exit_code == 0
    assert left_by(site) == []


def test_after_a_failed_roll(site):
    assert site.roll("app", DOES_NOT_START).exit_code == 4
    assert left_by(site) == []


def test_after_a_failed_bake(site, broken_role):
    before = store_listing(site.state / "store")
    answer = site.toolkit.run("bake", "app")
    assert answer.exit_code == 1
    for part in ("app", "Fail on purpose", "the disk is on fire"):
        assert part in answer.error["error"]
    assert store_listing(site.state / "store") == before
    assert left_by(site) == []


def test_after_a_bake(site):
    change_source(site, "green")
    site.toolkit.result("bake", "app")
    assert left_by(site) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_bake_that_was_ended(number, site):
    before = store_listing(site.state / "store")
    change_source(site, f"ended by {number}")
    running = site.toolkit.start("bake", "app")
    deadline = time.monotonic() + 60.0
    while "ansible: Copy the source" not in running.stderr:
        assert running.is_running, running.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send(number)
    answer = running.wait()
    assert store_listing(site.state / "store") == before
    if number == signal.SIGKILL:
        assert answer.exit_code == -signal.SIGKILL
        assert any(name.startswith("@build-") for name in groups(site.state_id))
        site.toolkit.result("bake", "app")
    else:
        assert answer.exit_code == 130
    assert left_by(site) == []


def test_after_down(site):
    volumes = site.state / "environments" / site.environment / "volumes"
    site.toolkit.result("down", site.environment)
    assert left_by(site, []) == []
    assert processes(site.state, site.state_id) == ([], [])
    assert any(volumes.rglob("PG_VERSION"))


def test_after_down_with_volumes(site):
    volumes = site.state / "environments" / site.environment / "volumes"
    site.toolkit.result("down", site.environment, "--volumes")
    assert not volumes.exists()
    assert left_by(site, []) == []
