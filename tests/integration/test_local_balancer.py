"""The balancer of an environment whose definition changes while machines serve."""

import ipaddress
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fakes import make_deployment, make_environment, make_project
from toolkit.errors import ConfigurationError
from toolkit.network.namespaces import EnvironmentNetwork
from toolkit.pools.haproxy_config import host_namespace
from toolkit.pools.haproxy_pool import HaproxyPool
from toolkit.pools.local import LocalBalancer

pytestmark = pytest.mark.host

NETWORK = ipaddress.ip_network("10.78.0.0/24")
MACHINES = ("10.78.0.11", "10.78.0.12")
PATIENCE_S = 10.0

Make = Callable[..., LocalBalancer]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen]]:
    """What runs in the machines, which ends with the test."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def network(tmp_path: Path, processes: list[subprocess.Popen]) -> Iterator[EnvironmentNetwork]:
    """Two machines that answer `/healthz` and `/health`, and nothing else."""
    files = tmp_path / "files"
    files.mkdir()
    for name in ("healthz", "health"):
        (files / name).touch()
    network = EnvironmentNetwork(namespace=f"tkt{secrets.token_hex(4)}", network=NETWORK)
    try:
        network.up()
        for number, address in enumerate(MACHINES):
            name = f"{network.namespace}.m{number}"
            network.attach(name, address)
            argv = [sys.executable, "-m", "http.server", "8000", "--directory", str(files)]
            processes.append(
                subprocess.Popen(["ip", "netns", "exec", name, *argv], stderr=subprocess.DEVNULL)
            )
        yield network
    finally:
        network.down()


@pytest.fixture
def make(network: EnvironmentNetwork, tmp_path: Path) -> Iterator[Make]:
    """Return a maker of the same balancer by changed definitions of its roles, `app` alone."""
    made: list[LocalBalancer] = []

    def make_one(ports: Mapping[str, int] = {"app": 8000}, **changes: object) -> LocalBalancer:
        deployment = make_deployment()
        project, environment = make_project(deployment), make_environment(deployment, NETWORK)
        spec = replace(project.roles["app"], **changes)
        roles = {role: replace(spec, name=role, port=port) for role, port in ports.items()}
        deployments = {role: replace(deployment, role=role) for role in ports}
        made.append(
            LocalBalancer(
                replace(project, roles=roles),
                replace(environment, deployments=deployments),
                namespace=network.namespace,
                runtime=tmp_path / "r",
                ram=tmp_path / "ram",
                edge_secrets=dict,
                newest_version=lambda: None,
            )
        )
        return made[-1]

    yield make_one
    made[0].stop()


@pytest.fixture
def pool(make: Make) -> HaproxyPool:
    """The pool of a balancer that runs, with both machines in service."""
    balancer = make()
    balancer.ensure()
    pool = balancer.pools()["app"]
    pool.register(MACHINES)
    pool.await_healthy(MACHINES, deadline_s=PATIENCE_S)
    pool.admit(MACHINES)
    return pool


class Watch:
    """Looks at a pool all the time; has the smallest number of machines that served."""

    def __init__(self, pool: HaproxyPool) -> None:
        self.lowest = len(MACHINES)
        self._pool, self._is_over = pool, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            serving = sum(target.is_serving for target in self._pool.targets())
            self.lowest = min(self.lowest, serving)


def test_check_that_machines_fail_is_refused(make: Make, pool: HaproxyPool, tmp_path: Path) -> None:
    before = (tmp_path / "r" / "haproxy.cfg").read_text()
    with Watch(pool) as watch:
        with pytest.raises(ConfigurationError, match=r"service\.yml: .* L7STS .*404") as caught:
            make(health="/absent").ensure()
        # Longer than the balancer takes to give a machine up.
        time.sleep(2.0)
    assert "roll a version first" in (caught.value.hint or "")
    assert watch.lowest == len(MACHINES)
    assert (tmp_path / "r" / "haproxy.cfg").read_text() == before
    assert not (tmp_path / "probe").exists()
    # It can still be reloaded.
    make(health="/health").ensure()


def test_check_that_machines_pass_is_taken_up(
    make: Make, pool: HaproxyPool, tmp_path: Path
) -> None:
    with Watch(pool) as watch:
        make(health="/health").ensure()
        time.sleep(1.0)
    assert watch.lowest == len(MACHINES)
    assert "uri /health " in (tmp_path / "r" / "haproxy.cfg").read_text()


def test_same_definition_asks_nobody(
    make: Make, pool: HaproxyPool, processes: list[subprocess.Popen]
) -> None:
    processes[0].kill()
    make().ensure()
    # The balancer has not found out yet.
    assert [target.is_serving for target in pool.targets()] == [True, True]


def test_machine_that_fails_the_earlier_check_too_keeps_nothing_from_changing(
    make: Make, pool: HaproxyPool, processes: list[subprocess.Popen], tmp_path: Path
) -> None:
    processes[0].kill()
    make(health="/health").ensure()
    assert "uri /health " in (tmp_path / "r" / "haproxy.cfg").read_text()
    assert [target.is_serving for target in pool.targets()] == [False, True]


def test_check_of_a_pool_where_nobody_serves_is_taken_up(make: Make, pool: HaproxyPool) -> None:
    pool.drain(MACHINES)
    make(health="/absent").ensure()
    assert not any(target.is_serving for target in pool.targets())


def test_port_by_which_others_know_machines_does_not_change(make: Make, pool: HaproxyPool) -> None:
    with Watch(pool) as watch:
        with pytest.raises(ConfigurationError, match=r"roles\.app\.port: .*10\.78\.0\.1:8000"):
            make({"app": 8001}).ensure()
        time.sleep(1.0)
    assert watch.lowest == len(MACHINES)
    pool.deregister(MACHINES)
    make({"app": 8001}).ensure()


def test_machine_gets_no_place_at_another_port_than_those_beside_it(
    make: Make, pool: HaproxyPool
) -> None:
    changed = make({"app": 8001}).pools()["app"]
    before = pool.snapshot()
    with pytest.raises(ConfigurationError, match=r"have port 8000, and .* says 8001") as caught:
        changed.register(["10.78.0.13"])
    assert "earlier port" in (caught.value.hint or "")
    changed.register(MACHINES)
    assert pool.snapshot() == before


def test_each_role_is_asked_whatever_became_of_another(
    make: Make, network: EnvironmentNetwork, processes: list[subprocess.Popen], tmp_path: Path
) -> None:
    """The machine of the first has ended meanwhile; that of the second serves."""
    first, second = MACHINES
    argv = [sys.executable, "-m", "http.server", "8001", "--directory", str(tmp_path / "files")]
    inside = ["ip", "netns", "exec", f"{network.namespace}.m1"]
    processes.append(subprocess.Popen([*inside, *argv], stderr=subprocess.DEVNULL))
    ports = {"app": 8000, "other": 8001}
    balancer = make(ports)
    balancer.ensure()
    pools = balancer.pools()
    for pool, address in ((pools["app"], first), (pools["other"], second)):
        pool.register([address])
        pool.await_healthy([address], deadline_s=PATIENCE_S)
        pool.admit([address])
    processes[0].kill()
    with pytest.raises(ConfigurationError, match=second):
        make(ports, health="/absent").ensure()
    assert [target.is_serving for target in pools["other"].targets()] == [True]


def test_balancer_can_be_reloaded_by_hand_after_a_refusal(
    make: Make, pool: HaproxyPool, network: EnvironmentNetwork
) -> None:
    with pytest.raises(ConfigurationError):
        make(health="/absent").ensure()
    assert Path("/run/netns", host_namespace(network.namespace)).exists()


def test_check_that_counts_is_the_one_that_is_made(make: Make, pool: HaproxyPool) -> None:
    """`service.yml` may say another by now, which is in force only after `up`."""
    changed = make(protocol="tcp").pools()["app"]
    changed.await_healthy(MACHINES, deadline_s=PATIENCE_S)
