"""The local provider's balancer: real HAProxy, real namespaces, real machines' servers."""

import contextlib
import http.client
import ipaddress
import itertools
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.contract.pool import PATIENCE_S, PLACES, PoolContract, eventually, serving
from tests.support.fakes import make_deployment, make_environment, make_project
from toolkit.errors import ConfigurationError, DeadlineExceeded, OutsideError
from toolkit.model import TargetState
from toolkit.network.namespaces import EnvironmentNetwork
from toolkit.pools import haproxy_config, haproxy_socket
from toolkit.pools.haproxy import HaproxyProcess
from toolkit.pools.haproxy_config import (
    BalancerConfig,
    PoolConfig,
    Protocol,
    PublicListen,
    UpstreamTls,
)
from toolkit.pools.haproxy_pool import HaproxyPool
from toolkit.pools.haproxy_socket import HaproxySocket
from toolkit.pools.local import LocalBalancer

pytestmark = pytest.mark.host

NETWORK = ipaddress.ip_network("10.77.0.0/24")
MACHINES = ("10.77.0.11", "10.77.0.12", "10.77.0.13")
IMPOSTOR = MACHINES[2]
NOBODY = tuple(f"10.77.0.{number}" for number in range(101, 107))
VERIFY_NAME = "api_web.my_env.internal"
"""A role's name may hold underscores, as Ansible's do."""

SERVER = """
import http.server, json, pathlib, ssl, sys, threading, time

address, certificate, control = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        status, body = 200, address
        if self.path == "/healthz":
            (control / "asked").touch()
            while (control / "slow").exists():
                time.sleep(0.01)
            if (control / "unhealthy").exists():
                status = 503
        elif self.path.startswith("/hold/"):
            name = self.path.removeprefix("/hold/")
            (control / ("holding-" + name)).touch()
            while not (control / ("release-" + name)).exists():
                time.sleep(0.01)
        elif self.path == "/headers":
            body = json.dumps(self.headers.items())
        elif self.path == "/short":
            time.sleep(0.02)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):
        pass

secure = Server(("0.0.0.0", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=secure.serve_forever, daemon=True).start()
plain = Server(("0.0.0.0", 8000), Handler)
(control / "ready").touch()
plain.serve_forever()
"""


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._sign(self._name, self._key, is_authority=True)
        self.path = directory / "authority.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        path = self._directory / f"{host}.pem"
        path.write_bytes(
            self._sign(subject, key).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def _sign(self, subject, key, *, is_authority=False) -> x509.Certificate:
        host = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


@dataclass
class Machine:
    address: str
    namespace: str
    control: Path
    certificate: Path
    process: subprocess.Popen | None = None

    def start(self) -> None:
        self.control.mkdir(exist_ok=True)
        (self.control / "ready").unlink(missing_ok=True)
        argv = [sys.executable, "-c", SERVER, self.address, self.certificate, self.control]
        self.process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *argv])

    def await_ready(self) -> None:
        assert eventually((self.control / "ready").exists)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Ground:
    """One environment: a network, machines, a HAProxy with one pool of each protocol."""

    directory: Path
    network: EnvironmentNetwork
    authority: Authority
    config: BalancerConfig
    balancer: HaproxyProcess
    machines: dict[str, Machine] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return haproxy_config.render(self.config)

    def pool_config(self, role: str) -> PoolConfig:
        return next(pool for pool in self.config.pools if pool.role == role)

    def pool(self, role: str) -> HaproxyPool:
        return HaproxyPool(balancer=self.balancer, config=self.pool_config(role))

    def port(self, role: str) -> int:
        public = self.pool_config(role).public
        assert public is not None
        return int(public.address.rpartition(":")[2])

    def reset(self) -> None:
        for machine in self.machines.values():
            for name in ("slow", "unhealthy"):
                (machine.control / name).unlink(missing_ok=True)
            if machine.process is None:
                machine.start()
                machine.await_ready()
        self.balancer.ensure(self.text)
        for config in self.config.pools:
            pool = self.pool(config.role)
            pool.deregister([target.address for target in pool.targets()])


