"""The local provider's environments: real network namespaces."""

import contextlib
import ctypes
import errno
import ipaddress
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.network.namespaces import BRIDGE, INSIDE_LINK, EnvironmentNetwork, port_name

pytestmark = pytest.mark.host

NETWORK = ipaddress.ip_network("10.78.0.0/24")
GATEWAY = "10.78.0.1"
FIRST, SECOND = "10.78.0.2", "10.78.0.3"
PORT = 4000


@pytest.fixture
def make() -> Iterator[Callable[..., EnvironmentNetwork]]:
    """Return a maker of environments, with names of their own and the same addresses."""
    made: list[EnvironmentNetwork] = []

    def make_one(name: str | None = None) -> EnvironmentNetwork:
        name = name or f"tkt{secrets.token_hex(4)}"
        made.append(EnvironmentNetwork(namespace=name, network=NETWORK))
        return made[-1]

    yield make_one
    for network in made:
        network.down()
        assert not Path(f"/run/netns/{network.namespace}").exists()


@pytest.fixture
def network(make: Callable[..., EnvironmentNetwork]) -> EnvironmentNetwork:
    network = make()
    network.up()
    return network


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread open its sockets in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        enter(there)
        yield
    finally:
        enter(home)
        os.close(home)
        os.close(there)


def listen(namespace: str, address: str) -> socket.socket:
    with inside(namespace):
        return socket.create_server((address, PORT))


def connect(namespace: str, address: str, *, timeout_s: float = 0.9) -> socket.socket:
    """A first packet that got lost would be repeated after a second, which is too late."""
    with inside(namespace):
        return socket.create_connection((address, PORT), timeout=timeout_s)


def is_reached(namespace: str, address: str) -> bool:
    connect(namespace, address).close()
    return True


def is_out_of_reach(namespace: str, address: str) -> bool:
    try:
        connect(namespace, address, timeout_s=0.4).close()
    except OSError as error:
        assert isinstance(error, TimeoutError) or error.errno in (
            errno.ECONNREFUSED,
            errno.ENETUNREACH,
            errno.EHOSTUNREACH,
        )
        return True
    return False


def ip(*words: str, namespace: str | None = None) -> list[dict]:
    argv = ["ip", *(["-n", namespace] if namespace else []), "-j", *words]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout or "[]")


def links(namespace: str | None = None) -> dict[str, dict]:
    return {link["ifname"]: link for link in ip("addr", "show", namespace=namespace)}


def machine(network: EnvironmentNetwork, name: str = "m1") -> str:
    return f"{network.namespace}.{name}"


def test_it_comes_up_and_goes_down_however_often(make: Callable[..., EnvironmentNetwork]) -> None:
    network = make()
    assert not network.is_up()
    network.down()
    for _ in range(2):
        network.up()
        assert network.is_up()
        assert network.gateway == GATEWAY
        assert is_out_of_reach(network.namespace, GATEWAY)
        with listen(network.namespace, GATEWAY):
            assert is_reached(network.namespace, GATEWAY)
    for _ in range(2):
        network.down()
        assert not network.is_up()


def test_machines_reach_the_gateway_and_each_other(network: EnvironmentNetwork) -> None:
    network.attach(machine(network, "m1"), FIRST)
    network.attach(machine(network, "m2"), SECOND)
    with listen(network.namespace, GATEWAY), listen(machine(network, "m1"), FIRST):
        assert is_reached(machine(network, "m2"), GATEWAY)
        assert is_reached(machine(network, "m2"), FIRST)
        assert is_reached(network.namespace, FIRST)
    assert network.machine_namespaces() == [machine(network, "m1"), machine(network, "m2")]


