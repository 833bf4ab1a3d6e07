"""One writer for each environment at a time.

A lease has an epoch that rises with every holder. Each transaction of a holder first makes sure
that its epoch is still the current one, so that a holder that was taken over, after having been
stopped for long, writes nothing any more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from toolkit import shell
from toolkit.clock import host_uptime
from toolkit.errors import LeaseHeld, OutsideError
from toolkit.ledger import tables
from toolkit.ledger.ledger import Ledger, operator
from toolkit.machines.processes import ProcessId, identify, parse_process

TIME_TO_LIVE_S = 900.0
"""Longer than the longest effect that has no deadline of its own in an environment's definition;
every write renews it."""

POLL_S = 0.2

RELEASED = 0.0
"""When a lease runs out that its holder has let go of."""

EXPIRY = (
    update(tables.leases)
    .where(tables.leases.c.environment == bindparam("of"), tables.leases.c.epoch == bindparam("at"))
    .values(expires=bindparam("wall"), expires_uptime=bindparam("up"))
)
"""Sets when a lease runs out, if its epoch is still the current one."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change one environment, until another epoch begins.

    Attributes:
        environment: What may be changed.
        epoch: Rises with every holder.
        ledger: Refuses to write as soon as the lease is lost.
    """

    environment: str
    epoch: int
    ledger: Ledger

    def renew(self) -> None:
        """Hold it for its whole time to live from now on.

        Raises:
            LeaseHeld: It was lost.
        """
        with self.ledger.transaction():
            pass


@contextmanager
def held(
    ledger: Ledger,
    environment: str,
    *,
    doing: str,
    wait_s: float = 0.0,
    longest_effect_s: float = 0.0,
    tell: Callable[[str], None] = lambda _message: None,
) -> Iterator[Lease]:
    """Hold the lease of an environment while the body runs.

    Args:
        ledger: Where leases are kept.
        environment: What is to be changed.
        doing: What for; others are told.
        wait_s: How long to queue for it.
        longest_effect_s: How long may pass between two writes.
        tell: Hears once for whom it waits.

    Raises:
        LeaseHeld: Another process holds it; the message says who, what and until when.
    """
    for_s = max(TIME_TO_LIVE_S, 2 * longest_effect_s)
    epoch = _acquire(ledger, environment, doing, wait_s=wait_s, for_s=for_s, tell=tell)

    def guard(connection: Connection) -> None:
        _renew(connection, environment, epoch, for_s=for_s)

    try:
        yield Lease(environment, epoch, ledger.guarded(guard))
    finally:
        _release(ledger, environment, epoch)


def is_free(row: Mapping[str, Any], *, host: str, boot: str, now: float, uptime: float) -> bool:
    """Whether a lease may be taken. Pure but for asking whether a process of this host lives.

    On the holder's own host the time since its start counts, which nobody can set; elsewhere only
    the clock can be compared.

    Args:
        row: The lease.
        host: This host.
        boot: Identity of this host's start.
        now: Seconds since the epoch.
        uptime: Seconds since this host's start.
    """
    if row["host"] != host:
        return bool(row["expires"] <= now)
    process = parse_process(row["process"])
    if process is None or process.boot != boot or row["expires_uptime"] <= uptime:
        return True
    return not process.is_alive


def _acquire(
    ledger: Ledger,
    environment: str,
    doing: str,
    *,
    wait_s: float,
    for_s: float,
    tell: Callable[[str], None],
) -> int:
    deadline = time.monotonic() + wait_s
    is_told = False
    while True:
        try:
            with ledger.transaction() as connection:
                return _take(connection, environment, doing, for_s=for_s)
        except LeaseHeld as held:
            if time.monotonic() >= deadline:
                raise
            if not is_told:
                tell(f"{held.message}; waiting for {wait_s:g} s at most")
                is_told = True
            time.sleep(POLL_S)


def _take(connection: Connection, environment: str, doing: str, *, for_s: float) -> int:
    table = tables.leases
    process = identify(os.getpid()) or ProcessId(os.getpid(), 0, "")
    now, uptime = time.time(), host_uptime()
    row = (
        connection.execute(select(table).where(table.c.environment == environment))
        .mappings()
        .first()
    )
    if row is not None and not is_free(
        dict(row), host=socket.gethostname(), boot=process.boot, now=now, uptime=uptime
    ):
        left = row["expires_uptime"] - uptime
        raise LeaseHeld(
            f"{environment} is being changed by {row['owner']} ({row['doing']}, process "
            f"{row['process'].split()[0]}) since {max(now - row['since'], 0):.0f} s; "
            f"the lease runs out in {left:.0f} s unless it is renewed",
            hint="wait until it has ended, or queue for it with --wait SECONDS",
        )
    if row is not None:
        _fence(dict(row), process)
    epoch: int = row["epoch"] + 1 if row is not None else 1
    values = {
        "epoch": epoch,
        "owner": operator(),
        "process": str(process),
        "host": socket.gethostname(),
        "doing": doing,
        "since": now,
        "expires": now + for_s,
        "expires_uptime": uptime + for_s,
    }
    if row is None:
        connection.execute(insert(table).values(environment=environment, **values))
    else:
        connection.execute(update(table).where(table.c.environment == environment).values(**values))
    return epoch


def _fence(row: Mapping[str, Any], process: ProcessId) -> None:
    """End what a holder that did not let go has left running: it would act beside us.

    This comes before the lease changes hands, after which nobody knows that holder any more.
    """
    holder = parse_process(row["process"])
    is_let_go = row["expires"] == RELEASED
    if is_let_go or holder is None or holder == process or row["host"] != socket.gethostname():
        return
    shell.end_children(holder)


def _renew(connection: Connection, environment: str, epoch: int, *, for_s: float) -> None:
    until = {"wall": time.time() + for_s, "up": host_uptime() + for_s}
    done = connection.execute(EXPIRY, {"of": environment, "at": epoch, **until})
    if done.rowcount != 1:
        raise LeaseHeld(
            f"the lease of {environment} was taken over by another process",
            hint=f"'toolkit status {environment}' shows what became of it",
        )


def _release(ledger: Ledger, environment: str, epoch: int) -> None:
    until = {"wall": RELEASED, "up": RELEASED}
    try:
        with ledger.transaction() as connection:
            connection.execute(EXPIRY, {"of": environment, "at": epoch, **until})
    except OutsideError:
        # A full disk, say. What brought it up is on its way; the lease of a process that has
        # ended is free anyway.
        return
