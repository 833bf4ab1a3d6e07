"""The kinds of failure, each counted on its own.

    refused        nobody listens on the port
    connect        the connection could not be made for another reason
    tls            the handshake or the verification of the certificate failed
    alpn           the server did not agree to HTTP/2
    reset          the connection was reset while connecting or while a request was outstanding
    closed         the connection ended before the head of the response was there
    truncated      the body ended early, or contradicts its Content-Length
    unframed       an HTTP/1.1 body with neither length nor chunks, whose end cannot be checked
    status-NNN     a response whose status is not 2xx, whatever became of its body
    stream-reset   HTTP/2: the server reset the stream
    goaway         HTTP/2: GOAWAY left out a request that had been sent before it arrived
    protocol       the response breaks the rules of HTTP
    timeout        no complete response in time
    unfinished     still outstanding when the tool was told to stop and its grace had passed
    local          the generator itself ran out of descriptors, ports or memory
    internal       a bug in the generator

What the server announced in time is no failure: `Connection: close`, GOAWAY, or the end of an idle
connection that was read before the next request was written.
"""

from __future__ import annotations

import errno
import ssl

_LOCAL_ERRORS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
)


class RequestFailed(Exception):
    """One request did not get its complete 2xx response.

    Attributes:
        kind: One of the kinds in the module's table.
        detail: What was seen, for people.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def failure_of(error: BaseException | None, *, when: str) -> RequestFailed:
    """Translate what the operating system or TLS raised into a kind of failure.

    Args:
        error: The exception; None for an orderly end of the connection.
        when: What the connection was doing, for the detail.
    """
    if isinstance(error, RequestFailed):
        return error
    if error is None:
        return RequestFailed("closed", f"connection closed {when}")
    text = f"{str(error) or type(error).__name__} {when}"
    if isinstance(error, ssl.SSLError):
        return RequestFailed("tls", text)
    if isinstance(error, ConnectionRefusedError):
        return RequestFailed("refused", text)
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return RequestFailed("reset", text)
    if isinstance(error, TimeoutError):
        return RequestFailed("timeout", text)
    if isinstance(error, OSError):
        return RequestFailed("local" if error.errno in _LOCAL_ERRORS else "connect", text)
    return RequestFailed("internal", f"{type(error).__name__}: {text}")
