"""One attempt at sending a request, with spans or without, and how far it got.

The exporter's own transport says that by a `Progress`. A given client or transport of httpx says it by httpcore's
``trace`` extension (https://www.encode.io/httpcore/extensions/#trace), which reports each step. With any other one,
every outcome of a cancelled attempt is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

import attrs
import httpx
import trio

from .._exporter import ExportResult, Refused, TryLater
from .body import BoundedBody, read_bounded
from .failures import failure_result
from .packages import classes
from .responses import Response, interpret_response
from .secrets import secrets_of
from .sender import USER_AGENT, Sender
from .tls import TLSAdvice
from .transport import Progress, ResponseBody


async def close_at_once(aclose: Callable[[], Awaitable[None]]) -> None:
    """Call ``aclose`` in a scope that is cancelled already, as `trio.aclose_forcefully` does.

    A well-behaved ``aclose`` closes anyway. It cannot wait, so neither the drain nor an export slot waits for it. The
    shield keeps a cancellation from outside from replacing an exception that is being raised.
    """
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await aclose()


class Attempt:
    """The state of an attempt, while it runs and after it was cancelled."""

    def __init__(self, peer: str, public: Collection[bytes] = ()) -> None:
        self._peer = peer
        # All headers with possible credentials: those of all exchanges of a task are hidden together.
        self._hidden: list[tuple[bytes, bytes]] = []
        self._public = public
        self.restart()

    def restart(self) -> None:
        self.handed_over = self._traced = self._written = False
        self.progress = Progress()  # what the exporter's own transport says
        # The status and the headers of the response, once they were received. Not the response itself: it leads back
        # here, and the request would stay in memory until garbage is collected.
        self.head: tuple[int, Mapping[str, str]] | None = None
        self.body: BoundedBody | None = None  # as far as it was received
        self._write_error: BaseException | None = None
        self._connection: trio.abc.AsyncResource | None = None
        self.waits_for = ""  # the name of the ``auth`` that was asked for credentials and has not returned yet

    def hide(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._hidden.extend(headers)

    async def send(self, sender: Sender, request: httpx.Request, max_bytes: int, **options: Any) -> None:
        """Send ``request``, and read the response into `head` and `body`, at most ``max_bytes`` after decompression."""
        self.hide(request.headers.raw)
        request.extensions["progress"] = self.progress
        if sender.own is None:
            request.extensions["trace"] = self.trace
        self.handed_over = True
        try:
            response = await sender.send(request, **options)
        finally:
            # A given client that was cancelled before it used its connection.
            if self._connection is not None and not self._written:
                await close_at_once(self._connection.aclose)  # noqa: ASYNC102  # it closes without waiting
        self.head = response.status_code, response.headers
        self.body = BoundedBody(response.headers.get("content-encoding", ""), max_bytes)
        if isinstance(response.stream, ResponseBody):
            await response.stream.read_into(self.body)
            return
        try:
            # A given client may have added headers.
            self.hide(response.request.headers.raw)
            await read_bounded(response, self.body)
        finally:
            # This does nothing unless reading was cancelled, or ended with an exception.
            await close_at_once(response.aclose)  # noqa: ASYNC102  # it closes without waiting

    def failure(self, error: Exception, url: httpx.URL, advice: TLSAdvice) -> Refused | TryLater:
        return failure_result(
            error,
            peer=self.peer,
            connected=self.connected,
            https=url.scheme == "https",
            advice=advice,
            nothing_left=bool(self.progress.peer) and not self.progress.sent,
            write_error=self.write_error,
            secrets=self.secrets,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The credentials of the requests, in each form in which a server may repeat them."""
        return secrets_of([*self._hidden, *self.progress.proxy_headers], self._public)

    @property
    def peer(self) -> str:
        """Host and port of the connection: the server's, or a proxy's."""
        return self.progress.peer or self._peer

    @property
    def connected(self) -> bool:
        """Whether a connection was made for this attempt."""
        return self.progress.connected or self._connection is not None

    @property
    def write_error(self) -> BaseException | None:
        """The error that ended writing the request. The response may have been read nevertheless."""
        return self.progress.write_error or self._write_error

    @property
    def may_have_arrived(self) -> bool:
        if self.progress.peer:
            return self.progress.sent
        return self._written or (self.handed_over and not self._traced)

    def result(self) -> ExportResult:
        """Return the result for the response, whose body was read up to its limit."""
        assert self.head is not None
        assert self.body is not None
        status, headers = self.head
        if self.body.exceeded:
            return Refused(f"{status}: the response is larger than {self.body.limit} bytes", status)
        # Half of an error message is better than none; half of a 2xx may lack the count of rejected spans.
        content = None if self.body.cut_off and _is_success(status) else self.body.content
        return self._interpreted(status, headers, content)

    def known_failure(self) -> ExportResult | None:
        """Return the result if an incomplete response is a failure. Of a 2xx, the rejected spans may be missing."""
        if self.head is None or _is_success(self.head[0]):
            return None
        return self._interpreted(*self.head, None if self.body is None else self.body.content)

    def _interpreted(self, status: int, headers: Mapping[str, str], body: bytes | None) -> ExportResult:
        # The credentials are only needed where a server can have repeated them.
        secrets = () if status == 200 and not body else self.secrets
        return interpret_response(status, headers, body, now=time.time(), secrets=secrets)

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        """Record a step. httpcore calls it with names such as ``connection.connect_tcp.complete``."""
        self._traced = True
        step = name.partition(".")[2]
        self._hide_what_is_sent(info)
        if step == "connect_tcp.started":
            self._peer = f"{info['host']}:{info['port']}"
        elif step == "connect_tcp.complete":
            self._connection = info["return_value"]
            # httpcore marks a connection as failed if it is cancelled here, but not if it is cancelled before the next
            # step: the pool would keep it forever.
            await trio.lowlevel.checkpoint_if_cancelled()
        elif step == "start_tls.complete":
            await trio.lowlevel.checkpoint_if_cancelled()
        elif step == "send_request_headers.started" and info["request"].method != b"CONNECT":
            self._written = True
        elif step in ("send_request_headers.failed", "send_request_body.failed"):
            self._write_error = info["exception"]
        elif step == "receive_response_headers.complete" and self._written:
            self._note_head(info["return_value"])

    def _hide_what_is_sent(self, info: Mapping[str, Any]) -> None:
        # A given client and the connection to a proxy add credentials that are not known otherwise.
        request, socks_auth = info.get("request"), info.get("auth")
        if request is not None:
            self.hide(request.headers)
        if socks_auth is not None:
            self.hide([(b"proxy-authorization", b":".join(socks_auth)), (b"proxy-authorization", socks_auth[1])])

    def _note_head(self, response: tuple[Any, ...]) -> None:
        # HTTP/1.1: version, status, reason, headers; HTTP/2: status, headers.
        status, headers = response[0 if len(response) == 2 else 1], response[-1]
        if 300 <= status < 400:  # A client may fail to parse where it leads.
            self.head = status, httpx.Headers(headers)


