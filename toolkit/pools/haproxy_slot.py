"""One slot of a pool, as a worker of HAProxy reports it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from toolkit.model import TargetState
from toolkit.pools import haproxy_socket
from toolkit.pools.haproxy_config import FREE_ADDRESS, FREE_PORT


class Admin(StrEnum):
    """What HAProxy was told to do with a slot."""

    MAINTENANCE = "maint"
    DRAIN = "drain"
    READY = "ready"


STATES: Final = {
    Admin.MAINTENANCE: TargetState.MAINTENANCE,
    Admin.DRAIN: TargetState.DRAINING,
    Admin.READY: TargetState.READY,
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as a worker reports it.

    Attributes:
        name: Of the server in the configuration.
        address: IP address, `FREE_ADDRESS` if nobody has the slot.
        port: Where the slot points.
        weight: Share of the traffic.
        whole_weight: The same as it is configured.
        admin: What HAProxy was told.
        is_up: HAProxy's own verdict after enough checks.
        has_full_health: Whether no check has failed since it was seen as healthy. One that
            has left maintenance without having been checked has less.
        check: Status of the last check that has ended, such as `L7OK`.
        detail: What the last check saw, as far as HAProxy says.
        sessions: Running and queued.
    """

    name: str
    address: str
    port: int
    weight: int
    whole_weight: int
    admin: Admin
    is_up: bool
    has_full_health: bool
    check: str
    detail: str
    sessions: int

    @property
    def is_reset(self) -> bool:
        """Whether nothing is left of whoever had the slot."""
        return self.admin is Admin.MAINTENANCE and self._points_nowhere

    @property
    def is_taken(self) -> bool:
        """Whether a machine has the slot.

        A state alone, without an address, is what a command cut short has left.
        """
        return self.admin is not Admin.MAINTENANCE and not self._points_nowhere

    @property
    def is_held(self) -> bool:
        """Whether a machine's slot is in maintenance, as nobody but an operator leaves it.

        Who frees a slot takes its address away first.
        """
        return self.admin is Admin.MAINTENANCE and not self._points_nowhere

    @property
    def _points_nowhere(self) -> bool:
        return self.address == FREE_ADDRESS and self.port == FREE_PORT


def slot_of(row: dict[str, str], counts: dict[str, str]) -> Slot:
    """Return a slot from its rows of `show servers state` and of `show stat`."""
    flags = int(row["srv_admin_state"])
    if flags & haproxy_socket.ADMIN_MAINTENANCE:
        admin = Admin.MAINTENANCE
    elif flags & haproxy_socket.ADMIN_DRAIN:
        admin = Admin.DRAIN
    else:
        admin = Admin.READY
    words = (counts["check_desc"], counts["check_code"], counts["last_chk"])
    return Slot(
        name=row["srv_name"],
        address=row["srv_addr"],
        port=int(row["srv_port"]),
        weight=int(row["srv_uweight"]),
        whole_weight=int(row["srv_iweight"]),
        admin=admin,
        is_up=row["srv_op_state"] != haproxy_socket.OPERATION_STOPPED,
        has_full_health=int(row["srv_check_health"])
        >= int(counts["check_rise"] or 0) + int(counts["check_fall"] or 0) - 1,
        check=counts["check_status"].removeprefix("* "),
        detail=" ".join(word for word in words if word),
        sessions=int(counts["scur"]) + int(counts["qcur"]),
    )