class Held:
    """A request that its machine has begun to answer."""

    def __init__(self, ground: Ground, role: str) -> None:
        name = secrets.token_hex(8)
        self._connection = http.client.HTTPConnection("127.0.0.1", ground.port(role), timeout=30)
        self._connection.request("GET", f"/hold/{name}")
        found: list[Machine] = []

        def is_held() -> bool:
            found.extend(
                m for m in ground.machines.values() if (m.control / f"holding-{name}").exists()
            )
            return bool(found)

        assert eventually(is_held)
        self.address = found[0].address
        self._release = found[0].control / f"release-{name}"

    def finish(self) -> str:
        self._release.touch()
        body = self._connection.getresponse().read().decode()
        self._connection.close()
        return body


@dataclass(frozen=True)
class PublicSite:
    """`tests.contract.pool.Site` through a role's public frontend."""

    ground: Ground
    role: str
    machines = MACHINES
    nobody = NOBODY

    def ask(self) -> str | None:
        status, body, _ = get(self.ground.port(self.role))
        return body if status == 200 else None

    def begin(self) -> Held:
        return Held(self.ground, self.role)

    def hold(self, address: str) -> None:
        targets = self.ground.pool(self.role).targets()
        [slot] = [target.slot for target in targets if target.address == address]
        self.ground.balancer.admin.ask([f"set server pool_{self.role}/{slot} state maint"])


