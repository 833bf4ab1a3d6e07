"""The ledger: what was done, by whom, from what, and what is meant to exist."""

from __future__ import annotations

import getpass
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from toolkit.errors import OutsideError
from toolkit.ledger import tables
from toolkit.ledger.chain import GENESIS, entry_hash, first_break

RECORDED: ColumnElement[int] = literal_column("rowid")
"""The order in which rows came, whatever the clock said."""

LAST_ENTRY = (
    select(tables.entries.c.sequence, tables.entries.c.hash)
    .order_by(tables.entries.c.sequence.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine that is meant to exist.

    Attributes:
        name: Its name.
        environment: Where it belongs.
        role: Its kind.
        image: Digest of its image.
        release: The release it came with, if it came with one.
        address: IP address within the environment.
        standing: `new` until its smoke tests have passed, then `member` of its pool; `warm` when
            it is drained and kept for a quick way back.
        inputs: Digest over its configuration and the versions of its secrets.
        since: When it was first launched, seconds since the epoch.
        warm_until: Until when it is kept warm, seconds since the host's start, with which it ends.
    """

    name: str
    environment: str
    role: str
    image: str
    release: str | None
    address: str
    standing: str
    inputs: str
    since: float
    warm_until: float | None = None

    @property
    def is_member(self) -> bool:
        """Whether it belongs to its pool."""
        return self.standing == "member"

    @property
    def is_warm(self) -> bool:
        """Whether it is kept for a quick way back."""
        return self.standing == "warm"


@dataclass(frozen=True, slots=True)
class RollRecord:
    """One roll of one role.

    Attributes:
        id: Name of the roll.
        environment: Where.
        role: Which role.
        image: Digest of the image rolled in.
        release: The release it belongs to.
        previous: Digest of the image that served before.
        outcome: `running`, `rolled`, `discarded`, `rolled-back`, `unchanged`, `left` or
            `failed`.
        by: Who started it.
        started: Seconds since the epoch.
        ended: Seconds since the epoch, or None while it runs.
        order: Plan and machines, as plain data: what resuming or undoing needs.
        is_rollback: Whether the operator went back because of the image that served before.
    """

    id: str
    environment: str
    role: str
    image: str
    release: str | None
    previous: str | None
    outcome: str
    by: str
    started: float
    ended: float | None
    order: Mapping[str, Any]
    is_rollback: bool = False


class Ledger:
    """One database file. Every method is one transaction.

    Args:
        engine: Made by `open_ledger`.
        guard: Called within every transaction before anything else; it raises to refuse.
    """

    def __init__(self, engine: Engine, guard: Callable[[Connection], None] | None = None) -> None:
        self._engine = engine
        self._guard = guard

    def guarded(self, guard: Callable[[Connection], None]) -> Ledger:
        """Return the same ledger, every transaction of which `guard` may refuse."""
        return Ledger(self._engine, guard)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection within one transaction.

        Raises:
            OutsideError: The database refuses, a full disk for instance; nothing was written.
        """
        try:
            with self._engine.begin() as connection:
                if self._guard:
                    self._guard(connection)
                yield connection
        except DatabaseError as error:
            raise OutsideError(
                f"the ledger could not be used: {error.orig}",
                hint=_hint(error),
            ) from None

    def append(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        environment: str | None = None,
        role: str | None = None,
        roll: str | None = None,
    ) -> None:
        """Add an entry to the chain."""
        with self.transaction() as connection:
            append_entry(connection, kind, data, environment=environment, role=role, roll=roll)

    def entries(
        self,
        *,
        environment: str | None = None,
        role: str | None = None,
        kinds: Sequence[str] = (),
        without: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return entries, newest first."""
        query = select(tables.entries).order_by(tables.entries.c.sequence.desc())
        if environment:
            query = query.where(tables.entries.c.environment == environment)
        if role:
            query = query.where(tables.entries.c.role == role)
        if kinds:
            query = query.where(tables.entries.c.kind.in_(kinds))
        if without:
            query = query.where(tables.entries.c.kind.not_in(without))
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def first_break(self) -> int | None:
        """Return where the chain is broken, or None when it is whole."""
        query = select(tables.entries).order_by(tables.entries.c.sequence)
        with self.transaction() as connection:
            return first_break(dict(row) for row in connection.execute(query).mappings())

    def is_up(self, environment: str) -> bool:
        """Whether an environment is meant to be up."""
        query = select(tables.environments).where(tables.environments.c.name == environment)
        with self.transaction() as connection:
            return connection.execute(query).first() is not None

    def set_up(self, environment: str, *, is_up: bool) -> None:
        """Record whether an environment is meant to be up."""
        table = tables.environments
        with self.transaction() as connection:
            connection.execute(delete(table).where(table.c.name == environment))
            if is_up:
                connection.execute(insert(table).values(name=environment, since=time.time()))
            kind = "environment.up" if is_up else "environment.down"
            append_entry(connection, kind, {}, environment=environment)

    def environments(self) -> list[str]:
        """Return the environments that are up, or have machines or rolls, by name."""
        names: set[str] = set()
        with self.transaction() as connection:
            for column in (
                tables.environments.c.name,
                tables.machines.c.environment,
                tables.rolls.c.environment,
            ):
                names.update(connection.execute(select(column).distinct()).scalars())
        return sorted(names)

    def machines(self, environment: str, role: str | None = None) -> list[MachineRecord]:
        """Return the machines that are meant to exist, in the order in which they were recorded."""
        table = tables.machines
        query = select(table).where(table.c.environment == environment)
        if role:
            query = query.where(table.c.role == role)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(RECORDED)).mappings()
            return [MachineRecord(**row) for row in rows]

    def members(self, environment: str, role: str) -> list[MachineRecord]:
        """Return a role's machines that are meant to be in its pool, the latest one last."""
        return [one for one in self.machines(environment, role) if one.is_member]

    def add_machines(self, records: Sequence[MachineRecord]) -> None:
        """Record machines before they are launched."""
        with self.transaction() as connection:
            for record in records:
                values = {name: getattr(record, name) for name in MachineRecord.__slots__}
                connection.execute(insert(tables.machines).values(values))

    def set_standing(
        self,
        names: Sequence[str],
        standing: str,
        *,
        warm_until: float | None = None,
        inputs: str | None = None,
    ) -> None:
        """Record what became of machines, and what they are told if they start again."""
        table = tables.machines
        values = {"standing": standing, "warm_until": warm_until}
        if inputs is not None:
            values["inputs"] = inputs
        with self.transaction() as connection:
            connection.execute(update(table).where(table.c.name.in_(names)).values(values))

    def set_inputs(self, names: Sequence[str], inputs: str) -> None:
        """Record that machines were given other configuration or secrets while they ran."""
        table = tables.machines
        with self.transaction() as connection:
            connection.execute(update(table).where(table.c.name.in_(names)).values(inputs=inputs))

    def forget_machines(self, names: Sequence[str]) -> None:
        """Record that machines are gone."""
        with self.transaction() as connection:
            connection.execute(delete(tables.machines).where(tables.machines.c.name.in_(names)))

    def start_roll(self, record: RollRecord) -> None:
        """Record that a roll begins."""
        values = {name: getattr(record, name) for name in RollRecord.__slots__}
        with self.transaction() as connection:
            connection.execute(insert(tables.rolls).values(values))
            append_entry(
                connection,
                "roll.started",
                {
                    "image": record.image,
                    "release": record.release,
                    "previous": record.previous,
                    "is_rollback": record.is_rollback,
                },
                environment=record.environment,
                role=record.role,
                roll=record.id,
            )

    def end_roll(
        self,
        roll: str,
        outcome: str,
        data: Mapping[str, Any],
        *,
        keep: Sequence[MachineRecord] = (),
        forget: Sequence[str] = (),
    ) -> None:
        """Record how a roll ended.

        Args:
            roll: Its name.
            outcome: How it ended.
            data: What was observed.
            keep: Machines that are meant to exist after it, whether or not they do.
            forget: Names of machines that are not, whether or not they do.
        """
        table, machines = tables.rolls, tables.machines
        with self.transaction() as connection:
            connection.execute(delete(machines).where(machines.c.name.in_(forget)))
            for record in keep:
                values = {name: getattr(record, name) for name in MachineRecord.__slots__}
                standing = {name: values[name] for name in ("standing", "warm_until")}
                known = update(machines).where(machines.c.name == record.name).values(standing)
                if not connection.execute(known).rowcount:
                    connection.execute(insert(machines).values(values))
            row = connection.execute(select(table).where(table.c.id == roll)).mappings().one()
            connection.execute(
                update(table).where(table.c.id == roll).values(outcome=outcome, ended=time.time())
            )
            append_entry(
                connection,
                f"roll.{outcome}",
                {
                    "image": row["image"],
                    "previous": row["previous"],
                    "is_rollback": row["is_rollback"],
                    **data,
                },
                environment=row["environment"],
                role=row["role"],
                roll=roll,
            )

    def unfinished_rolls(self, environment: str) -> list[RollRecord]:
        """Return the rolls of an environment that were begun and not ended."""
        return [roll for roll in self.rolls(environment) if roll.outcome == "running"]

    def roll_entries(self, roll: str) -> list[dict[str, Any]]:
        """Return the entries of one roll, oldest first."""
        table = tables.entries
        query = select(table).where(table.c.roll == roll).order_by(table.c.sequence)
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def rolls(self, environment: str, role: str | None = None) -> list[RollRecord]:
        """Return the rolls of an environment, newest first."""
        table = tables.rolls
        query = select(table).where(table.c.environment == environment)
        if role:
            query = query.where(table.c.role == role)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(RECORDED.desc())).mappings()
            return [RollRecord(**row) for row in rows]


def append_entry(
    connection: Connection,
    kind: str,
    data: Mapping[str, Any],
    *,
    environment: str | None = None,
    role: str | None = None,
    roll: str | None = None,
) -> None:
    """Add an entry to the chain within a transaction that writes more than that."""
    last = connection.execute(LAST_ENTRY).first()
    entry: dict[str, Any] = {
        "sequence": last.sequence + 1 if last else 1,
        "time": time.time(),
        "kind": kind,
        "by": operator(),
        "environment": environment,
        "role": role,
        "roll": roll,
        "data": dict(data),
        "previous": last.hash if last else GENESIS,
    }
    connection.execute(insert(tables.entries), {**entry, "hash": entry_hash(entry)})


def operator() -> str:
    """Return who runs the toolkit: `user@host`, the one behind sudo if there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _hint(error: DatabaseError) -> str | None:
    """Return what may be the reason that the database refuses."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        # Some of a full disk is an I/O error to it.
        return "is the disk of the state directory full?"
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
        return "may the state directory be written, or is its file system mounted read-only?"
    return None