class Requester:
    """Sends requests without spans, each once and within ``timeout`` seconds, with the sender of an exporter."""

    def __init__(self, sender: Sender, advice: TLSAdvice, *, timeout: float, max_bytes: int) -> None:
        self._sender = sender
        self._tls_advice = advice
        self._timeout = timeout
        self._max_bytes = max_bytes

    async def request(
        self, method: str, url: str, *, send_options: Mapping[str, Any] | None = None, **content: Any
    ) -> Response | Refused | TryLater:
        """Send one request, with headers, parameters or a form in ``content``. Return the response or the failure.

        A response that is too large is a `Refused`, none in time a `TryLater`. Redirects are not followed. Credentials
        in the request's headers appear in no log and no reason.
        """
        request = self._sender.build_request(method, url, **content)
        attempt = Attempt(request.url.netloc.decode("ascii"))
        request.headers.setdefault("User-Agent", USER_AGENT)
        # Always, as a client that is given may accept encodings that are not read here.
        request.headers["Accept-Encoding"] = "gzip, deflate"
        with trio.move_on_after(self._timeout):
            try:
                await attempt.send(self._sender, request, self._max_bytes, **(send_options or {}))
            except classes("RequestError", "InvalidURL") as error:
                failure = attempt.failure(error, request.url, self._tls_advice)
                # No span was sent, so nothing is ambiguous.
                return attrs.evolve(failure, ambiguous=False) if isinstance(failure, TryLater) else failure
            assert attempt.head is not None
            assert attempt.body is not None
            status, headers = attempt.head
            if attempt.body.exceeded:
                return Refused(f"{status}: the answer is larger than {self._max_bytes} bytes", status)
            return Response(status, headers, attempt.body.content, time.time(), attempt.secrets)
        return TryLater(f"no complete answer from {attempt.peer} within {self._timeout:g} s", cause="timeout")


def _is_success(status: int) -> bool:
    return 200 <= status < 300
