"""The balancer fails in the middle of a roll: a clear end, and the way on puts it right."""

import signal
from collections.abc import Callable

import pytest

from bench.echo import define
from tests.support.breakage import (
    balancer_file,
    balancer_pids,
    eventually,
    gate,
    is_plain,
    kill_balancer,
    send,
    serving,
    settle,
    started,
)
from tests.support.site import EchoSite

pytestmark = pytest.mark.host

CUT_SHORT = "'toolkit resume development' or 'toolkit abort development'"
SOAK = {"soak": {"seconds": 3}}


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    return new_echo("v1", "v2")


def stop(site: EchoSite) -> None:
    for pid in balancer_pids(site):
        send(pid, signal.SIGSTOP)


def go_on(site: EchoSite) -> None:
    for pid in balancer_pids(site):
        send(pid, signal.SIGCONT)


def kill_worker(site: EchoSite) -> None:
    """The master ends as well when a worker was killed."""
    send(balancer_pids(site)[1], signal.SIGKILL)
    eventually(lambda: balancer_pids(site) == [])


def remove_socket(site: EchoSite) -> None:
    balancer_file(site, "admin.sock").unlink()


def nothing(_site: EchoSite) -> None:
    pass


def break_during(site: EchoSite, moment: str, fault: Callable[[EchoSite], None]):
    """Roll to v2 and let a fault happen before the balancer hears of it, or while it is watched."""
    if moment == "watch":
        define(site.project, echo=SOAK)
        running = site.toolkit.start("roll", site.environment, "echo", "--image", image(site))
        eventually(lambda: started(running, "watch"))
        fault(site)
        return running.wait()
    with gate(site, "echo") as closed:
        running = site.toolkit.start("roll", site.environment, "echo", "--image", image(site))
        eventually(closed.waiting)
        fault(site)
        closed.open()
        return running.wait()


def image(site: EchoSite) -> str:
    return site.image("v2", "echo")


exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("moment", "fault", "mend", "way_on"),
    [
        pytest.param("smoke", kill_balancer, nothing, "resume", id="smoke-killed"),
        pytest.param("watch", kill_balancer, nothing, "abort", id="watch-killed", marks=exhaustive),
        pytest.param("watch", kill_worker, nothing, "resume", id="watch-worker-killed"),
        pytest.param("smoke", stop, nothing, "abort", id="smoke-stopped", marks=exhaustive),
        pytest.param("watch", stop, go_on, "abort", id="watch-stopped-for-a-while"),
        pytest.param("watch", stop, nothing, "resume", id="watch-stopped", marks=exhaustive),
        pytest.param("smoke", remove_socket, nothing, "abort", id="smoke-socket-removed"),
        pytest.param(
            "watch", remove_socket, nothing, "resume", id="watch-socket-removed", marks=exhaustive
        ),
    ],
)
def test_a_fault_is_said_and_put_right(site, moment, fault, mend, way_on):
    settle(site, "v1")
    before = observed(site)

    answer = break_during(site, moment, fault)

    assert is_plain(answer, 3)
    assert "haproxy" in answer.error["error"]
    assert CUT_SHORT in answer.error["hint"]
    if mend is nothing:
        # It says what is the matter, and what to do.
        up = "run 'toolkit up" if fault in {kill_balancer, kill_worker} else "'toolkit up' starts"
        refused = site.toolkit.run(way_on, site.environment)
        assert is_plain(refused, 3)
        assert up in refused.error["hint"]
    mend(site)
    up = site.toolkit.run("up", site.environment)
    assert is_plain(up, 1)
    assert "was cut short" in up.error["error"]
    taken_up = site.toolkit.run(way_on, site.environment)
    [result] = taken_up.data

    # It was on its way back when the balancer failed: both ways on lead there, and only an abort
    # is what the operator wanted.
    assert is_plain(taken_up, 5 if way_on == "resume" else 0)
    assert result["outcome"] == "rolled-back"
    assert observed(site) == before
    assert site.get().headers["X-Version"] == "1"


def observed(site: EchoSite) -> tuple:
    """Return what a fault must not change: places, what serves, and which machines there are."""
    snapshots = site.snapshots()
    return snapshots["echo"], snapshots["count_keeper"], serving(site), site.machines()


@pytest.mark.parametrize("moment", [pytest.param("smoke", marks=exhaustive), "watch"])
def test_a_reload_is_no_reason_to_stop(site, moment):
    settle(site, "v1")
    before = site.snapshots()["count_keeper"]
    master, worker = balancer_pids(site)

    def reload(site: EchoSite) -> None:
        send(master, signal.SIGUSR2)
        eventually(lambda: worker not in balancer_pids(site)[1:2])

    answer = break_during(site, moment, reload)

    assert is_plain(answer, 0)
    assert answer.data["outcome"] == "rolled"
    assert serving(site) == answer.data["machines"]
    assert site.snapshots()["count_keeper"] == before
    assert site.get().headers["X-Version"] == "2"


@exhaustive
def test_a_stop_that_ends_in_time_is_no_reason_to_stop(site):
    settle(site, "v1")

    def pause(site: EchoSite) -> None:
        stop(site)
        go_on(site)

    assert break_during(site, "watch", pause).data["outcome"] == "rolled"
