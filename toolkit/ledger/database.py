"""Opens the ledger's database, makes it, and brings it up to the schema of this toolkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, StaticPool, create_engine, event, text

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.ledger import tables
from toolkit.ledger.ledger import Ledger

BUSY_TIMEOUT_S = 30


def open_ledger(path: Path | None) -> Ledger:
    """Open the ledger of a state directory; make it when it is not there.

    Args:
        path: The database; None for an empty one that is nowhere on a disk.

    Raises:
        OutsideError: The file cannot be opened or is not a database.
        ConfigurationError: A newer toolkit wrote it.
    """
    if path is None:
        engine = create_engine(
            "sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool
        )
    else:
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with _closed_on_failure(Ledger(engine)) as ledger:
        _bring_up_to_date(ledger, path)
    return ledger


def look_into(path: Path) -> Ledger:
    """Open the ledger of a state directory for reading; where there is none, it is an empty one.

    It takes no lock that a writer waits for, and works on a file system that cannot be written.

    Args:
        path: The database, which need not be there.

    Raises:
        OutsideError: The file cannot be opened or is not a database.
        ConfigurationError: A newer toolkit wrote it.
    """
    if not path.exists():
        return open_ledger(None)
    try:
        ledger, version = _open_for_reading(path, "mode=ro")
    except OutsideError:
        # One in write-ahead mode is read with two files beside it. Where those cannot be made, and
        # there is no log of what is yet to be written, the file itself says everything.
        if path.with_name(f"{path.name}-wal").exists():
            raise
        ledger, version = _open_for_reading(path, "mode=ro&immutable=1")
    if version == tables.SCHEMA_VERSION:
        return ledger
    ledger.close()
    # Of an earlier toolkit; or of one that was killed before it had made the first table.
    return open_ledger(path if version else None)


def _open_for_reading(path: Path, mode: str) -> tuple[Ledger, int]:
    engine = create_engine(
        f"sqlite:///file:{quote(str(path))}?{mode}&uri=true",
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    event.listen(engine, "connect", _leave_transactions)
    event.listen(engine, "begin", _begin_reading)
    with _closed_on_failure(Ledger(engine)) as ledger, ledger.transaction() as connection:
        return ledger, _version(connection, path)


@contextmanager
def _closed_on_failure(ledger: Ledger) -> Iterator[Ledger]:
    """Let go of a ledger that cannot be used.

    A connection that is left to the garbage collector keeps its files' space.
    """
    try:
        yield ledger
    except BaseException:
        ledger.close()
        raise


def _version(connection: Connection, path: Path | None) -> int:
    """Return the schema's version, 0 of an empty database.

    Raises:
        ConfigurationError: This toolkit does not know it.
    """
    version = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if version > tables.SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer toolkit", hint="use that version of the toolkit"
        )
    return version


def _bring_up_to_date(ledger: Ledger, path: Path | None) -> None:
    """Make the tables, or what a newer schema has besides."""
    with ledger.transaction() as connection:
        version = _version(connection, path)
        if version == 0:
            tables.metadata.create_all(connection)
            if path is not None:
                path.chmod(0o600)
        else:
            for later in range(version + 1, tables.SCHEMA_VERSION + 1):
                connection.execute(text(tables.MIGRATIONS[later]))
        if version < tables.SCHEMA_VERSION:
            connection.execute(text(f"PRAGMA user_version = {tables.SCHEMA_VERSION}"))


def _configure(connection: Any, _record: Any) -> None:
    _leave_transactions(connection, None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _leave_transactions(connection: Any, _record: Any) -> None:
    # The driver would begin them late; the listeners below do it at once.
    connection.isolation_level = None


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
