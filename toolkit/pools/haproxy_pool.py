"""The pool of one role in one environment's HAProxy.

The backend has a fixed number of slots, which point nowhere and are in maintenance until a machine
gets one. Servers that are added at run time are no way: they take traffic before their first check
(measured on 2.6), and Debian's 2.6.12 can crash over them (haproxy#2298).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from toolkit.errors import DeadlineExceeded, OutsideError
from toolkit.model import Target, TargetState
from toolkit.pools import haproxy_socket
from toolkit.pools.haproxy import HaproxyProcess
from toolkit.pools.haproxy_config import FREE_ADDRESS, FREE_PORT, Protocol, backend_name
from toolkit.pools.haproxy_socket import HaproxySocket

_POLL_S: Final = 0.05

# Bits of srv_admin_state and values of srv_op_state, from HAProxy's management guide.
_ADMIN_MAINTENANCE: Final = 0x01 | 0x02 | 0x20 | 0x40
_ADMIN_DRAIN: Final = 0x08 | 0x10
_OPERATION_STOPPED: Final = "0"

_EXPECTED_ANSWERS: Final = ("IP changed from", "port changed from", "no need to change")


class _Admin(StrEnum):
    """What HAProxy was told to do with a slot."""

    MAINTENANCE = "maint"
    DRAIN = "drain"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class _Slot:
    """A slot as a worker reports it.

    Attributes:
        name: Of the server in the configuration.
        address: IP address, `FREE_ADDRESS` if nobody has the slot.
        port: Where the slot points.
        weight: Share of the traffic.
        admin: What HAProxy was told.
        is_up: HAProxy's own verdict after enough checks.
        check: Status and detail of the last check, such as `L7OK`; prefixed `* ` during a check.
        detail: What the last check saw, as far as HAProxy says.
        sessions: Running and queued.
    """

    name: str
    address: str
    port: int
    weight: str
    admin: _Admin
    is_up: bool
    check: str
    detail: str
    sessions: int

    @property
    def is_free(self) -> bool:
        return self.address == FREE_ADDRESS and self.port == FREE_PORT


class HaproxyPool:
    """A `toolkit.ports.Pool`: the backend of one role in a running HAProxy.

    Args:
        balancer: The environment's HAProxy.
        role: Names the backend.
        machine_port: Where the role's machines listen.
        protocol: As in the backend's configuration.
    """

    def __init__(
        self, *, balancer: HaproxyProcess, role: str, machine_port: int, protocol: Protocol
    ) -> None:
        self._balancer = balancer
        self._role = role
        self._backend = backend_name(role)
        self._machine_port = machine_port
        self._passed = "L4OK" if protocol is Protocol.TCP else "L7OK"

    def targets(self) -> Sequence[Target]:
        """Return the slots in use, as HAProxy reports them; see `toolkit.ports.Pool`."""
        return [
            Target(
                slot=slot.name,
                address=slot.address,
                state=TargetState.READY if slot.admin is _Admin.READY else TargetState.DRAINING,
                is_healthy=slot.is_up,
                sessions=slot.sessions,
            )
            for slot in self._slots()
            if not slot.is_free and slot.admin is not _Admin.MAINTENANCE
        ]

    def register(self, addresses: Collection[str]) -> None:
        """Give each address a slot; see `toolkit.ports.Pool`. One that has a slot keeps it as it is.

        Raises:
            OutsideError: There are fewer free slots than addresses; nothing was changed.
        """
        slots = self._slots()
        taken = {slot.address for slot in slots if slot.admin is not _Admin.MAINTENANCE}
        new = [address for address in dict.fromkeys(addresses) if address not in taken]
        # A slot in maintenance that has an address is what a crash between two commands leaves.
        free = [slot for slot in slots if slot.admin is _Admin.MAINTENANCE]
        if len(new) > len(free):
            raise OutsideError(
                f"pool {self._role} has {len(free)} free slots, {len(new)} are needed",
                hint=f"raise the number of slots of {self._role}, now {len(slots)}",
            )
        commands: list[str] = []
        for address, slot in zip(new, free, strict=False):
            server = self._server(slot)
            commands += [
                f"set server {server} addr {address} port {self._machine_port}",
                f"set server {server} state drain",
                # HAProxy takes a server that leaves maintenance for healthy before any check. Seen
                # as down, it needs two passed checks, of which at most one was on its way to the
                # machine that had the slot before.
                f"set server {server} health down",
            ]
        self._change(commands)

    def await_healthy(self, addresses: Collection[str], *, deadline_s: float) -> None:
        """Wait until HAProxy's checks since `register` pass; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: An address has no slot.
            DeadlineExceeded: One did not pass in time; the message says what the check saw.
        """
        missing: list[_Slot] = []

        def are_healthy() -> bool:
            nonlocal missing
            missing = [
                slot
                for slot in self._require(addresses)
                if not (slot.is_up and slot.check.removeprefix("* ") == self._passed)
            ]
            return not missing

        if not _wait(are_healthy, deadline_s=deadline_s):
            seen = "; ".join(f"{slot.address}: {self._describe(slot)}" for slot in missing)
            raise DeadlineExceeded(
                f"pool {self._role}: not healthy after {deadline_s:g} s: {seen}",
                hint="the health check asks the machines' own port; see the machines' logs",
            )

    def admit(self, addresses: Collection[str]) -> None:
        """Let new requests reach the addresses; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: An address has no slot; nothing was changed.
        """
        commands: list[str] = []
        for slot in self._require(addresses):
            server = self._server(slot)
            commands += [f"set server {server} weight 100%", f"set server {server} state ready"]
        self._change(commands)

    def drain(self, addresses: Collection[str]) -> None:
        """Let no new request reach the addresses; see `toolkit.ports.Pool`."""
        self._set_state(addresses, _Admin.DRAIN)

    def await_drained(self, addresses: Collection[str], *, deadline_s: float) -> bool:
        """Wait until HAProxy carries nothing for the addresses; see `toolkit.ports.Pool`.

        Workers that a reload has replaced are asked too: the current one does not count what they
        still carry.
        """

        def are_drained() -> bool:
            return not any(
                slot.sessions
                for worker in (self._balancer.admin, *self._balancer.leaving_workers())
                for slot in self._slots_of(worker, is_leaving=worker is not self._balancer.admin)
                if slot.address in addresses
            )

        return _wait(are_drained, deadline_s=deadline_s)

    def deregister(self, addresses: Collection[str]) -> None:
        """Free the slots of the addresses; see `toolkit.ports.Pool`."""
        self._set_state(addresses, _Admin.MAINTENANCE)

    def snapshot(self) -> str:
        """Return one line for each slot: name, address, port, weight and what HAProxy was told.

        Nothing in it changes unless somebody changes the pool: two equal snapshots prove that what
        happened in between has left the pool as it was.
        """
        return "".join(
            f"{slot.name} {slot.address}:{slot.port} {slot.weight} {slot.admin.value}\n"
            for slot in sorted(self._slots(), key=lambda slot: slot.name)
        )

    def _set_state(self, addresses: Collection[str], state: _Admin) -> None:
        """Set the state of the addresses' slots, in leaving workers first.

        Those keep connections on which a client may still send requests, and nobody tells them
        what the new worker is told.
        """
        for worker in self._balancer.leaving_workers():
            slots = self._slots_of(worker, is_leaving=True)
            commands = self._state_commands(slots, addresses, state)
            if commands:
                _ask_leaving(worker, commands)
        self._change(self._state_commands(self._slots(), addresses, state))

    def _state_commands(
        self, slots: Iterable[_Slot], addresses: Collection[str], state: _Admin
    ) -> list[str]:
        commands: list[str] = []
        for slot in slots:
            if slot.address not in addresses or slot.is_free:
                continue
            server = self._server(slot)
            if state is _Admin.MAINTENANCE:
                commands += [
                    f"set server {server} state maint",
                    f"set server {server} addr {FREE_ADDRESS} port {FREE_PORT}",
                    f"set server {server} weight 100%",
                ]
            elif slot.admin is not _Admin.MAINTENANCE:
                commands.append(f"set server {server} state {state.value}")
        return commands

    def _server(self, slot: _Slot) -> str:
        return f"{self._backend}/{slot.name}"

    def _change(self, commands: Sequence[str]) -> None:
        """Send commands that print nothing or what is expected, and keep the outcome."""
        if not commands:
            return
        answer = self._balancer.admin.ask([*commands, "show servers state"])
        printed, separator, table = answer.partition("\n1\n# be_id ")
        for line in printed.splitlines():
            if line and not line.startswith(_EXPECTED_ANSWERS):
                raise OutsideError(f"pool {self._role}: haproxy refused a command: {line}")
        if not separator:
            raise OutsideError(f"pool {self._role}: haproxy did not report its state")
        self._balancer.remember(f"1\n# be_id {table}")

    def _require(self, addresses: Collection[str]) -> list[_Slot]:
        found = {
            slot.address: slot for slot in self._slots() if slot.admin is not _Admin.MAINTENANCE
        }
        unknown = sorted(set(addresses) - set(found))
        if unknown:
            raise OutsideError(f"pool {self._role} has no slot for {', '.join(unknown)}")
        return [found[address] for address in dict.fromkeys(addresses)]

    def _slots(self) -> list[_Slot]:
        return self._slots_of(self._balancer.admin)

    def _slots_of(self, worker: HaproxySocket, *, is_leaving: bool = False) -> list[_Slot]:
        """Return the slots as a worker reports them; none if it was leaving and has left."""
        commands = [f"show servers state {self._backend}", f"show stat {self._backend} 4 -1"]
        answer = _ask_leaving(worker, commands) if is_leaving else worker.ask(commands)
        if is_leaving and "# pxname," not in answer:
            return []
        counts = {row["svname"]: row for row in haproxy_socket.parse_stat(answer)}
        return [
            _slot(row, counts[row["srv_name"]])
            for row in haproxy_socket.parse_servers_state(answer)
        ]

    def _describe(self, slot: _Slot) -> str:
        check = slot.check.removeprefix("* ")
        if check in ("", "INI"):
            return "no check has ended yet"
        if check == self._passed:
            return "too few checks have passed since it was registered"
        return f"{check} {slot.detail}".strip()


def _slot(row: dict[str, str], counts: dict[str, str]) -> _Slot:
    flags = int(row["srv_admin_state"])
    if flags & _ADMIN_MAINTENANCE:
        admin = _Admin.MAINTENANCE
    elif flags & _ADMIN_DRAIN:
        admin = _Admin.DRAIN
    else:
        admin = _Admin.READY
    words = (counts.get("check_code", ""), counts.get("check_desc", ""), counts.get("last_chk", ""))
    return _Slot(
        name=row["srv_name"],
        address=row["srv_addr"],
        port=int(row["srv_port"]),
        weight=row["srv_uweight"],
        admin=admin,
        is_up=row["srv_op_state"] != _OPERATION_STOPPED,
        check=counts["check_status"],
        detail=" ".join(word for word in words if word),
        sessions=int(counts["scur"]) + int(counts["qcur"]),
    )


def _ask_leaving(worker: HaproxySocket, commands: Sequence[str]) -> str:
    """Ask a worker that may end at any moment; an empty answer stands for one that has."""
    try:
        return worker.ask(commands)
    except DeadlineExceeded:
        raise
    except OutsideError:
        return ""


def _wait(is_done: Callable[[], bool], *, deadline_s: float) -> bool:
    """Ask at once, then every 50 ms until it is so or the deadline has passed."""
    deadline = time.monotonic() + deadline_s
    while not is_done():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        time.sleep(min(_POLL_S, remaining))
    return True