def get(port: int, path: str = "/") -> tuple[int, str, dict[str, str]]:
    """One request on a connection of its own; status 0 if it was closed without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return (
            answer.status,
            answer.read().decode(),
            {k.lower(): v for k, v in answer.headers.items()},
        )
    except (http.client.HTTPException, ConnectionError):
        return 0, "", {}
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def haproxy_pids(directory: Path) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory / "haproxy.cfg") in (entry / "cmdline").read_text().split("\0"):
                found.add(int(entry.name))
    return found


@contextlib.contextmanager
def environment(directory: Path) -> Iterator[Ground]:
    authority = Authority(directory)
    network = EnvironmentNetwork(namespace=f"tkt{secrets.token_hex(4)}", network=NETWORK)
    runtime = directory / "balancer"
    config = BalancerConfig(
        namespace=network.namespace,
        runtime_directory=runtime,
        pools=(
            PoolConfig(
                role="web",
                slots=PLACES,
                machine_port=8443,
                protocol=Protocol.HTTPS,
                health_path="/healthz",
                public=PublicListen(f"127.0.0.1:{free_port()}", authority.issue("public.test")),
                tls=UpstreamTls(authority.path, VERIFY_NAME),
            ),
            PoolConfig(
                role="app",
                slots=PLACES,
                machine_port=8000,
                protocol=Protocol.HTTP,
                health_path="/healthz",
                internal=f"{network.gateway}:8000",
                public=PublicListen(f"127.0.0.1:{free_port()}", None),
            ),
            PoolConfig(
                role="stream",
                slots=PLACES,
                machine_port=8000,
                protocol=Protocol.TCP,
                internal=f"{network.gateway}:5432",
                public=PublicListen(f"127.0.0.1:{free_port()}", None),
            ),
        ),
    )
    ground = Ground(directory, network, authority, config, HaproxyProcess(directory=runtime))
    right, wrong = authority.issue(VERIFY_NAME), authority.issue("impostor.internal")
    try:
        network.up()
        for address in MACHINES:
            namespace = f"{network.namespace}.m{address.rpartition('.')[2]}"
            network.attach(namespace, address)
            certificate = wrong if address == IMPOSTOR else right
            machine = Machine(address, namespace, directory / namespace, certificate)
            ground.machines[address] = machine
            machine.start()
        ground.balancer.start(ground.text)
        for machine in ground.machines.values():
            machine.await_ready()
        yield ground
    finally:
        ground.balancer.stop(deadline_s=0.2)
        for machine in ground.machines.values():
            machine.kill()
        network.down()


@pytest.fixture(scope="module")
def _ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with environment(tmp_path_factory.mktemp("ground")) as ground:
        yield ground


@pytest.fixture
def ground(_ground: Ground) -> Ground:
    _ground.reset()
    return _ground


@pytest.fixture
def app(ground: Ground) -> HaproxyPool:
    return ground.pool("app")


class TestHttpPool(PoolContract):
    @pytest.fixture
    def pool(self, ground: Ground) -> HaproxyPool:
        return ground.pool("app")

    @pytest.fixture
    def site(self, ground: Ground) -> PublicSite:
        return PublicSite(ground, "app")


class TestTcpPool(PoolContract):
    @pytest.fixture
    def pool(self, ground: Ground) -> HaproxyPool:
        return ground.pool("stream")

    @pytest.fixture
    def site(self, ground: Ground) -> PublicSite:
        return PublicSite(ground, "stream")


def test_pool_that_haproxy_does_not_have_yet_is_empty(ground: Ground) -> None:
    config = replace(ground.config.pools[1], role="later")
    pool = HaproxyPool(balancer=ground.balancer, config=config)
    assert pool.targets() == []
    pool.deregister(MACHINES)
    pool.drain(MACHINES)
    assert pool.await_drained(MACHINES, deadline_s=1.0)
    with pytest.raises(OutsideError, match="pool later has 0 free slots, 1 are needed") as caught:
        pool.register(MACHINES[:1])
    assert "toolkit up" in caught.value.hint


def put_into_service(pool: HaproxyPool, *addresses: str) -> None:
    pool.register(addresses)
    pool.await_healthy(addresses, deadline_s=PATIENCE_S)
    pool.admit(addresses)


class Load:
    """Clients that ask without a pause; every answer that is not a machine's is kept."""

    def __init__(self, port: int, *, keeping_alive: int, connecting: int) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._port = port
        self._is_over = threading.Event()
        kinds = [self._keep_alive] * keeping_alive + [self._connect] * connecting
        self._threads = [threading.Thread(target=kind) for kind in kinds]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _keep_alive(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._is_over.is_set():
            self._ask(connection)
        connection.close()

    def _connect(self) -> None:
        while not self._is_over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            self._ask(connection)
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/short")
            answer = connection.getresponse()
            body = answer.read().decode()
            if answer.status == 200:
                self.answers[body] += 1
            else:
                self.failures.append(f"{answer.status} {body}")
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
            connection.close()


class TestRolling:
    def test_a_roll_under_load_loses_nothing(self, ground: Ground, app: HaproxyPool) -> None:
        put_into_service(app, MACHINES[0])
        with Load(ground.port("app"), keeping_alive=4, connecting=2) as load:
            for old, new in itertools.pairwise((*MACHINES, *MACHINES)):
                if ground.machines[new].process is None:
                    ground.machines[new].start()
                put_into_service(app, new)
                app.drain([old])
                assert app.await_drained([old], deadline_s=PATIENCE_S)
                app.deregister([old])
                ground.machines[old].kill()
        assert load.failures == []
        assert set(load.answers) == set(MACHINES)
        assert sum(load.answers.values()) > 200

    def test_killing_without_draining_is_seen_by_the_same_load(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, *MACHINES[:2])
        with Load(ground.port("app"), keeping_alive=4, connecting=2) as load:
            time.sleep(0.3)
            ground.machines[MACHINES[0]].kill()
            time.sleep(0.3)
        assert load.failures

    def test_a_discarded_roll_leaves_the_pool_as_it_was(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        before = app.snapshot()
        assert f"{MACHINES[0]}:8000 100 ready\n" in before
        app.register([MACHINES[1], NOBODY[0]])
        assert app.snapshot() != before
        app.await_healthy([MACHINES[1]], deadline_s=PATIENCE_S)
        app.deregister([MACHINES[1], NOBODY[0]])
        assert app.snapshot() == before

    def test_an_unhealthy_machine_gets_no_requests_until_it_recovers(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, *MACHINES[:2])
        switch = ground.machines[MACHINES[0]].control / "unhealthy"
        switch.touch()
        assert eventually(lambda: serving(app) == {MACHINES[1]})
        assert {get(ground.port("app"))[1] for _ in range(10)} == {MACHINES[1]}
        switch.unlink()
        assert eventually(lambda: serving(app) == set(MACHINES[:2]))

    def test_the_error_says_what_the_check_saw(self, ground: Ground, app: HaproxyPool) -> None:
        (ground.machines[MACHINES[0]].control / "unhealthy").touch()
        app.register([MACHINES[0]])
        with pytest.raises(DeadlineExceeded, match=r"L7STS.*503"):
            app.await_healthy([MACHINES[0]], deadline_s=3.0)

    def test_without_a_machine_the_answer_is_short_and_plain(self, ground: Ground) -> None:
        status, body, headers = get(ground.port("app"))
        assert status == 503
        assert headers["content-type"] == "text/plain"
        assert body == "no machine of this pool is serving\n"


class TestFreshChecks:
    def test_a_check_on_its_way_to_the_last_machine_does_not_count(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        control = ground.machines[MACHINES[0]].control
        (control / "slow").touch()
        (control / "asked").unlink()
        assert eventually((control / "asked").exists)

        app.deregister([MACHINES[0]])
        app.register([NOBODY[0]])
        (control / "slow").unlink()

        seen = set()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            seen |= {target.is_healthy for target in app.targets()}
            time.sleep(0.01)
        assert seen == {False}
        with pytest.raises(DeadlineExceeded):
            app.await_healthy([NOBODY[0]], deadline_s=0)

    def test_what_a_command_cut_short_left_is_neither_trusted_nor_lost(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        """Out of maintenance HAProxy calls a slot healthy, with its last check of whoever."""
        before = app.snapshot()
        put_into_service(app, MACHINES[0])
        app.deregister([MACHINES[0]])
        ground.balancer.admin.ask(
            [
                f"set server pool_app/slot1 addr {NOBODY[0]} port 8000",
                "set server pool_app/slot1 state drain",
                "set server pool_app/slot2 state drain",
            ]
        )
        assert [target.address for target in app.targets()] == [NOBODY[0]]
        with pytest.raises(DeadlineExceeded):
            app.await_healthy([NOBODY[0]], deadline_s=0)
        app.register(MACHINES[:3])
        assert len(app.targets()) == PLACES
        app.deregister([*MACHINES, NOBODY[0]])
        ground.balancer.admin.ask(["set server pool_app/slot3 state drain"])
        app.deregister([NOBODY[0]])
        assert app.snapshot() == before

    def test_freeing_that_is_cut_short_does_not_look_like_an_operators_maintenance(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        """HAProxy drops the rest of a line when its client has ended."""
        put_into_service(app, MACHINES[0])
        ask, sent = HaproxySocket.ask, []

        def keep(admin: HaproxySocket, commands: Sequence[str]) -> str:
            sent.extend(one for one in commands if one.startswith("set server"))
            return ask(admin, [one for one in commands if not one.startswith("set server")])

        with pytest.MonkeyPatch.context() as patch, pytest.raises(OutsideError):
            patch.setattr(HaproxySocket, "ask", keep)
            app.deregister([MACHINES[0]])
        for count in range(1, len(sent) + 1):
            put_into_service(app, MACHINES[0])
            ground.balancer.admin.ask(sent[:count])
            assert TargetState.MAINTENANCE not in {one.state for one in app.targets()}
        assert list(app.targets()) == []


class TestReload:
    def changed(self, ground: Ground) -> str:
        """Other roles first, more slots: everything that HAProxy could count instead of name."""
        other = PoolConfig("a-new-role", 2, 80, Protocol.HTTP)
        pools = [replace(pool, slots=PLACES + 2) for pool in reversed(ground.config.pools)]
        return haproxy_config.render(replace(ground.config, pools=(other, *pools)))

    def test_it_keeps_addresses_and_states(self, ground: Ground, app: HaproxyPool) -> None:
        put_into_service(app, *MACHINES[:2])
        app.drain([MACHINES[1]])
        app.register([MACHINES[2], NOBODY[0]])
        stream = ground.pool("stream")
        put_into_service(stream, *MACHINES[:2])
        PublicSite(ground, "stream").hold(MACHINES[1])
        app.await_healthy([MACHINES[2]], deadline_s=PATIENCE_S)
        before, before_stream = app.snapshot(), stream.snapshot()
        targets = app.targets()

        ground.balancer.ensure(self.changed(ground))

        assert app.snapshot().startswith(before)
        assert len(app.snapshot().splitlines()) == PLACES + 2
        assert stream.snapshot().startswith(before_stream)
        assert app.targets() == targets
        assert {get(ground.port("app"))[1] for _ in range(10)} == {MACHINES[0]}
        app.await_healthy([MACHINES[0], MACHINES[2]], deadline_s=PATIENCE_S)

    def test_a_smaller_fleet_keeps_its_places(self, tmp_path: Path) -> None:
        network = EnvironmentNetwork(namespace=f"tkt{secrets.token_hex(4)}", network=NETWORK)

        def balancer(machines: int) -> LocalBalancer:
            deployment = make_deployment(machines=machines)
            return LocalBalancer(
                make_project(deployment),
                make_environment(deployment, NETWORK),
                namespace=network.namespace,
                runtime=tmp_path / "r",
                ram=tmp_path / "ram",
                edge_secrets=dict,
                newest_version=lambda: None,
            )

        large, small = balancer(4), balancer(1)
        try:
            network.up()
            large.ensure()
            pool = large.pools()["app"]
            # The first four places were those of the machines that these have replaced.
            pool.register(NOBODY[:4])
            pool.register([*NOBODY[4:], *MACHINES])
            pool.deregister(NOBODY[:4])
            before = [target.address for target in pool.targets()]
            assert len(before) == 5
            small.ensure()
            assert [target.address for target in small.pools()["app"].targets()] == before
        finally:
            small.stop()
            network.down()

    def test_one_that_is_unhealthy_stays_so(self, ground: Ground, app: HaproxyPool) -> None:
        put_into_service(app, *MACHINES[:2])
        (ground.machines[MACHINES[0]].control / "unhealthy").touch()
        assert eventually(lambda: serving(app) == {MACHINES[1]})
        ground.balancer.ensure(f"{ground.text}\n# changed\n")
        assert serving(app) == {MACHINES[1]}

    def test_it_loses_nothing_under_load(self, ground: Ground, app: HaproxyPool) -> None:
        put_into_service(app, *MACHINES[:2])
        with Load(ground.port("app"), keeping_alive=0, connecting=4) as load:
            for number in range(3):
                ground.balancer.ensure(f"{ground.text}\n# {number}\n")
        assert load.failures == []
        assert sum(load.answers.values()) > 20

    def test_the_same_configuration_is_not_loaded_again(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        processes = haproxy_pids(ground.balancer.directory)
        ground.balancer.ensure(ground.text)
        assert haproxy_pids(ground.balancer.directory) == processes

    def test_a_machine_that_the_old_worker_still_uses_is_not_drained(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        running = Held(ground, "app")
        ground.balancer.ensure(f"{ground.text}\n# changed\n")
        assert len(ground.balancer.leaving_workers()) == 1
        assert [target.sessions for target in app.targets()] == [0]

        app.drain([MACHINES[0]])
        assert not app.await_drained([MACHINES[0]], deadline_s=0.3)
        assert running.finish() == MACHINES[0]
        assert app.await_drained([MACHINES[0]], deadline_s=PATIENCE_S)

    def test_a_refused_configuration_changes_nothing(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        before = app.snapshot()
        with pytest.raises(OutsideError, match="unknown keyword 'nonsense'"):
            ground.balancer.ensure(f"{ground.text}\nnonsense\n")
        unbindable = ground.text.replace(f"{ground.network.gateway}:8000", "10.99.0.1:8000")
        with pytest.raises(OutsideError, match="cannot bind"):
            ground.balancer.ensure(unbindable)
        assert app.snapshot() == before
        assert get(ground.port("app"))[1] == MACHINES[0]
        ground.balancer.ensure(ground.text)

    def test_a_new_public_port_that_is_taken_is_named(self, ground: Ground) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = other.getsockname()[1]
            text = ground.text.replace(f":{ground.port('app')}", f":{taken}")
            with pytest.raises(ConfigurationError, match=f"port {taken} .* taken"):
                ground.balancer.ensure(text)
        ground.balancer.ensure(text)
        assert get(taken)[0] == 503


class TestProcess:
    def test_a_public_port_that_is_taken_is_a_configuration_error(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        config = replace(
            ground.config, runtime_directory=tmp_path / "b", pools=(ground.pool_config("stream"),)
        )
        second = HaproxyProcess(directory=tmp_path / "b")
        with pytest.raises(ConfigurationError, match=f"port {ground.port('stream')} ") as caught:
            second.ensure(haproxy_config.render(config))
        assert caught.value.exit_code == 2
        assert not second.is_running()
        assert haproxy_pids(tmp_path / "b") == set()

    def test_a_refused_start_leaves_no_name_behind(self, tmp_path: Path) -> None:
        network = EnvironmentNetwork(namespace=f"tkt{secrets.token_hex(4)}", network=NETWORK)
        config = BalancerConfig(network.namespace, tmp_path / "b", pools=())
        network.up()
        try:
            with pytest.raises(OutsideError, match="unknown keyword 'nonsense'"):
                HaproxyProcess(directory=tmp_path / "b").ensure(
                    haproxy_config.render(config) + "\nnonsense\n"
                )
            name = haproxy_config.host_namespace(network.namespace)
            assert not Path(f"/run/netns/{name}").exists()
        finally:
            network.down()

    @pytest.mark.parametrize("victim", ["master", "all"])
    def test_killed_it_comes_back_with_every_slot_as_it_was(
        self, ground: Ground, app: HaproxyPool, victim: str
    ) -> None:
        put_into_service(app, *MACHINES)
        app.drain([MACHINES[1]])
        # Of what is changed by hand it knows what it has seen.
        PublicSite(ground, "app").hold(MACHINES[2])
        balancer = ground.balancer
        balancer.ensure(ground.text)
        before = app.snapshot()
        master = int((balancer.directory / "haproxy.pid").read_text().split()[0])
        victims = haproxy_pids(balancer.directory) if victim == "all" else {master}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not balancer.is_running())
        assert (balancer.directory / "admin.sock").exists()

        HaproxyProcess(directory=balancer.directory).ensure(ground.text)

        assert balancer.is_running()
        assert app.snapshot() == before
        assert get(ground.port("app"))[1] == MACHINES[0]

    def test_a_number_that_another_process_has_now_is_not_mistaken(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        recorded = (ground.balancer.directory / "haproxy.pid").read_text()
        pid, rest = recorded.split(" ", 1)
        for stale in (f"{os.getpid()} {rest}", f"{pid} 1 x", "", "nonsense"):
            (tmp_path / "haproxy.pid").write_text(stale)
            assert not HaproxyProcess(directory=tmp_path).is_running()
        (tmp_path / "haproxy.pid").write_text(recorded)
        assert HaproxyProcess(directory=tmp_path).is_running()

    def test_stopping_lets_requests_end_and_leaves_nothing(
        self, ground: Ground, app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        running = Held(ground, "app")
        stopping = threading.Thread(target=lambda: ground.balancer.stop(deadline_s=PATIENCE_S))
        stopping.start()
        time.sleep(0.2)
        assert running.finish() == MACHINES[0]
        stopping.join()
        assert not ground.balancer.is_running()
        assert haproxy_pids(ground.balancer.directory) == set()
        ground.balancer.stop(deadline_s=0)
        ground.balancer.ensure(ground.text)
        assert list(app.targets()) == []

    def test_stopping_cuts_what_does_not_end(self, ground: Ground, app: HaproxyPool) -> None:
        put_into_service(app, MACHINES[0])
        Held(ground, "app")
        ground.balancer.stop(deadline_s=0.2)
        assert haproxy_pids(ground.balancer.directory) == set()

    @pytest.mark.parametrize("content", [b"", b"global\n    daemon\n", b"\xff\xfe\x00"])
    def test_stopping_needs_no_configuration_that_it_knows(
        self, ground: Ground, app: HaproxyPool, content: bytes
    ) -> None:
        put_into_service(app, MACHINES[0])
        (ground.balancer.directory / "haproxy.cfg").write_bytes(content)
        ground.balancer.stop(deadline_s=0.2)
        assert haproxy_pids(ground.balancer.directory) == set()
        assert not (ground.balancer.directory / "haproxy.cfg").exists()
        ground.balancer.ensure(ground.text)
        assert list(app.targets()) == []

    def test_workers_run_inside_the_environment_and_not_as_root(self, ground: Ground) -> None:
        inside = Path(f"/run/netns/{ground.network.namespace}").stat().st_ino
        pids = haproxy_pids(ground.balancer.directory)
        master = int((ground.balancer.directory / "haproxy.pid").read_text().split()[0])
        assert {Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in pids} == {inside}
        assert pids > {master}
        assert 0 not in {Path(f"/proc/{pid}").stat().st_uid for pid in pids - {master}}

    def test_it_moves_into_a_network_that_was_made_anew(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        with environment(tmp_path_factory.mktemp("moving")) as ground:
            put_into_service(ground.pool("app"), MACHINES[0])
            before = ground.pool("app").snapshot()
            ground.network.down()
            ground.network.up()
            for machine in ground.machines.values():
                machine.kill()
                ground.network.attach(machine.namespace, machine.address)
                machine.start()
                machine.await_ready()
            ground.balancer.ensure(ground.text)
            assert ground.pool("app").snapshot() == before
            assert eventually(lambda: get(ground.port("app"))[1] == MACHINES[0])
            ground.balancer.stop(deadline_s=0.2)
            name = haproxy_config.host_namespace(ground.network.namespace)
            assert not Path(f"/run/netns/{name}").exists()

    def test_only_loopback_ports_appear_on_the_host(self, ground: Ground) -> None:
        inodes = set()
        for pid in haproxy_pids(ground.balancer.directory):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(descriptor.readlink()))
        listening = set()
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if f"socket:[{columns[9]}]" in inodes and (columns[3], table[:3]) != ("01", "tcp"):
                    listening.add(columns[1])
        loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
        ports = {ground.port(pool.role) for pool in ground.config.pools}
        assert listening == {f"{loopback}:{port:04X}" for port in ports}

    def test_sockets_and_files_are_for_root_alone(self, ground: Ground) -> None:
        directory = ground.balancer.directory
        assert directory.stat().st_mode & 0o777 == 0o700
        for path in directory.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path

    def test_a_path_too_long_for_its_sockets_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="too long"):
            HaproxyProcess(directory=tmp_path / ("x" * 100))

    def test_a_batch_longer_than_the_buffer_arrives_whole(self, ground: Ground) -> None:
        commands = ["set server pool_app/slot1 weight 100%"] * 500 + ["show info"]
        answer = ground.balancer.admin.ask(commands)
        assert "Unknown command" not in answer
        assert haproxy_socket.parse_info(answer)["Name"] == "HAProxy"


class TestTls:
    def request(self, ground: Ground, **headers: str) -> list[list[str]]:
        context = ssl.create_default_context(cafile=ground.authority.path)
        raw = socket.create_connection(("127.0.0.1", ground.port("web")), timeout=10)
        with context.wrap_socket(raw, server_hostname="public.test") as connection:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(
                f"GET /headers HTTP/1.1\r\nHost: public.test\r\n{lines}\r\n".encode()
            )
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            return json.loads(answer.read())

    def test_requests_reach_machines_over_tls_with_headers_of_our_own(self, ground: Ground) -> None:
        put_into_service(ground.pool("web"), MACHINES[0])
        claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "ftp", "X-Request-ID": "mine"}
        received = [(name.lower(), value) for name, value in self.request(ground, **claims)]
        assert [value for name, value in received if name == "x-forwarded-for"] == ["127.0.0.1"]
        assert [value for name, value in received if name == "x-forwarded-proto"] == ["https"]
        (request_id,) = [value for name, value in received if name == "x-request-id"]
        assert len(request_id) == 36

    def test_a_machine_with_another_name_never_becomes_healthy(self, ground: Ground) -> None:
        web = ground.pool("web")
        web.register([IMPOSTOR])
        with pytest.raises(DeadlineExceeded, match="L6"):
            web.await_healthy([IMPOSTOR], deadline_s=3.0)

    @pytest.mark.parametrize(
        ("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1")]
    )
    def test_the_client_chooses_the_protocol(
        self, ground: Ground, offered: list[str], chosen: str
    ) -> None:
        context = ssl.create_default_context(cafile=ground.authority.path)
        context.set_alpn_protocols(offered)
        raw = socket.create_connection(("127.0.0.1", ground.port("web")), timeout=10)
        with context.wrap_socket(raw, server_hostname="public.test") as connection:
            assert connection.selected_alpn_protocol() == chosen
            assert connection.version() == "TLSv1.3"

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_old_tls_is_refused(self, ground: Ground) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        raw = socket.create_connection(("127.0.0.1", ground.port("web")), timeout=10)
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            context.wrap_socket(raw, server_hostname="public.test")
        raw.close()


class TestInternalFrontend:
    @pytest.fixture
    def ask_inside(self, ground: Ground) -> Callable[[str], list[list[str]]]:
        def ask(header: str) -> list[list[str]]:
            script = (
                "import sys, urllib.request as r;"
                f"q = r.Request('http://{ground.network.gateway}:8000/headers');"
                "q.add_header(*sys.argv[1].split('='));"
                "sys.stdout.write(r.urlopen(q, timeout=10).read().decode())"
            )
            namespace = ground.machines[MACHINES[2]].namespace
            argv = ["ip", "netns", "exec", namespace, sys.executable, "-c", script, header]
            return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)

        return ask

    def test_machines_reach_the_pool_and_their_headers_are_kept(
        self, ask_inside: Callable[[str], list[list[str]]], app: HaproxyPool
    ) -> None:
        put_into_service(app, MACHINES[0])
        received = {name.lower(): value for name, value in ask_inside("X-Request-ID=the-first")}
        assert received["x-request-id"] == "the-first"
        assert received["x-forwarded-proto"] == "http"
        assert received["x-forwarded-for"] == MACHINES[2]
