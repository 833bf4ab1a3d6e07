"""One HTTP/2 connection, many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from bench.load.connection import Connection, Response
from bench.load.failure import RequestFailed, failure_of

_CONFIG = h2.config.H2Configuration(
    client_side=True,
    # The requests are our own and well formed: no need to pay for a check of each.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_FRAME_HEAD_BYTES = 9
_MAX_FRAME_BYTES = 16384
_GOAWAY = 7


@dataclass(slots=True)
class _Exchange:
    outcome: asyncio.Future[Response]
    status: int | None = None
    version: str | None = None
    body_bytes: int = 0


class Http2Connection(Connection):
    """The client's side of an HTTP/2 connection; see `Connection`.

    The preface waits for the first request, so that both go out in one record.
    """

    def __init__(self, version_header: bytes | None, on_gone: Callable[[], None]) -> None:
        super().__init__(version_header, on_gone)
        self._http = h2.connection.H2Connection(_CONFIG)
        self._http.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 65536,
            },
        )
        self._http.initiate_connection()
        self._received = bytearray()
        self._exchanges: dict[int, _Exchange] = {}

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent, as far as has been read."""
        return (
            self._is_reusable
            and self._transport is not None
            and len(self._exchanges) < self._http.remote_settings.max_concurrent_streams
        )

    @property
    def outstanding(self) -> int:
        """Requests sent and not yet answered."""
        return len(self._exchanges)

    async def fetch(self, headers: list[tuple[bytes, bytes]]) -> Response:
        """Send one request and read its response to the end.

        Raises:
            RequestFailed: There was no complete response.
        """
        self._writable()
        loop = asyncio.get_running_loop()
        stream = self._http.get_next_available_stream_id()
        exchange = self._exchanges[stream] = _Exchange(loop.create_future())
        try:
            self._http.send_headers(stream, headers, end_stream=True)
            self._flush()
            return await exchange.outcome
        except BaseException:
            # After one time-out or broken answer the connection is not trusted with more.
            self._is_reusable = False
            raise
        finally:
            del self._exchanges[stream]
            self.idle_since = loop.time()
            if not self._is_reusable and not self._exchanges:
                self.close()

    def close(self) -> None:
        """End the connection in an orderly way, with GOAWAY."""
        self._is_reusable = False
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._http.close_connection()
                self._flush()
            except h2.exceptions.ProtocolError:
                pass
        super().close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            for stream, frame in self._frames():
                try:
                    for event in self._http.receive_data(frame):
                        self._handle(event)
                except h2.exceptions.InvalidBodyLengthError as error:
                    self._fail(stream, RequestFailed("truncated", str(error)))
                    raise
        except (h2.exceptions.ProtocolError, RequestFailed) as error:
            self._fail_all(RequestFailed("protocol", f"{type(error).__name__}: {error}"))
            self.close()
            return
        self._flush()

    def eof_received(self) -> None:
        self._is_reusable = False
        self._ended(None)

    def _ended(self, error: Exception | None) -> RequestFailed:
        failure = failure_of(error, when=self._when())
        self._fail_all(failure)
        return failure

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield each complete frame with its stream, and keep GOAWAY to ourselves.

        After GOAWAY the h2 library refuses every further frame, though the streams that the
        server accepted go on to their end (RFC 9113, section 6.8).
        """
        buffer = self._received
        while len(buffer) >= _FRAME_HEAD_BYTES:
            length = int.from_bytes(buffer[:3], "big")
            if length > _MAX_FRAME_BYTES:
                raise RequestFailed("protocol", f"a frame of {length} bytes")
            if len(buffer) < _FRAME_HEAD_BYTES + length:
                return
            frame = bytes(buffer[: _FRAME_HEAD_BYTES + length])
            del buffer[: _FRAME_HEAD_BYTES + length]
            if frame[3] == _GOAWAY:
                self._receive_goaway(frame[_FRAME_HEAD_BYTES:])
            else:
                yield int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF, frame

    def _receive_goaway(self, payload: bytes) -> None:
        self._is_reusable = False
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        code = int.from_bytes(payload[4:8], "big")
        for stream in [number for number in self._exchanges if number > last]:
            self._fail(stream, RequestFailed("goaway", f"code {code}, {self._when()}"))
        if not self._exchanges:
            self.close()

    def _handle(self, event: h2.events.Event) -> None:
        stream: int | None = getattr(event, "stream_id", None)
        exchange = self._exchanges.get(stream or 0)
        if isinstance(event, h2.events.DataReceived):
            if event.flow_controlled_length:
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if exchange is not None:
                exchange.body_bytes += len(event.data)
        elif exchange is None or stream is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            for name, value in event.headers:
                if name == b":status":
                    exchange.status = int(value)
                elif name == self._version_header:
                    exchange.version = bytes(value).decode("latin-1")
        elif isinstance(event, h2.events.StreamEnded):
            self._finish(exchange)
        elif isinstance(event, h2.events.StreamReset):
            detail = f"code {int(event.error_code)} after {exchange.body_bytes} bytes of the body"
            self._fail(stream, RequestFailed("stream-reset", detail))

    def _finish(self, exchange: _Exchange) -> None:
        self._served += 1
        if exchange.outcome.done():
            return
        if exchange.status is None:
            exchange.outcome.set_exception(RequestFailed("protocol", "no status"))
        else:
            exchange.outcome.set_result(Response(exchange.status, exchange.version))

    def _fail_all(self, failure: RequestFailed) -> None:
        self._is_reusable = False
        for stream, exchange in self._exchanges.items():
            if failure.kind == "closed" and exchange.status is not None:
                detail = f"{failure.detail}, after {exchange.body_bytes} bytes of the body"
                self._fail(stream, RequestFailed("truncated", detail))
            else:
                self._fail(stream, RequestFailed(failure.kind, failure.detail))

    def _fail(self, stream: int, failure: RequestFailed) -> None:
        exchange = self._exchanges.get(stream)
        if exchange is None or exchange.outcome.done():
            return
        if exchange.status is not None and not 200 <= exchange.status < 300:
            failure = RequestFailed(f"status-{exchange.status}", failure.detail)
        exchange.outcome.set_exception(failure)

    def _when(self) -> str:
        where = f"a connection kept after {self._served}" if self._served else "a new one"
        return f"with {len(self._exchanges)} outstanding on {where}"

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
