"""How each class of requests gets its connections."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import h11

from bench.load.connection import Connection, Response
from bench.load.failure import RequestFailed, failure_of
from bench.load.http1 import Http1Connection
from bench.load.http2 import Http2Connection
from bench.load.settings import LoadSettings

_SHUTDOWN_S = 1.0
_AGENT = b"bench-load"

ConnectionT = TypeVar("ConnectionT", bound=Connection)


class Client(Protocol):
    """Sends the requests of one class."""

    opened: int

    async def fetch(self, path: int) -> Response:
        """Get the path with this index.

        Raises:
            RequestFailed: There was no complete response.
        """


class Dialler(Generic[ConnectionT]):
    """Opens connections of one protocol, and knows all that are open.

    TLS sessions are never resumed, since Python resumes only a session that is handed over: every
    new connection pays for a whole handshake.

    Args:
        settings: Where to and how.
        protocol: Class of connection.
        context: Shared TLS context; None for plain text.
    """

    def __init__(
        self,
        settings: LoadSettings,
        protocol: type[ConnectionT],
        context: ssl.SSLContext | None,
    ) -> None:
        self._endpoint = settings.endpoint
        self._timeout_s = settings.timeout_s
        self._protocol: Callable[[bytes | None, Callable[[], None]], ConnectionT] = protocol
        self._context = context
        header = settings.by_header
        self._version_header = header.lower().encode("ascii") if header else None
        self.connections: set[ConnectionT] = set()

    async def open(self) -> ConnectionT:
        """Return a new connection, ready for a request.

        Raises:
            RequestFailed: There is none to be had.
        """
        endpoint, is_tls = self._endpoint, self._context is not None
        connection = self._protocol(
            self._version_header, lambda: self.connections.discard(connection)
        )
        self.connections.add(connection)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: connection,
                endpoint.host,
                endpoint.port,
                ssl=self._context,
                server_hostname=endpoint.server_name if is_tls else None,
                ssl_handshake_timeout=self._timeout_s if is_tls else None,
                ssl_shutdown_timeout=_SHUTDOWN_S if is_tls else None,
            )
        except BaseException as error:
            self.connections.discard(connection)
            if isinstance(error, Exception):
                raise failure_of(error, when="while connecting") from None
            raise
        if is_tls and self._protocol is Http2Connection:
            agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            if agreed != "h2":
                connection.abort()
                raise RequestFailed("alpn", f"the server chose {agreed or 'nothing'}")
        return connection


class NewHttp1:
    """HTTP/1.1, one connection for each request, which says so with `Connection: close`."""

    def __init__(self, dialler: Dialler[Http1Connection], settings: LoadSettings) -> None:
        self._dialler = dialler
        self._requests = _http1_requests(settings, is_kept=False)
        self.opened = 0

    async def fetch(self, path: int) -> Response:
        self.opened += 1
        connection = await self._dialler.open()
        try:
            return await connection.fetch(self._requests[path])
        finally:
            connection.close()


class KeptHttp1:
    """HTTP/1.1 over several connections that are kept and used in turn.

    In turn, and not the last used first: so all of them stay in use, and each is at risk whenever
    the server closes one.
    """

    def __init__(self, dialler: Dialler[Http1Connection], settings: LoadSettings) -> None:
        self._dialler = dialler
        self._requests = _http1_requests(settings, is_kept=True)
        self._wanted = settings.kept_connections
        self._idle_s = settings.idle_s
        self._idle: deque[Http1Connection] = deque()
        self._busy = 0
        self.opened = 0

    async def fetch(self, path: int) -> Response:
        connection = self._take()
        self._busy += 1
        try:
            if connection is None:
                self.opened += 1
                connection = await self._dialler.open()
            response = await connection.fetch(self._requests[path])
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        finally:
            self._busy -= 1
        if connection.is_usable and len(self._idle) < self._wanted:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _take(self) -> Http1Connection | None:
        """Return an idle connection; None when another is to be opened."""
        now = asyncio.get_running_loop().time()
        self._idle = deque(connection for connection in self._idle if connection.is_usable)
        if len(self._idle) + self._busy < self._wanted:
            return None
        while self._idle:
            connection = self._idle.popleft()
            if now - connection.idle_since <= self._idle_s:
                return connection
            connection.close()
        return None


class NewHttp2:
    """HTTP/2, one connection for each request."""

    def __init__(self, dialler: Dialler[Http2Connection], settings: LoadSettings) -> None:
        self._dialler = dialler
        self._requests = _http2_requests(settings)
        self.opened = 0

    async def fetch(self, path: int) -> Response:
        self.opened += 1
        connection = await self._dialler.open()
        try:
            return await connection.fetch(self._requests[path])
        finally:
            connection.close()


class KeptHttp2:
    """HTTP/2 over several connections that are kept, the least busy first."""

    def __init__(self, dialler: Dialler[Http2Connection], settings: LoadSettings) -> None:
        self._dialler = dialler
        self._requests = _http2_requests(settings)
        self._wanted = settings.kept_connections
        self._idle_s = settings.idle_s
        self._kept: list[Http2Connection] = []
        self._opening = 0
        self.opened = 0

    async def fetch(self, path: int) -> Response:
        connection = self._take()
        if connection is None:
            self.opened += 1
            self._opening += 1
            try:
                connection = await self._dialler.open()
            finally:
                self._opening -= 1
            self._kept.append(connection)
        try:
            return await connection.fetch(self._requests[path])
        finally:
            if connection.outstanding == 0 and len(self._kept) > self._wanted:
                connection.close()

    def _take(self) -> Http2Connection | None:
        """Return a kept connection; None when another is to be opened."""
        now = asyncio.get_running_loop().time()
        usable = []
        for connection in self._kept:
            if not connection.is_usable and connection.outstanding == 0:
                continue
            is_idle = connection.outstanding == 0 and connection.idle_since > 0
            if is_idle and now - connection.idle_since > self._idle_s:
                connection.close()
                continue
            usable.append(connection)
        self._kept = usable
        ready = [connection for connection in usable if connection.is_usable]
        if not ready or len(ready) + self._opening < self._wanted:
            return None
        return min(ready, key=lambda connection: (connection.outstanding, connection.idle_since))


def tls_context(settings: LoadSettings, protocol: str) -> ssl.SSLContext | None:
    """Return the shared context for one ALPN protocol; None for plain text."""
    if not settings.endpoint.is_tls:
        return None
    context = ssl.create_default_context(cafile=settings.cafile)
    context.set_alpn_protocols([protocol])
    return context


def _http1_requests(settings: LoadSettings, *, is_kept: bool) -> list[h11.Request]:
    headers = [
        (b"Host", settings.endpoint.authority.encode("ascii")),
        (b"User-Agent", _AGENT),
        (b"Accept", b"*/*"),
    ]
    if not is_kept:
        headers.append((b"Connection", b"close"))
    return [h11.Request(method="GET", target=path, headers=headers) for path in settings.paths]


def _http2_requests(settings: LoadSettings) -> list[list[tuple[bytes, bytes]]]:
    endpoint = settings.endpoint
    return [
        [
            (b":method", b"GET"),
            (b":scheme", b"https" if endpoint.is_tls else b"http"),
            (b":authority", endpoint.authority.encode("ascii")),
            (b":path", path.encode("ascii")),
            (b"user-agent", _AGENT),
            (b"accept", b"*/*"),
        ]
        for path in settings.paths
    ]
