"""Opens the ledger's database, makes it, and brings it up to the schema of this toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, StaticPool, create_engine, event, text

from toolkit.errors import ConfigurationError
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
    ledger = Ledger(engine)
    try:
        _bring_up_to_date(ledger, path)
    except BaseException:
        # A connection that is left to the garbage collector keeps its files' space.
        ledger.close()
        raise
    return ledger


def _bring_up_to_date(ledger: Ledger, path: Path | None) -> None:
    """Make the tables, or what a newer schema has besides."""
    with ledger.transaction() as connection:
        version = int(connection.execute(text("PRAGMA user_version")).scalar_one())
        if version > tables.SCHEMA_VERSION:
            raise ConfigurationError(
                f"{path} was written by a newer toolkit", hint="use that version of the toolkit"
            )
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
    # The driver would begin transactions late; `_begin` does it at once and for writing.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
