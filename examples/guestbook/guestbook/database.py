"""Entries in PostgreSQL. The database may come later, restart, or be replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from guestbook.settings import Settings

DATABASE_NAME = "guestbook"
ANSWER_WITHIN_S = 5.0
ASK_AGAIN_S = 0.5
SHOWN = 20
SCHEMA_LOCK = 0x6775657374

Connection = AsyncConnection[dict[str, Any]]
Entry = dict[str, Any]


class DatabaseUnavailableError(Exception):
    """The database did not answer; the same request may succeed a moment later."""


class Database:
    """A pool of connections that opens in the background and heals itself."""

    def __init__(self, settings: Settings) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs={
                "host": settings.database_host,
                "port": settings.database_port,
                "dbname": DATABASE_NAME,
                "user": settings.database_login,
                "password": settings.database_password,
                "application_name": settings.machine,
                "connect_timeout": 2,
                "sslmode": "disable",
                "gssencmode": "disable",
                "options": "-c statement_timeout=4000",
                "autocommit": True,
                "row_factory": dict_row,
            },
            open=False,
            min_size=1,
            max_size=settings.pool_size,
            max_waiting=200,
            # The pool waits twice as long after every failed attempt. Giving up early makes it
            # try again whenever a request asks, so a database that is back is found at once.
            reconnect_timeout=ASK_AGAIN_S,
            configure=_ensure_schema,
            # One round trip for each request, so that none fails on a connection that died while
            # it was idle.
            check=AsyncConnectionPool.check_connection,
        )

    async def open(self) -> None:
        """Begin to connect; does not wait for the database."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2.0)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a live connection; a request waits for a database that is away for a moment.

        Raises:
            DatabaseUnavailableError: There is none, it broke, or it did not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S), AsyncExitStack() as stack:
                while True:
                    lent = self._pool.connection(timeout=ASK_AGAIN_S)
                    try:
                        connection = await stack.enter_async_context(lent)
                        break
                    except PoolTimeout:
                        continue
                yield connection
        except (psycopg.OperationalError, TooManyRequests, TimeoutError) as error:
            raise DatabaseUnavailableError(type(error).__name__) from error


async def add(connection: Connection, author: str, message: str) -> Entry:
    """Store an entry and return it with its number and time."""
    cursor = await connection.execute(
        "INSERT INTO entries (author, message) VALUES (%s, %s) RETURNING *", (author, message)
    )
    entry = await cursor.fetchone()
    assert entry is not None
    return entry


async def latest(connection: Connection) -> list[Entry]:
    """Return the newest entries, newest first."""
    cursor = await connection.execute("SELECT * FROM entries ORDER BY id DESC LIMIT %s", (SHOWN,))
    return await cursor.fetchall()


async def _ensure_schema(connection: Connection) -> None:
    """Create what is missing. On every new connection, since the database may be a new one."""
    cursor = await connection.execute("SELECT to_regclass('entries') IS NOT NULL AS is_there")
    row = await cursor.fetchone()
    if row is not None and row["is_there"]:
        return
    async with connection.transaction():
        # Two machines that start together would otherwise both create the table.
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS entries (
                id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                author text NOT NULL,
                message text NOT NULL,
                created_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
