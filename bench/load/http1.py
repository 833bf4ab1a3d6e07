"""One HTTP/1.1 connection, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11

from bench.load.connection import Connection, Response
from bench.load.failure import RequestFailed, failure_of

_END = h11.EndOfMessage()
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})


class Http1Connection(Connection):
    """The client's side of an HTTP/1.1 connection; see `Connection`."""

    def __init__(self, version_header: bytes | None, on_gone: Callable[[], None]) -> None:
        super().__init__(version_header, on_gone)
        self._http = h11.Connection(h11.CLIENT)
        self._outcome: asyncio.Future[Response] | None = None
        self._head: h11.Response | None = None
        self._body_bytes = 0

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent, as far as has been read."""
        return self._is_reusable and self._transport is not None and self._outcome is None

    async def fetch(self, request: h11.Request) -> Response:
        """Send one request and read its response to the end.

        Raises:
            RequestFailed: There was no complete response.
        """
        transport = self._writable()
        outcome: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._outcome = outcome
        self._head = None
        self._body_bytes = 0
        try:
            head = self._http.send(request) or b""
            transport.write(head + (self._http.send(_END) or b""))
            return await outcome
        finally:
            self._outcome = None

    def data_received(self, data: bytes) -> None:
        if self._outcome is None or self._outcome.done():
            # Nothing was asked for: a 408 before an idle connection is closed, or worse.
            self.close()
            return
        self._receive(data)

    def eof_received(self) -> None:
        self._is_reusable = False
        if self._outcome is not None and not self._outcome.done():
            self._receive(b"")
            self._ended(None)

    def _ended(self, error: Exception | None) -> RequestFailed:
        failure = failure_of(error, when=self._when())
        if failure.kind == "closed" and self._head is not None:
            failure = RequestFailed("truncated", failure.detail)
        self._fail(failure)
        return failure

    def _receive(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    self._body_bytes += len(event.data)
                elif isinstance(event, h11.Response):
                    self._head = event
                    self._check_framing(event)
                elif isinstance(event, h11.EndOfMessage):
                    self._finish()
                    return
                elif not isinstance(event, h11.InformationalResponse):
                    return
        except h11.RemoteProtocolError as error:
            if data:
                self._fail(RequestFailed("protocol", f"{error} {self._when()}"))
            else:
                self._ended(None)
        except RequestFailed as error:
            self._fail(error)

    def _check_framing(self, head: h11.Response) -> None:
        has_frame = any(name in _FRAMING for name, _ in head.headers)
        if not has_frame and head.status_code not in _BODILESS:
            raise RequestFailed("unframed", "neither Content-Length nor chunks")

    def _finish(self) -> None:
        assert self._outcome is not None and self._head is not None
        if self._http.trailing_data[0]:
            self._fail(RequestFailed("protocol", f"bytes after the end {self._when()}"))
            return
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self._is_reusable = False
        self._served += 1
        if not self._outcome.done():
            self._outcome.set_result(
                Response(self._head.status_code, self._value(self._version_header))
            )

    def _fail(self, failure: RequestFailed) -> None:
        self._is_reusable = False
        if self._outcome is None or self._outcome.done():
            return
        head = self._head
        if head is not None and not 200 <= head.status_code < 300:
            failure = RequestFailed(f"status-{head.status_code}", failure.detail)
        self._outcome.set_exception(failure)

    def _value(self, wanted: bytes | None) -> str | None:
        assert self._head is not None
        if wanted is None:
            return None
        for name, value in self._head.headers:
            if name == wanted:
                return value.decode("latin-1")
        return None

    def _when(self) -> str:
        where = f"on a connection kept after {self._served}" if self._served else "on a new one"
        if self._head is None:
            return f"before the response, {where}"
        return f"after {self._body_bytes} bytes of the body, {where}"