def test_a_machine_has_one_link_one_address_and_a_way_out(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    found = links(machine(network))
    assert set(found) == {"lo", INSIDE_LINK}
    assert [(a["local"], a["prefixlen"]) for a in found[INSIDE_LINK]["addr_info"]] == [(FIRST, 24)]
    assert "UP" in found["lo"]["flags"]
    (default,) = ip("route", "show", "default", namespace=machine(network))
    assert (default["gateway"], default["dev"]) == (GATEWAY, INSIDE_LINK)
    for link in (links(network.namespace)[BRIDGE], links(network.namespace)[port_name(FIRST)]):
        assert not [a for a in link["addr_info"] if a["family"] == "inet6"]


def test_attaching_again_does_not_disturb(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    before = links(machine(network)), links(network.namespace)
    with listen(machine(network), FIRST) as server, connect(network.namespace, FIRST) as client:
        accepted, _ = server.accept()
        network.up()
        network.attach(machine(network), FIRST)
        client.sendall(b"still here")
        assert accepted.recv(100) == b"still here"
        accepted.close()
    assert (links(machine(network)), links(network.namespace)) == before


def test_a_machine_is_moved_to_another_address(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    network.attach(machine(network), SECOND)
    with listen(machine(network), "0.0.0.0"):
        assert is_reached(network.namespace, SECOND)
    assert set(links(network.namespace)) == {"lo", BRIDGE, port_name(SECOND)}
    network.attach(machine(network, "m2"), FIRST)


def test_an_address_is_not_taken_from_another_machine(network: EnvironmentNetwork) -> None:
    network.attach(machine(network, "m1"), FIRST)
    with pytest.raises(OutsideError, match=f"{FIRST}.* in use"):
        network.attach(machine(network, "m2"), FIRST)
    assert network.machine_namespaces() == [machine(network, "m1")]
    with listen(machine(network, "m1"), FIRST):
        assert is_reached(network.namespace, FIRST)


def test_the_next_machine_has_the_address_at_once(network: EnvironmentNetwork) -> None:
    """Its neighbours still remember where the last one was."""
    network.attach(machine(network, "client"), SECOND)
    for name in ("m1", "m2", "m3"):
        network.attach(machine(network, name), FIRST)
        with listen(machine(network, name), FIRST):
            assert is_reached(network.namespace, FIRST)
            assert is_reached(machine(network, "client"), FIRST)
        network.detach(machine(network, name))


def test_it_grows_and_shrinks_around_machines(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    for wanted in ("10.78.0.0/25", "10.78.0.0/16"):
        other = EnvironmentNetwork(
            namespace=network.namespace, network=ipaddress.ip_network(wanted)
        )
        other.up()
        assert other.is_up()
        with listen(network.namespace, GATEWAY):
            assert is_reached(machine(network), GATEWAY)


def test_its_gateway_does_not_move_from_under_machines(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    other = EnvironmentNetwork(
        namespace=network.namespace, network=ipaddress.ip_network("10.76.0.0/14")
    )
    with pytest.raises(ConfigurationError, match=rf"10\.76\.0\.1, and .* as {GATEWAY}"):
        other.up()
    with listen(network.namespace, GATEWAY):
        assert is_reached(machine(network), GATEWAY)
    network.detach(machine(network))
    other.up()
    assert other.is_up()


def test_detaching_what_is_not_there_is_fine(network: EnvironmentNetwork) -> None:
    network.detach(machine(network))
    network.attach(machine(network), FIRST)
    network.detach(machine(network))
    network.detach(machine(network))
    assert network.machine_namespaces() == []
    assert set(links(network.namespace)) == {"lo", BRIDGE}


def leave_an_empty_file(network: EnvironmentNetwork) -> None:
    Path(f"/run/netns/{machine(network)}").touch()


def leave_a_bare_namespace(network: EnvironmentNetwork) -> None:
    subprocess.run(["ip", "netns", "add", machine(network)], check=True)


def leave_a_link_without_address(network: EnvironmentNetwork) -> None:
    leave_a_bare_namespace(network)
    words = f"link add {port_name(FIRST)} type veth peer name {INSIDE_LINK} netns"
    argv = ["ip", "-n", network.namespace, *words.split(), machine(network)]
    subprocess.run(argv, check=True)


def leave_a_link_that_is_down(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    argv = ["ip", "-n", network.namespace, "link", "set", port_name(FIRST), "down", "nomaster"]
    subprocess.run(argv, check=True)


def leave_the_environment_without_a_bridge(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    subprocess.run(["ip", "-n", network.namespace, "link", "del", BRIDGE], check=True)


def leave_a_machine_without_its_environment(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    subprocess.run(["ip", "-n", network.namespace, "link", "del", BRIDGE], check=True)
    subprocess.run(["ip", "netns", "del", network.namespace], check=True)


@pytest.mark.parametrize(
    "leave",
    [
        leave_an_empty_file,
        leave_a_bare_namespace,
        leave_a_link_without_address,
        leave_a_link_that_is_down,
        leave_the_environment_without_a_bridge,
        leave_a_machine_without_its_environment,
    ],
)
@pytest.mark.parametrize("is_repaired", [True, False])
def test_what_a_crash_left_is_repaired_or_removed(
    network: EnvironmentNetwork, leave: Callable[[EnvironmentNetwork], None], is_repaired: bool
) -> None:
    leave(network)
    if not is_repaired:
        network.detach(machine(network))
        assert network.machine_namespaces() == []
    network.up()
    network.attach(machine(network), FIRST)
    with listen(machine(network), FIRST):
        assert is_reached(network.namespace, FIRST)


def test_environments_do_not_reach_each_other_or_anything_else(
    make: Callable[..., EnvironmentNetwork],
) -> None:
    ours, theirs = make(), make()
    for network in (ours, theirs):
        network.up()
        network.attach(machine(network), FIRST)
    theirs.attach(machine(theirs, "m2"), SECOND)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listen(theirs.namespace, GATEWAY))
        stack.enter_context(listen(machine(theirs), FIRST))
        stack.enter_context(listen(machine(theirs, "m2"), SECOND))
        on_host = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        assert is_reached(machine(theirs), SECOND)
        for source in (ours.namespace, machine(ours)):
            for address in (GATEWAY, FIRST, SECOND, "198.51.100.1"):
                assert is_out_of_reach(source, address), (source, address)
            with inside(source), pytest.raises(OSError):
                socket.create_connection(on_host.getsockname(), timeout=0.4)
    assert [route["dst"] for route in ip("route", namespace=ours.namespace)] == [str(NETWORK)]


def test_nothing_appears_in_the_hosts_own_namespace(
    make: Callable[..., EnvironmentNetwork],
) -> None:
    def own() -> set[str]:
        return {f"{link['ifname']} {link['address']}" for link in ip("link")}

    before = own()
    monitor = subprocess.Popen(
        ["ip", "monitor", "link", "address", "route"], stdout=subprocess.PIPE, text=True
    )
    network = make()
    network.up()
    network.attach(machine(network), FIRST)
    during = own()
    network.down()
    monitor.terminate()
    printed, _ = monitor.communicate()
    assert during == before
    assert port_name(FIRST) not in printed
    assert INSIDE_LINK not in printed


def test_going_down_takes_only_its_own_machines(make: Callable[..., EnvironmentNetwork]) -> None:
    network = make()
    longer = make(f"{network.namespace}x")
    for each in (network, longer):
        each.up()
        each.attach(machine(each), FIRST)
    network.down()
    assert network.machine_namespaces() == []
    assert longer.machine_namespaces() == [machine(longer)]
    assert longer.is_up()


def test_a_process_that_stays_behind_is_cut_off(network: EnvironmentNetwork) -> None:
    network.attach(machine(network), FIRST)
    with listen(machine(network), FIRST), connect(network.namespace, FIRST):
        network.down()
        network.up()
        assert is_out_of_reach(network.namespace, FIRST)
        network.attach(machine(network), FIRST)
        with listen(machine(network), FIRST):
            assert is_reached(network.namespace, FIRST)


@pytest.mark.parametrize("name", ["", "../etc", "a b", "-n", "x" * 300, "a/b", "a\nb"])
def test_names_that_are_no_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        EnvironmentNetwork(namespace=name, network=NETWORK)
    network = EnvironmentNetwork(namespace="tkt", network=NETWORK)
    with pytest.raises(ConfigurationError):
        network.attach(name, FIRST)
    with pytest.raises(ConfigurationError):
        network.detach(name)


@pytest.mark.parametrize(
    "address", [GATEWAY, "10.78.0.0", "10.78.0.255", "10.79.0.2", "127.0.0.1", "nonsense", "::1"]
)
def test_addresses_of_others_are_refused(address: str) -> None:
    network = EnvironmentNetwork(namespace="tkt-never", network=NETWORK)
    with pytest.raises(ConfigurationError, match=address):
        network.attach(machine(network), address)
    assert not Path(f"/run/netns/{machine(network)}").exists()


def test_a_network_needs_room_for_machines() -> None:
    with pytest.raises(ConfigurationError, match="too small"):
        EnvironmentNetwork(namespace="tkt", network=ipaddress.ip_network("10.78.0.0/30"))


def test_every_address_has_a_port_name_of_its_own_that_the_kernel_accepts() -> None:
    names = {port_name(str(address)) for address in ipaddress.ip_network("10.78.0.0/20")}
    assert len(names) == 4096
    assert max(map(len, names)) <= 15
