"""One attempt at sending a request, and how far it got.

httpx does not report how far a request got before it was cancelled, and httpcore leaves a connection to the garbage
collector if it is cancelled between the end of the TCP handshake and the request. httpcore's ``trace`` extension
(https://www.encode.io/httpcore/extensions/#trace) solves both: it reports each step. With a transport that is not
httpcore's there is no trace, and every outcome of a cancelled attempt is unknown.

The trace also gives access to the connection, for two things that httpcore does not do:

httpcore reads 64 KiB at a time and passes on everything in them without a checkpoint. A server can put ten thousand
chunks of one byte into that, or thousands of interim responses: a second of work in one step, in which no other task
runs and no deadline is noticed. So less is read at once.

A connection is reused once its response is complete. Further data from the server (the same response twice, a body
longer than announced, a body where there is none, a 408 because no request came) would then be read as the response to
the *next* request, which belongs to another batch and perhaps to another location. Such data can be in three places. In
the socket: httpcore checks that before it reuses a connection. In the buffer of h11, and between the socket and TLS:
httpcore does not check these, so that is done here, when a response has been read and its connection is not back in
the pool yet.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import httpx
import trio

from .._exporter import ExportResult, Refused
from .body import BoundedBody
from .packages import classes
from .responses import interpret_response
from .secrets import secrets_of

__all__ = [
    "READ_AT_ONCE",
    "Attempt",
    "close_at_once",
    "read_in_small_pieces",
    "retire_if_more_was_sent",
]

# Bytes. Most responses are smaller than this, head included; one of 4 MiB takes 0.2 s longer than in large pieces.
READ_AT_ONCE = 1024

# The attributes that lead from a response to its h11 connection; there is no public way.
_WAY_TO_H11 = ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state")


def read_in_small_pieces(stream: Any) -> None:
    """Make ``stream.read`` return at most `READ_AT_ONCE` bytes; ``stream`` is an `httpcore.AsyncNetworkStream`.

    The method is replaced on the object: httpx has no public way to pass a network backend to httpcore, and a client
    that the user made has its backend already.
    """
    read: Callable[[int, float | None], Awaitable[bytes]] = stream.read

    async def read_a_piece(max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await read(min(max_bytes, READ_AT_ONCE), timeout)

    stream.read = read_a_piece


async def retire_if_more_was_sent(response: httpx.Response) -> None:
    """Prevent reuse of the connection of ``response`` if the server sent more than the response.

    The connection is closed with the response, which must have been read to its end and not be closed yet. Responses
    without a connection are left alone, and those over HTTP/2, whose frames name their stream.

    This never waits for the server and cannot be cancelled: the response is complete and must be reported.
    """
    stream = response.extensions.get("network_stream")
    if stream is None or not response.http_version.startswith("HTTP/1"):
        return
    # If a later version keeps it elsewhere, connections are never reused: slower, but correct.
    left_in_h11 = _left_in_h11(response)
    if left_in_h11 != b"" or (stream.get_extra_info("ssl_object") is not None and await _has_more(stream)):
        _retire(stream)


def _left_in_h11(response: httpx.Response) -> bytes | None:
    """Return the data that h11 has received after the response; ``None`` if unknown."""
    found: Any = response.stream
    for name in _WAY_TO_H11:
        found = getattr(found, name, None)
    trailing: tuple[bytes, bool] | None = getattr(found, "trailing_data", None)
    return None if trailing is None else trailing[0]


async def _has_more(stream: Any) -> bool:
    """Return whether there is data to read, or the end of the stream, without waiting for it.

    Only reading tells whether TLS has records that are not decrypted yet. The shield needs no deadline: its scope is
    cancelled in trio's next step.
    """
    with trio.CancelScope(shield=True) as scope:
        trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
        with suppress(*classes("NetworkError", package="httpcore")):
            await stream.read(1, None)
        return True
    return False


def _retire(stream: Any) -> None:
    """Make httpcore treat the connection as closed by the server, so that its pool closes it.

    ``stream`` must not be closed here: httpcore asks trio whether the socket is readable, and trio raises for a closed
    socket.
    """
    extra_info: Callable[[str], Any] = stream.get_extra_info

    def get_extra_info(info: str) -> Any:
        return True if info == "is_readable" else extra_info(info)

    stream.get_extra_info = get_extra_info


class _Closable(Protocol):
    async def aclose(self) -> None: ...


async def close_at_once(aclose: Callable[[], Awaitable[None]]) -> None:
    """Call ``aclose`` in a scope that is cancelled already, as `trio.aclose_forcefully` does.

    A well-behaved ``aclose`` closes anyway. It cannot wait, so neither the drain nor an export slot waits for it. The
    shield keeps a cancellation from outside from replacing an exception that is being raised.
    """
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await aclose()


class Attempt:
    """The state of an attempt, while it runs and after it was cancelled.

    Attributes:
        peer: Host and port of the connection: the server's, or a proxy's.
        waits_for: The name of the ``auth`` that was asked for credentials and has not returned yet.
        handed_over: Whether the request was passed to httpx.
        secrets: The credentials of the request and of a proxy, which must not be shown.
        response: The response, once its headers were received.
        body: The body of the response as far as it was received.
        write_error: The error that ended writing the request. httpcore reads the response anyway, since a server may
            answer before it has read everything, and then raises only the error of reading.
        redirect: Status and headers of a redirect, also of one that httpx cannot parse.
    """

    def __init__(self, peer: str, public: Collection[bytes] = ()) -> None:
        self.peer: str = peer
        self.secrets: tuple[str, ...] = ()
        # All headers with possible credentials: those of all exchanges of a task are hidden together.
        self._hidden: dict[tuple[bytes, bytes], None] = {}
        self._public = public
        self.restart()

    def restart(self) -> None:
        """Reset the state before the request is sent once more."""
        self.handed_over = self._traced = self._written = False
        self.response: httpx.Response | None = None
        self.body: BoundedBody | None = None
        self.redirect: tuple[int, Mapping[str, str]] | None = None
        self.write_error: BaseException | None = None
        self._connection: _Closable | None = None
        self.waits_for = ""

    def hide(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Hide the credentials in ``headers`` as well."""
        known = len(self._hidden)
        self._hidden.update(dict.fromkeys(headers))
        if len(self._hidden) != known:
            self.secrets = secrets_of(self._hidden, self._public)

    @property
    def connected(self) -> bool:
        """Whether a TCP connection was made for this attempt."""
        return self._connection is not None

    @property
    def may_have_arrived(self) -> bool:
        """Whether the server may have seen the request."""
        return self._written or (self.handed_over and not self._traced)

    def result(self) -> ExportResult:
        """Return the result for the response, whose body was read up to its limit."""
        assert self.response is not None
        assert self.body is not None
        if self.body.exceeded:
            status = self.response.status_code
            return Refused(f"{status}: the response is larger than {self.body.limit} bytes", status)
        # Half of an error message is better than none; half of a 2xx may lack the count of rejected spans.
        unusable = self.body.cut_off and self.response.is_success
        content = None if unusable else self.body.content
        return self._interpreted(self.response.status_code, self.response.headers, content)

    def known_failure(self) -> ExportResult | None:
        """Return the result if the incomplete response is a failure, else ``None``.

        The status of a failure is enough. The rest of a 2xx would have had the count of rejected spans.
        """
        if self.redirect is not None:
            return self._interpreted(*self.redirect, b"")
        if self.response is None or self.response.is_success:
            return None
        return self._interpreted(
            self.response.status_code, self.response.headers, None if self.body is None else self.body.content
        )

    def _interpreted(self, status: int, headers: Mapping[str, str], body: bytes | None) -> ExportResult:
        return interpret_response(status, headers, body, now=time.time(), secrets=self.secrets)

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        """Record a step. httpcore calls it with names such as ``connection.connect_tcp.complete``."""
        self._traced = True
        step = name.partition(".")[2]
        self._hide_what_is_sent(info)
        if step == "connect_tcp.started":
            self.peer = f"{info['host']}:{info['port']}"
        elif step == "connect_tcp.complete":
            self._connection = info["return_value"]
            read_in_small_pieces(info["return_value"])
            # httpcore marks a connection as failed if it is cancelled here, but not if it is cancelled before the next
            # step: the pool would keep it for ever.
            await trio.lowlevel.checkpoint_if_cancelled()
        elif step == "start_tls.complete":
            read_in_small_pieces(info["return_value"])
            await trio.lowlevel.checkpoint_if_cancelled()
        elif step == "send_request_headers.started" and info["request"].method != b"CONNECT":
            self._written = True
        elif step in ("send_request_headers.failed", "send_request_body.failed"):
            self.write_error = info["exception"]
        elif step == "receive_response_headers.complete" and self._written:
            self._note_redirect(info["return_value"])
        elif step == "receive_response_body.complete" and self.response is not None:
            # Now, not when the response is closed: then another request may have the connection already.
            await retire_if_more_was_sent(self.response)

    def _hide_what_is_sent(self, info: Mapping[str, Any]) -> None:
        # A given client and the connection to a proxy add credentials that are not known otherwise.
        request, socks_auth = info.get("request"), info.get("auth")
        if request is not None:
            self.hide(request.headers)
        if socks_auth is not None:
            self.hide([(b"proxy-authorization", b":".join(socks_auth)), (b"proxy-authorization", socks_auth[1])])

    def _note_redirect(self, response: tuple[Any, ...]) -> None:
        # HTTP/1.1: version, status, reason, headers; HTTP/2: status, headers.
        status, headers = response[0 if len(response) == 2 else 1], response[-1]
        if 300 <= status < 400:
            self.redirect = status, httpx.Headers(headers)

    async def close_unused_connection(self) -> None:
        """Close the connection of this attempt if the attempt ended before the connection was used."""
        if self._connection is not None and not self._written:
            await close_at_once(self._connection.aclose)
