"""One writer for each environment at a time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from toolkit.errors import LeaseHeld, ToolkitError
from toolkit.ledger import tables
from toolkit.ledger.ledger import Ledger, operator
from toolkit.machines.processes import ProcessId, identify

TIME_TO_LIVE_S = 900.0
"""Longer than the longest effect; renewed before each."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change one environment, until another epoch begins.

    Attributes:
        ledger: Where it is kept.
        environment: What may be changed.
        epoch: Rises with every holder.
    """

    ledger: Ledger
    environment: str
    epoch: int

    def renew(self) -> None:
        """Make sure that the lease is still held, and hold it for longer.

        Raises:
            LeaseHeld: Another holder took over.
        """
        table = tables.leases
        with self.ledger.transaction() as connection:
            done = connection.execute(
                update(table)
                .where(table.c.environment == self.environment, table.c.epoch == self.epoch)
                .values(expires=time.time() + TIME_TO_LIVE_S)
            )
        if done.rowcount != 1:
            raise LeaseHeld(f"the lease of {self.environment} was taken over by another process")


@contextmanager
def held(ledger: Ledger, environment: str, *, doing: str) -> Iterator[Lease]:
    """Hold the lease of an environment while the body runs.

    Args:
        ledger: Where leases are kept.
        environment: What is to be changed.
        doing: What for; others are told.

    Raises:
        LeaseHeld: Another process holds it; the message says who, what and until when.
    """
    lease = _acquire(ledger, environment, doing)
    try:
        yield lease
    finally:
        table = tables.leases
        with ledger.transaction() as connection:
            connection.execute(
                update(table)
                .where(table.c.environment == environment, table.c.epoch == lease.epoch)
                .values(expires=0.0)
            )


def _acquire(ledger: Ledger, environment: str, doing: str) -> Lease:
    table = tables.leases
    process = identify(os.getpid())
    now = time.time()
    with ledger.transaction() as connection:
        row = (
            connection.execute(select(table).where(table.c.environment == environment))
            .mappings()
            .first()
        )
        if row is not None and row["expires"] > now and not _is_dead(row["host"], row["process"]):
            raise LeaseHeld(
                f"{environment} is being changed by {row['owner']}: {row['doing']}, since "
                f"{int(now - row['since'])} s; the lease runs out in {int(row['expires'] - now)} s",
                hint="wait until it has ended, then try again",
            )
        values = {
            "epoch": row["epoch"] + 1 if row is not None else 1,
            "owner": operator(),
            "process": str(process),
            "host": socket.gethostname(),
            "doing": doing,
            "since": now,
            "expires": now + TIME_TO_LIVE_S,
        }
        if row is None:
            connection.execute(insert(table).values(environment=environment, **values))
        else:
            connection.execute(
                update(table).where(table.c.environment == environment).values(**values)
            )
    epoch = values["epoch"]
    if not isinstance(epoch, int):
        raise ToolkitError("the ledger holds a lease without an epoch")
    return Lease(ledger, environment, epoch)


def _is_dead(host: str, process: str) -> bool:
    """Whether the holder was a process of this host that has ended."""
    if host != socket.gethostname():
        return False
    try:
        pid, started, boot = process.split()
        return not ProcessId(int(pid), int(started), boot).is_alive
    except ValueError:
        return True
