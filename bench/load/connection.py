"""What connections of both protocols have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from bench.load.failure import RequestFailed


@dataclass(frozen=True, slots=True)
class Response:
    """A response that was read to its end; `version` is the value of the counted header."""

    status: int
    version: str | None


class Connection(asyncio.Protocol):
    """The client's side of a connection.

    Args:
        version_header: Lower-case name of the header to report, or None.
        on_gone: Called once when the connection is no longer there.
    """

    def __init__(self, version_header: bytes | None, on_gone: Callable[[], None]) -> None:
        self._version_header = version_header
        self._on_gone = on_gone
        self._transport: asyncio.Transport | None = None
        self._lost: RequestFailed | None = None
        self._is_reusable = True
        self._served = 0
        self.idle_since = 0.0

    def close(self) -> None:
        """End the connection in an orderly way."""
        self._is_reusable = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._ended(exc)
        self._transport = None
        self._is_reusable = False
        self._on_gone()

    def _ended(self, error: Exception | None) -> RequestFailed:
        """Fail what is outstanding; return what a request sent from now on would meet."""
        raise NotImplementedError

    def _writable(self) -> asyncio.Transport:
        """Return the transport.

        Raises:
            RequestFailed: The connection ended between its making and its first request.
        """
        if self._transport is None:
            raise self._lost or RequestFailed("internal", "not connected")
        return self._transport
