"""One attempt at sending a request, and how far it came.

httpx tells what a request ended with, not how far it had come when it was cancelled; and httpcore leaves a
connection to the garbage collector that is cancelled between the end of the TCP handshake and the request. Both are
solved by httpcore's ``trace`` extension (https://www.encode.io/httpcore/extensions/#trace), which tells of each step;
it is also where a connection gets what ``connection`` is about.
With a transport that is not httpcore's there is no trace, and every outcome of a cancelled attempt is unknown.
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

# Two things about a connection that httpcore leaves open: how much it reads at once, and when it may be used again.
#
# httpcore reads 64 KiB at a time, and what stands in them reaches us without a checkpoint in between. A server can put
# ten thousand chunks of one byte into that, or thousands of interim responses: a second of work in one go, in which no
# other task runs and no deadline is noticed. So less is read at once.
#
# A connection is used again once its response is complete. What a server has sent beyond it (the same response twice, a
# body longer than it said, a body where there is none, a 408 because nothing came) would then be taken for the answer
# to the *next* request, which belongs to another batch and perhaps to another location. Such bytes can be in three
# places. In the socket: httpcore looks there before it uses a connection again. In the buffer of h11, and between the
# socket and TLS: it does not look there, so that is done here, when a response has been read and its connection is not
# in the pool yet.

# Bytes. A response is usually smaller than this, head and all; 4 MiB of one take 0.2 s longer than in large pieces.
READ_AT_ONCE = 1024

# Where httpx and httpcore keep the h11 connection of a response. There is no public way to it.
_WAY_TO_H11 = ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state")


def read_in_small_pieces(stream: Any) -> None:
    """Let no ``read`` of ``stream``, an `httpcore.AsyncNetworkStream`, return more than `READ_AT_ONCE` bytes.

    An attribute of the object hides its method: httpx has no public way to hand httpcore a network of one's own, and
    to a client that the user made it would come too late.
    """
    read: Callable[[int, float | None], Awaitable[bytes]] = stream.read

    async def read_a_piece(max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await read(min(max_bytes, READ_AT_ONCE), timeout)

    stream.read = read_a_piece


async def retire_if_more_was_sent(response: httpx.Response) -> None:
    """See to it that the connection of ``response`` is not used again if there is more on it than the response.

    It is closed with the response. Only for a response that was read to its end and is not closed yet. A response
    without a connection, or over HTTP/2, where every frame says what it belongs to, is left alone.

    This never waits for the server, and cannot be cancelled: the answer is here and is to be told.
    """
    stream = response.extensions.get("network_stream")
    if stream is None or not response.http_version.startswith("HTTP/1"):
        return
    # If a later version keeps it elsewhere, connections are not used again: slower, but never wrong.
    left_in_h11 = _left_in_h11(response)
    if left_in_h11 != b"" or (stream.get_extra_info("ssl_object") is not None and await _has_more(stream)):
        _retire(stream)


def _left_in_h11(response: httpx.Response) -> bytes | None:
    """Return what h11 has received beyond the response; ``None`` if that is not known."""
    found: Any = response.stream
    for name in _WAY_TO_H11:
        found = getattr(found, name, None)
    trailing: tuple[bytes, bool] | None = getattr(found, "trailing_data", None)
    return None if trailing is None else trailing[0]


async def _has_more(stream: Any) -> bool:
    """Return whether there is anything to read, the end of the stream included, without waiting for it.

    Whether TLS has records that it has not decrypted yet, only reading tells. A shield without a deadline: it is
    cancelled in the scheduler's next step.
    """
    with trio.CancelScope(shield=True) as scope:
        trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
        with suppress(*classes("NetworkError", package="httpcore")):
            await stream.read(1, None)
        return True
    return False


def _retire(stream: Any) -> None:
    """Let httpcore take the connection for one that the server has closed, so that its pool closes it too.

    Closing ``stream`` from here would do harm: httpcore asks trio whether the socket is readable, and for one that is
    closed trio raises.
    """
    extra_info: Callable[[str], Any] = stream.get_extra_info

    def get_extra_info(info: str) -> Any:
        return True if info == "is_readable" else extra_info(info)

    stream.get_extra_info = get_extra_info


class _Closable(Protocol):
    async def aclose(self) -> None: ...


async def close_at_once(aclose: Callable[[], Awaitable[None]]) -> None:
    """Close something in a scope that is cancelled already, as `trio.aclose_forcefully` does it.

    What is well-behaved closes all the same; what would wait cannot, so that neither the drain nor an export slot waits
    for it. The shield is there to leave an exception that is on its way alone: a cancel from outside would replace it.
    """
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await aclose()


class Attempt:
    """What is known about an attempt while it runs, and after it was cancelled.

    Attributes:
        peer: Host and port that were connected to: the server's, or a proxy's.
        waits_for: What was asked for credentials and has not returned any.
        handed_over: Whether httpx was asked to send the request.
        secrets: What must not be shown of the request: its credentials, and a proxy's.
        response: The response, once its headers are there.
        body: The body of the response as far as it was received.
        write_error: Why the request was not written to its end. httpcore reads the response all the same, since a
            server may answer before it has read everything, and then tells only what reading ended with.
        redirect: Status and headers of a response that is a redirect, known even if httpx cannot make sense of it.
    """

    def __init__(self, peer: str, public: Collection[bytes] = ()) -> None:
        self.peer: str = peer
        self.secrets: tuple[str, ...] = ()
        # All headers that may have credentials in them, for those of one task's exchanges are hidden together.
        self._hidden: dict[tuple[bytes, bytes], None] = {}
        self._public = public
        self.restart()

    def restart(self) -> None:
        """Forget the exchange that was: the request is sent once more."""
        self.handed_over = self._traced = self._written = False
        self.response: httpx.Response | None = None
        self.body: BoundedBody | None = None
        self.redirect: tuple[int, Mapping[str, str]] | None = None
        self.write_error: BaseException | None = None
        self._connection: _Closable | None = None
        self.waits_for = ""

    def hide(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let nothing be shown of ``headers``, besides what was hidden before."""
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
        """Return what the response means. Its body was read as far as it is allowed to go."""
        assert self.response is not None
        assert self.body is not None
        if self.body.exceeded:
            status = self.response.status_code
            return Refused(f"{status}: the response is larger than {self.body.limit} bytes", status)
        # Half of an error's words are better than none; half of an answer may lack the count of rejected spans.
        unusable = self.body.cut_off and self.response.is_success
        content = None if unusable else self.body.content
        return self._interpreted(self.response.status_code, self.response.headers, content)

    def known_failure(self) -> ExportResult | None:
        """Return what the response means if it is a failure, though it did not arrive in full; ``None`` if it is none.

        The status of a failure says enough. With a 2xx the rest of the response would have said what was rejected.
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
        """Note a step. httpcore calls it with names like ``connection.connect_tcp.complete``."""
        self._traced = True
        step = name.partition(".")[2]
        self._hide_what_is_sent(info)
        if step == "connect_tcp.started":
            self.peer = f"{info['host']}:{info['port']}"
        elif step == "connect_tcp.complete":
            self._connection = info["return_value"]
            read_in_small_pieces(info["return_value"])
            # httpcore marks a connection as failed if it is cancelled in here, and forgets to if it is cancelled
            # before its next step: the pool would keep it for ever.
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
            # Now, and not when it is closed: by then the connection may have gone to another request.
            await retire_if_more_was_sent(self.response)

    def _hide_what_is_sent(self, info: Mapping[str, Any]) -> None:
        # A client of the user's own and the connection to a proxy add credentials that nobody else knows.
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
        """Close the connection that was made for this attempt if the attempt ended before it was used."""
        if self._connection is not None and not self._written:
            await close_at_once(self._connection.aclose)
