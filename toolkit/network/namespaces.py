"""The local provider's environments: network namespaces that nothing leads out of.

An environment is a namespace that holds a bridge. Each of its machines has a namespace of its own
and a veth pair into that bridge, made directly inside the two namespaces, so that the host's own
namespace never sees it. No link leads from an environment to the host or to another environment.

Everything is found again by name under `/run/netns`; nothing is kept in memory.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from toolkit import shell
from toolkit.errors import ConfigurationError, DeadlineExceeded, OutsideError
from toolkit.network.names import NAMESPACES, namespace_path

INSIDE_LINK: Final = "tk0"
"""A machine's own interface. No image's network configuration matches this name."""

BRIDGE: Final = "br0"

_OWN_NAMESPACE = Path("/proc/self/ns/net")
_TIMEOUT_S = 30.0
_POLL_S = 0.002
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class EnvironmentNetwork:
    """The network of one environment. Every method sets an absolute state and may be repeated.

    Args:
        namespace: Name of the environment's namespace. Those of its machines begin with this name
            and a dot.
        network: Addresses of the environment; the first host address is the gateway.

    Raises:
        ConfigurationError: The name or the network cannot be used.
    """

    def __init__(self, *, namespace: str, network: ipaddress.IPv4Network) -> None:
        if not _NAME.fullmatch(namespace):
            raise ConfigurationError(f"{namespace!r} cannot name a network namespace")
        if network.prefixlen > 29:
            raise ConfigurationError(
                f"network {network} is too small for an environment", hint="use a /29 or larger"
            )
        self.namespace = namespace
        self.network = network

    @property
    def gateway(self) -> str:
        """Address of the bridge, where the environment's balancer listens."""
        return str(self.network.network_address + 1)

    def is_up(self) -> bool:
        """Whether the bridge is there, up, and has the gateway's address."""
        if not _is_namespace(self.namespace):
            return False
        bridge = _links(self.namespace).get(BRIDGE)
        return bridge is not None and _is_link_up(bridge) and self._bridge_has_gateway(bridge)

    def up(self) -> None:
        """Make the environment's namespace and bridge.

        Raises:
            ConfigurationError: Machines are there that know the gateway by another address.
            OutsideError: The kernel refused.
        """
        is_new = _ensure_namespace(self.namespace)
        bridge = None if is_new else _links(self.namespace).get(BRIDGE)
        found = _addresses(bridge or {})
        if found and not self._is_gateway_among(found) and self.machine_namespaces():
            raise ConfigurationError(
                f"network {self.network} has the gateway {self.gateway}, and the machines that are "
                f"there know it as {found[0].partition('/')[0]}",
                hint="take the environment down first, or name their network again",
            )
        commands = ["link set dev lo up"]
        if bridge is None:
            commands += [
                f"link add name {BRIDGE} type bridge stp_state 0 forward_delay 0",
                f"link set dev {BRIDGE} addrgenmode none",
            ]
        commands += [
            # Without an address of its own, a bridge takes the lowest one of its ports and changes
            # it as machines come and go; neighbours would then send into the void.
            f"link set dev {BRIDGE} address {_hardware_address(self.gateway)}",
            f"addr replace {self.gateway}/{self.network.prefixlen} dev {BRIDGE}",
            f"link set dev {BRIDGE} up",
        ]
        commands += [
            f"addr del {stale} dev {BRIDGE}"
            for stale in found
            if stale != f"{self.gateway}/{self.network.prefixlen}"
        ]
        _batch(self.namespace, commands)

    def down(self) -> None:
        """Remove the environment's namespace and those of its machines.

        Raises:
            OutsideError: The kernel refused.
        """
        for name in self.machine_namespaces():
            self.detach(name)
        if _is_namespace(self.namespace):
            # A process that still holds the namespace keeps it alive; no traffic outlives this.
            _delete_link(self.namespace, BRIDGE)
        _remove_namespace(self.namespace)

    def machine_namespaces(self) -> Sequence[str]:
        """Return the names of the namespaces that belong to the environment's machines, sorted."""
        if not NAMESPACES.is_dir():
            return []
        prefix = f"{self.namespace}."
        return sorted(path.name for path in NAMESPACES.iterdir() if path.name.startswith(prefix))

    def attach(self, machine_namespace: str, address: str) -> None:
        """Make a machine's namespace and connect it; a machine connected elsewhere is moved.

        Args:
            machine_namespace: Begins with the environment's namespace and a dot.
            address: Free host address of the environment's network.

        Raises:
            ConfigurationError: The name or the address does not belong to this environment.
            OutsideError: Another machine has the address, or the kernel refused.
        """
        self._check_machine(machine_namespace, address)
        port = port_name(address)
        is_new = _ensure_namespace(machine_namespace)
        is_connected = not is_new and self._repair(machine_namespace, port)
        commands = []
        if not is_connected:
            commands += [
                f"link add name {port} type veth peer name {INSIDE_LINK} netns {machine_namespace}",
                f"link set dev {port} addrgenmode none",
            ]
        commands += [
            f"link set dev {port} master {BRIDGE}",
            f"link set dev {port} up",
            # Who asked for the address while nobody had it would wait a second to ask again.
            f"neigh replace {address} lladdr {_hardware_address(address)} dev {BRIDGE}"
            " nud permanent",
        ]
        try:
            _batch(self.namespace, commands)
        except OutsideError as error:
            if is_new:
                _remove_namespace(machine_namespace)
            if not is_connected and port in _links(self.namespace):
                raise OutsideError(
                    f"address {address} of {machine_namespace} is in use by another machine",
                    hint="list what is left behind with 'ip netns list'",
                ) from error
            raise
        _batch(
            machine_namespace,
            [
                "link set dev lo up",
                f"link set dev {INSIDE_LINK} address {_hardware_address(address)}",
                # No link-local IPv6 address, hence no wait for duplicate address detection.
                f"link set dev {INSIDE_LINK} addrgenmode none",
                f"addr replace {address}/{self.network.prefixlen} dev {INSIDE_LINK}",
                f"link set dev {INSIDE_LINK} up",
                f"route replace default via {self.gateway}",
                f"neigh replace {self.gateway} lladdr {_hardware_address(self.gateway)}"
                f" dev {INSIDE_LINK} nud permanent",
            ],
        )
        self._await_forwarding(port)

    def detach(self, machine_namespace: str) -> None:
        """Disconnect a machine and remove its namespace; one that is not there is fine.

        Raises:
            ConfigurationError: The name does not belong to this environment.
            OutsideError: The kernel refused.
        """
        self._check_machine(machine_namespace)
        if _is_namespace(machine_namespace):
            # The kernel takes a namespace apart some time after its name has gone. Without this
            # the next machine could find its address still taken.
            _delete_link(machine_namespace, INSIDE_LINK)
        _remove_namespace(machine_namespace)

    def _repair(self, machine_namespace: str, port: str) -> bool:
        """Return whether the machine hangs on `port`; cut it loose if it hangs elsewhere."""
        inside = _links(machine_namespace).get(INSIDE_LINK)
        if inside is None:
            return False
        outside = _links(self.namespace).get(port)
        if outside is not None and outside["link_index"] == inside["ifindex"]:
            # Link numbers repeat in every namespace: it takes the peer's namespace to be sure.
            peers = {
                entry["nsid"]: entry.get("name")
                for entry in _query(self.namespace, "netns", "list-id")
            }
            if peers.get(outside.get("link_netnsid")) == machine_namespace:
                return True
        _delete_link(machine_namespace, INSIDE_LINK)
        return False

    def _await_forwarding(self, port: str) -> None:
        """Wait until the kernel has noticed that the link is up, which it does in its own time.

        A packet sent before that is dropped, and TCP repeats it after a second.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            links = _links(self.namespace)
            state = links[port].get("linkinfo", {}).get("info_slave_data", {}).get("state")
            if state == "forwarding" and links[BRIDGE]["operstate"] == "UP":
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"network namespace {self.namespace}: port {port} is {state or 'not connected'}"
                )
            time.sleep(_POLL_S)

    def _bridge_has_gateway(self, bridge: dict[str, Any]) -> bool:
        return f"{self.gateway}/{self.network.prefixlen}" in _addresses(bridge)

    def _is_gateway_among(self, addresses: Sequence[str]) -> bool:
        return any(one.partition("/")[0] == self.gateway for one in addresses)

    def _check_machine(self, machine_namespace: str, address: str | None = None) -> None:
        if not _NAME.fullmatch(machine_namespace) or not machine_namespace.startswith(
            f"{self.namespace}."
        ):
            raise ConfigurationError(
                f"{machine_namespace!r} does not name a machine of network {self.namespace}"
            )
        if address is None:
            return
        try:
            parsed = ipaddress.IPv4Address(address)
        except ValueError:
            raise ConfigurationError(f"{address!r} is not an IPv4 address") from None
        if (
            parsed not in self.network
            or str(parsed) == self.gateway
            or parsed
            in (
                self.network.network_address,
                self.network.broadcast_address,
            )
        ):
            raise ConfigurationError(
                f"address {address} is not one for machines of network {self.network}"
            )


def port_name(address: str) -> str:
    """Return the name of the bridge's port for a machine's address: `m` and its hexadecimal."""
    return f"m{int(ipaddress.IPv4Address(address)):08x}"


def _hardware_address(address: str) -> str:
    """Return a locally administered hardware address that an IP address alone decides.

    A machine that takes over an address is then reached at once: what its neighbours remember
    about the address stays true.
    """
    return "02:00:" + ipaddress.IPv4Address(address).packed.hex(":")


def _is_namespace(name: str) -> bool:
    """Whether the name stands for a namespace, not for the empty file of a creation cut short."""
    try:
        return namespace_path(name).stat().st_dev == _OWN_NAMESPACE.stat().st_dev
    except FileNotFoundError:
        return False


def _ensure_namespace(name: str) -> bool:
    """Make a namespace unless it exists, and return whether it is new."""
    if _is_namespace(name):
        return False
    namespace_path(name).unlink(missing_ok=True)
    _run(name, "ip", "netns", "add", name)
    return True


def _remove_namespace(name: str) -> None:
    if namespace_path(name).exists():
        _run(name, "ip", "netns", "delete", name)


def _links(namespace: str) -> dict[str, dict[str, Any]]:
    """Return all that `ip addr` reports of each link, by name."""
    return {link["ifname"]: link for link in _query(namespace, "-d", "addr", "show")}


def _delete_link(namespace: str, name: str) -> None:
    """Delete a link, which may vanish by itself meanwhile: its peer's namespace may be ending."""
    if name not in _links(namespace):
        return
    try:
        _batch(namespace, [f"link del dev {name}"])
    except OutsideError:
        if name in _links(namespace):
            raise


def _addresses(link: dict[str, Any]) -> list[str]:
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for entry in link.get("addr_info", ())
        if entry["family"] == "inet"
    ]


def _is_link_up(link: dict[str, Any]) -> bool:
    return "UP" in link["flags"]


def _query(namespace: str, *words: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(
        _run(namespace, "ip", "-n", namespace, "-json", *words).text or "[]"
    )
    return answer


def _batch(namespace: str, commands: Sequence[str]) -> None:
    """Run `ip` commands inside a namespace in one process; the first failure ends it."""
    _run(namespace, "ip", "-n", namespace, "-batch", "-", stdin="\n".join(commands) + "\n")


def _run(namespace: str, *argv: str, stdin: str = "") -> shell.Completed:
    try:
        return shell.run(argv, env=shell.environment(), timeout_s=_TIMEOUT_S, stdin=stdin.encode())
    except OutsideError as error:
        raise type(error)(
            f"network namespace {namespace}: {error.message}", hint=error.hint
        ) from error
