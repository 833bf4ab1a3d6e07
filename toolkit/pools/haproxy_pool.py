"""The pool of one role in one environment's HAProxy.

The backend has a fixed number of slots, which point nowhere and are in maintenance until a machine
gets one. Servers that are added at run time are no way: they take traffic before their first check
(measured on 2.6), and Debian's 2.6.12 can crash over them (haproxy#2298).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from toolkit.errors import ConfigurationError, DeadlineExceeded, OutsideError, Unhealthy
from toolkit.model import Counters, Target
from toolkit.pools import haproxy_socket, host
from toolkit.pools.haproxy import HaproxyProcess
from toolkit.pools.haproxy_config import FREE_ADDRESS, FREE_PORT, PoolConfig, backend_name
from toolkit.pools.haproxy_slot import STATES, Slot, slot_of
from toolkit.pools.haproxy_socket import HaproxySocket

_POLL_S: Final = 0.05

_EXPECTED_ANSWERS: Final = ("IP changed from", "port changed from", "no need to change")

_PASSED: Final = ("L4OK", "L6OK", "L7OK")
"""Of a check that has passed, whichever kind the HAProxy that runs makes: what `service.yml` says
now is not in force before `up`."""

ERROR_COUNTERS = ("hrsp_5xx", "econ", "eresp")
"""5xx answers, connections that failed, connections that broke before an answer."""


class HaproxyPool:
    """A `toolkit.ports.Pool`: the backend of one role in a running HAProxy.

    Args:
        balancer: The environment's HAProxy.
        config: The pool's part of that HAProxy's configuration.
    """

    def __init__(self, *, balancer: HaproxyProcess, config: PoolConfig) -> None:
        self._balancer = balancer
        self._role = config.role
        self._declared = config.slots
        self._backend = backend_name(config.role)
        self._machine_port = config.machine_port

    def targets(self) -> Sequence[Target]:
        """Return the slots in use, as HAProxy reports them; see `toolkit.ports.Pool`."""
        return [
            Target(
                slot=slot.name,
                address=slot.address,
                state=STATES[slot.admin],
                is_healthy=slot.is_up,
                sessions=slot.sessions,
                percent=100.0 * slot.weight / slot.whole_weight,
            )
            for slot in self._slots()
            if slot.is_taken or slot.is_held
        ]

    def register(self, addresses: Collection[str]) -> None:
        """Give each address a slot, unless it has one; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: There are fewer free slots than addresses; nothing was changed.
            ConfigurationError: The role's machines have another port than it is said to have now;
                nothing was changed.
        """
        slots = self._slots()
        taken = {slot.address for slot in slots if slot.is_taken}
        new = [address for address in dict.fromkeys(addresses) if address not in taken]
        if new:
            self._need_same_port(slots)
        free = [slot for slot in slots if not slot.is_taken]
        if len(new) > len(free):
            raise OutsideError(
                f"pool {self._role} has {len(free)} free slots, {len(new)} are needed",
                hint=f"'toolkit up' gives the balancer its present configuration, which declares "
                f"{self._declared}; it runs with {len(slots)}",
            )
        commands: list[str] = []
        for address, slot in _assign(new, free):
            server = self._server(slot)
            commands += [
                # HAProxy takes a server that leaves maintenance for healthy before any check. It
                # gets its address only when it is seen as down, and then needs two passed checks,
                # of which at most one was on its way to the machine that had the slot before.
                f"set server {server} state drain",
                f"set server {server} health down",
                f"set server {server} addr {address} port {self._machine_port}",
                f"set server {server} weight 100%",
            ]
        self._change(commands)

    def await_healthy(self, addresses: Collection[str], *, deadline_s: float) -> None:
        """Wait until HAProxy's checks since `register` pass; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: An address has no slot.
            Unhealthy: One did not pass in time; the message says what the check saw.
        """
        missing: list[Slot] = []

        def are_healthy() -> bool:
            nonlocal missing
            missing = [
                slot
                for slot in self._require(addresses)
                if not (slot.is_up and slot.has_full_health and slot.check in _PASSED)
            ]
            return not missing

        if not host.wait(are_healthy, timeout_s=deadline_s, poll_s=_POLL_S):
            seen = "; ".join(f"{slot.address}: {self._describe(slot)}" for slot in missing)
            raise Unhealthy(
                f"pool {self._role}: not healthy after {deadline_s:g} s: {seen}",
                hint="the health check asks the machines' own port; see the machines' logs",
                addresses=[slot.address for slot in missing],
            )

    def admit(self, addresses: Collection[str]) -> None:
        """Let new requests reach the addresses; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: An address has no slot; nothing was changed.
        """
        self._change(
            [f"set server {self._server(slot)} state ready" for slot in self._require(addresses)]
        )

    def weigh(self, addresses: Collection[str], percent: float) -> None:
        """Set the addresses' share of new requests; see `toolkit.ports.Pool`.

        Raises:
            OutsideError: An address has no slot; nothing was changed.
        """
        self._change(
            [
                f"set server {self._server(slot)} weight {percent:g}%"
                for slot in self._require(addresses)
            ]
        )

    def counters(self) -> Mapping[str, Counters]:
        """Return HAProxy's own counters by address; see `toolkit.ports.Pool`.

        They go on counting when a slot changes hands: compare two readings. Response times are an
        average over a slot's last requests, whoever answered them: see `count_anew`.
        """
        return {
            slot.address: Counters(
                requests=_number(counts, "stot"),
                errors=sum(_number(counts, name) for name in ERROR_COUNTERS),
                response_ms=float(_number(counts, "rtime")),
            )
            for slot, counts in self._rows(self._balancer.admin)
            if slot.is_taken
        }

    def count_anew(self) -> None:
        """Have all counters begin at zero; see `toolkit.ports.Pool`.

        HAProxy can do that for all its pools at once only.
        """
        self._balancer.admin.ask(["clear counters all"])

    def drain(self, addresses: Collection[str]) -> None:
        """Let no new request reach the addresses; see `toolkit.ports.Pool`.

        Workers that a reload has replaced need not be told: they close every HTTP connection after
        the request that is running on it (measured).
        """
        self._change(
            [
                f"set server {self._server(slot)} state drain"
                for slot in self._slots()
                if slot.is_taken and slot.address in addresses
            ]
        )

    def await_drained(self, addresses: Collection[str], *, deadline_s: float) -> bool:
        """Wait until HAProxy carries nothing for the addresses; see `toolkit.ports.Pool`.

        Workers that a reload has replaced are asked too: the current one does not count what they
        still carry.
        """

        def carried() -> Iterator[Slot]:
            yield from self._slots()
            for worker in self._balancer.leaving_workers():
                yield from self._slots_of_leaving(worker)

        def are_drained() -> bool:
            return not any(slot.sessions for slot in carried() if slot.address in addresses)

        return host.wait(are_drained, timeout_s=deadline_s, poll_s=_POLL_S)

    def deregister(self, addresses: Collection[str]) -> None:
        """Free the slots of the addresses; see `toolkit.ports.Pool`.

        Slots that a command cut short has left half-way are reset too.
        """
        commands: list[str] = []
        for slot in self._slots():
            if slot.address not in addresses and (slot.is_taken or slot.is_held or slot.is_reset):
                continue
            server = self._server(slot)
            commands += [
                # Maintenance comes after the address has gone: HAProxy drops the rest of a line
                # whose client has ended (seen on 2.6.12), and what that leaves must not look as
                # if an operator had put the machine into maintenance.
                f"set server {server} state drain",
                f"set server {server} addr {FREE_ADDRESS} port {FREE_PORT}",
                f"set server {server} state maint",
                f"set server {server} weight 100%",
            ]
        self._change(commands)

    def snapshot(self) -> str:
        """Return one line for each slot: name, address, port, weight and what HAProxy was told.

        Nothing in it changes unless somebody changes the pool: two equal snapshots prove that what
        happened in between has left the pool as it was.
        """
        return "".join(
            f"{slot.name} {slot.address}:{slot.port} {slot.weight} {slot.admin.value}\n"
            for slot in sorted(self._slots(), key=lambda slot: slot.name)
        )

    def _need_same_port(self, slots: Sequence[Slot]) -> None:
        """Refuse another port beside machines: which of the two a machine has is not known."""
        ports = {slot.port for slot in slots if slot.is_taken or slot.is_held}
        others = ", ".join(str(port) for port in sorted(ports - {self._machine_port}))
        if others:
            raise ConfigurationError(
                f"pool {self._role}: its machines have port {others}, and service.yml says "
                f"{self._machine_port} now",
                hint="give the role its earlier port again; another port is for a role of its own",
            )

    def _server(self, slot: Slot) -> str:
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

    def _require(self, addresses: Collection[str]) -> list[Slot]:
        slots = self._slots()
        found = {slot.address: slot for slot in slots if slot.is_taken}
        unknown = sorted(set(addresses) - set(found))
        held = sorted({slot.address for slot in slots if slot.is_held}.intersection(unknown))
        if held:
            raise OutsideError(
                f"pool {self._role}: {', '.join(held)} was put into maintenance at the balancer"
            )
        if unknown:
            raise OutsideError(f"pool {self._role} has no slot for {', '.join(unknown)}")
        return [found[address] for address in dict.fromkeys(addresses)]

    def _slots(self) -> list[Slot]:
        return [slot for slot, _ in self._rows(self._balancer.admin)]

    def _slots_of_leaving(self, worker: HaproxySocket) -> list[Slot]:
        """Return the slots as a worker reports them that may end at any moment: none if it has."""
        try:
            return [slot for slot, _ in self._rows(worker)]
        except DeadlineExceeded:
            raise
        except OutsideError:
            return []

    def _rows(self, worker: HaproxySocket) -> list[tuple[Slot, dict[str, str]]]:
        """Return the slots as a worker reports them, each with its row of `show stat`."""
        answer = worker.ask(
            [f"show servers state {self._backend}", f"show stat {self._backend} 4 -1"]
        )
        if haproxy_socket.is_backend_unknown(answer):
            # The role is new in the environment, and `up` has not been run since.
            return []
        counts = {row["svname"]: row for row in haproxy_socket.parse_stat(answer)}
        return [
            (slot_of(row, counts[row["srv_name"]]), counts[row["srv_name"]])
            for row in haproxy_socket.parse_servers_state(answer)
        ]

    def _describe(self, slot: Slot) -> str:
        if slot.check in ("", "INI"):
            return "no check has ended yet"
        if slot.check in _PASSED:
            return "too few checks have passed since it was registered"
        return f"{slot.check} {slot.detail}".strip()


def _assign(addresses: Sequence[str], free: Sequence[Slot]) -> Iterator[tuple[str, Slot]]:
    """Choose a slot for each address: the one held for it, or else one that is held for nobody.

    One that is held for another machine is taken last.
    """
    held = {slot.address: slot for slot in free if slot.is_held and slot.address in addresses}
    others = (slot for slot in free if slot not in held.values())
    rest = iter(sorted(others, key=lambda slot: slot.is_held))
    for address in addresses:
        yield address, held.get(address) or next(rest)


def _number(row: dict[str, str], name: str) -> int:
    return int(row.get(name) or 0)
