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
from typing import Any, Protocol

import httpx
import trio

from .._results import ExportResult, Refused
from .body import BoundedBody
from .connection import read_in_small_pieces, retire_if_more_was_sent
from .responses import interpret_response
from .secrets import secrets_of

__all__ = ["Attempt", "close_at_once"]


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
