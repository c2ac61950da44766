"""An OTLP/HTTP server on trio, for tests and for development.

`OTLPReceiver.serve_stream` serves a connection over TCP, memory streams (`MemoryNetwork`) or any other stream.
``_requests`` parses requests and determines the answer of a well-behaved server, without I/O; ``_answers`` has the
answers and faults that a script can choose instead.

All tasks of the receiver are shielded until it is left. So the server runs as long as the body of its ``async with``,
even when everything around both is cancelled: a batcher inside can drain.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import attrs
import h11
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from .._http.exporter import OTLPExporter
from ._answers import Answer, Drip, Hang, Outcome, Reset
from ._checks import NONE, check, check_function, check_list
from ._connection import BodyTooLarge, Connection, break_on_close
from ._faults import Answers, Fault, Script
from ._network import MemoryNetwork, MemoryTransport
from ._requests import TRACES_PATH, ReceivedRequest, read_request, refusal

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 64 * 1024 * 1024


_NOT_ENTERED = (
    "the receiver has no {} before it is entered, as the system chooses its port: use `async with OTLPReceiver() as "
    "receiver:`, give port=, or do without a socket with listen=False"
)


def _as_outcome(name: str, value: object) -> Outcome | None:
    """Return an answer of a script, or the answer with a status."""
    if value is None or isinstance(value, Answer | Reset | Hang | Drip):
        return value
    allowed = "an Answer, a status from 200 to 999, Reset, Hang, Drip, a fault such as outage(30), or None"
    check(name, value, allowed, int, valid=lambda status: 200 <= status <= 999)
    return Answer(value)  # type: ignore[arg-type]  # checked


# The host in the URL without TCP. Names under .test never resolve (RFC 6761).
_MEMORY_HOST = "receiver.test"


class OTLPReceiver:
    """An OTLP/HTTP server that keeps the requests that it receives and fails as scripted.

    It is an async context manager, entered once. Leaving it closes the listener and all connections immediately.
    With ``listen=False`` it is a context manager too, for tests that are not async: ``with`` opens it for all trio runs
    inside.
    An exception of the body is not wrapped in a group. A cancellation from outside does not stop the receiver before
    its body has ended.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 selects a free one.
        location_header: The header that carries the location of a request.
        answers: By default requests are answered as by a well-behaved server: 200 with an empty body, 400 for an
            invalid body, 404 for another path, 405 for another method, 413 and 415. Otherwise an iterable of answers,
            one for each request in the order of their heads, followed by default answers; or a sync function of the
            `ReceivedRequest`. In both, an int is the `Answer` with that status, None means the default answer, and an
            answer may be a fault, which lasts: `outage`, `rate_limited`, `slow` or `poison`. A request larger than
            ``max_request_bytes`` is always answered 413. If the function raises, the request is answered 500 and the
            exception is logged.
        on_request: A sync function that is called with each request and the status of its answer (None if there will
            be no answer), before spans are stored and anything is sent. If it raises, the request is answered 500
            and the exception is logged.
        keep: Whether `requests` and `stored` are filled. If not, memory use stays constant.
        ssl_context: TLS for all connections.
        path: The only path that is served; None serves all paths.
        max_request_bytes: The maximum size of a body, before and after decompression.
        listen: Whether to listen on TCP. If not, clients connect by `memory_transport` or `serve_stream`.

    Attributes:
        requests: All requests that were read completely, in that order, and, with an empty body, those that were
            reset before their body or refused as too large.
        stored: For each location the spans of requests that were answered 2xx (or as the answer's ``store`` says),
            without the rejected ones.
        connections: The number of connections so far.
        network: The network without sockets that leads to this receiver.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        location_header: str | None = None,
        answers: Answers[Outcome | int, ReceivedRequest] | None = None,
        on_request: Callable[[ReceivedRequest, int | None], object] | None = None,
        keep: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        path: str | None = TRACES_PATH,
        max_request_bytes: int = _MAX_REQUEST_BYTES,
        listen: bool = True,
    ) -> None:
        check("host", host, "a str", str)
        check("port", port, "an int from 0 to 65535", int, valid=lambda value: 0 <= value <= 65535)
        check("location_header", location_header, "the name of a header, or None", str, NONE, valid=_is_header_name)
        for name, flag in (("keep", keep), ("listen", listen)):
            check(name, flag, "True or False", bool)
        check("ssl_context", ssl_context, "an ssl.SSLContext or None", ssl.SSLContext, NONE)
        check("path", path, "a str that begins with /, or None", str, NONE, valid=lambda path: (path or "/")[0] == "/")
        check("max_request_bytes", max_request_bytes, "an int of at least 1", int, valid=lambda size: size >= 1)
        if on_request is not None:
            check_function("on_request", on_request)
        self.requests: list[ReceivedRequest] = []
        self.stored: dict[str, list[SpanMessage]] = {}
        self.connections: int = 0
        self.network: MemoryNetwork = MemoryNetwork(self._serve_in_background)
        self._host = host
        self._port = port
        self._location_header = location_header
        self._script: Script[Outcome]
        self.set_answers(answers)
        self._on_request = on_request
        self._keep = keep
        self._ssl_context = ssl_context
        self._path = path
        self._max_request_bytes = max_request_bytes
        self._listen = listen
        self._received = 0
        self._request_received = trio.lowlevel.ParkingLot()
        self._entered = self._closed = False
        self._serves_any_run = False
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None
        self._open: dict[trio.abc.Stream, trio.CancelScope] = {}
        # The shields have no deadline: leaving the receiver cancels this scope, and those of the connections.
        self._listening = trio.CancelScope(shield=True)
        self._accepting = trio.CancelScope()

    @property
    def port(self) -> int:
        """The TCP port; 0 if it does not listen.

        Raises:
            RuntimeError: It is not known before the receiver is entered.
        """
        if self._listen and not self._port:
            raise RuntimeError(_NOT_ENTERED.format("port"))
        return self._port if self._listen else 0

    @property
    def url(self) -> str:
        """The URL for traces.

        Raises:
            RuntimeError: Its port is not known before the receiver is entered.
        """
        scheme = "http" if self._ssl_context is None else "https"
        path = TRACES_PATH if self._path is None else self._path
        if not self._listen:
            return f"{scheme}://{_MEMORY_HOST}{path}"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        if not self._port:
            raise RuntimeError(_NOT_ENTERED.format("URL"))
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}{path}"

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._entered:
            raise trio.BusyResourceError("an OTLPReceiver can be entered only once")
        self._entered = True
        listeners: list[trio.SocketListener] = []
        if self._listen:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
            self._port = listeners[0].socket.getsockname()[1]
        else:
            await trio.lowlevel.checkpoint()
        # No checkpoint from here on, so that a cancellation cannot leave it half entered.
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        if listeners:
            self._nursery.start_soon(self._accept, listeners)
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._nursery_manager is not None
        assert self._nursery is not None
        self._closed = True
        for scope in (self._listening, *self._open.values()):
            scope.cancel()
        if self._nursery.cancel_scope.cancel_called:
            # A task of the receiver has crashed, so the body's exception may come from the nursery's cancellation.
            return await self._nursery_manager.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  # see below
        # The body's exception is not passed to the nursery, which would wrap it in a group. It waits for its
        # tasks, which are all cancelled; this cannot itself be cancelled, so no shield is needed.
        try:
            await self._nursery_manager.__aexit__(None, None, None)  # noqa: ASYNC102  # see above
        except BaseExceptionGroup as group:
            if group.split(KeyboardInterrupt)[1] is None:
                # Ctrl-C while waiting: trio delivers it to the main task, which is this one.
                raise KeyboardInterrupt from None
            raise
        return False

    def __enter__(self) -> Self:
        if self._listen:
            raise TypeError("a receiver that listens is entered with `async with`; `with` is for listen=False only")
        if self._entered:
            raise trio.BusyResourceError("an OTLPReceiver can be entered only once")
        self._entered = self._serves_any_run = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        for scope in self._open.values():
            scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve a connection on ``stream`` until either side ends it, then close ``stream``.

        A client cannot make this raise. Leaving the receiver ends it too. When cancelled, it closes
        the stream immediately.
        """
        check("stream", stream, "a stream of trio's", trio.abc.Stream)
        scope = trio.CancelScope()
        if self._closed:
            scope.cancel()
        self.connections += 1
        self._open[stream] = scope
        self._is_down()
        try:
            with scope:
                await self._serve_secured(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The client went away, or never spoke TLS.
        except Exception:
            logger.exception("The receiver failed and closes a connection")
        finally:
            del self._open[stream]

    def set_answers(self, answers: Answers[Outcome | int, ReceivedRequest] | None) -> None:
        """Give answers in place of those that have not been used, as with the parameter ``answers``."""
        self._script = Script(answers, "answers", _as_outcome)

    def assert_answers_used(self) -> None:
        """Raise `AssertionError` if not all ``answers`` were used. Those of a function or an iterator do not count."""
        if unused := self._script.unused:
            raise AssertionError(f"{unused} scripted {'answer was' if unused == 1 else 'answers were'} not used")

    def assert_delivered(self, location: str, names: Iterable[str]) -> None:
        """Raise `AssertionError`, with the difference, unless exactly spans of these names were stored, in any order.

        A batcher sends spans in the background: flush or leave it before.
        """
        check("location", location, "a str", str)
        check_list("names", names, "an iterable of names of spans", lambda name: isinstance(name, str))
        stored, expected = Counter(span.name for span in self.stored.get(location, ())), Counter(names)
        if stored == expected:
            return
        parts = [
            f"{word} {_counted(names)}"
            for word, names in (("missing", expected - stored), ("unexpected", stored - expected))
            if names
        ]
        others = ", ".join(f"{len(spans)} at {other!r}" for other, spans in self.stored.items() if other != location)
        parts.append(f"delivered there: {_counted(stored) or 'nothing'}; elsewhere: {others or 'nothing'}")
        raise AssertionError(f"{location!r}: {'; '.join(parts)}")

    def exporter(self) -> OTLPExporter:
        """Return a new exporter that sends to this receiver, with its ``location_header``."""
        transport = None if self._listen else self.memory_transport()
        return OTLPExporter(self.url, location_header=self._location_header, transport=transport)

    def drop_connections(self) -> None:
        """Break all connections, like a server that is killed. New ones are accepted."""
        for stream, scope in self._open.items():
            break_on_close(stream)
            scope.cancel()

    def memory_transport(self, *, ssl_context: ssl.SSLContext | None = None) -> MemoryTransport:
        """Return a transport for `OTLPExporter` or ``httpx.AsyncClient`` that reaches this receiver without a socket.

        Only the network is replaced, so that everything runs on trio's clock; the transport and HTTP/1.1 on both sides
        are the real ones. All hosts and ports lead to this receiver.

        Args:
            ssl_context: Verifies the certificate of an https receiver.
        """
        return MemoryTransport(self.network, ssl_context=ssl_context)

    async def wait_for_requests(self, count: int) -> None:
        """Wait until at least ``count`` requests have been received since the receiver was created."""
        check("count", count, "an int of at least 0", int, valid=lambda value: value >= 0)
        await trio.lowlevel.checkpoint()
        while self._received < count:
            await self._request_received.park()

    @trio.lowlevel.enable_ki_protection
    async def _accept(self, listeners: Sequence[trio.SocketListener]) -> None:
        with self._listening:
            while True:
                family, address = listeners[0].socket.family, listeners[0].socket.getsockname()
                with trio.CancelScope() as self._accepting:
                    await trio.serve_listeners(self.serve_stream, list(listeners))
                # An outage. A socket that is bound and does not listen refuses connections, and keeps the port. Just
                # before the end the receiver listens again and resets connections, so that the end is exact.
                with socket.socket(family) as held:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    held.bind(address)
                    await trio.sleep_until(self._script.down_until - 0.001)
                listeners = await trio.open_tcp_listeners(self._port, host=self._host)

    def _is_down(self) -> bool:
        """Return whether there is an outage. When it begins, all connections break."""
        if not self._script.is_down():
            return False
        self._accepting.cancel()
        self.drop_connections()
        return True

    def _serve_in_background(self, stream: trio.abc.Stream) -> bool:
        if self._closed or (self._nursery is None and not self._serves_any_run) or self._is_down():
            return False
        if self._nursery is None:
            trio.lowlevel.spawn_system_task(self._serve_alone, stream)
        else:
            self._nursery.start_soon(self._serve_shielded, stream)
        return True

    @trio.lowlevel.enable_ki_protection
    async def _serve_shielded(self, stream: trio.abc.Stream) -> None:
        with trio.CancelScope(shield=True):
            await self.serve_stream(stream)

    async def _serve_alone(self, stream: trio.abc.Stream) -> None:
        """Serve a connection in a system task, of which an exception would end the whole trio run."""
        try:
            await self.serve_stream(stream)
        except trio.Cancelled:
            raise
        except BaseException:
            # For instance `pytest.fail` in a function for answers.
            logger.exception("The receiver failed and closes a connection")

    async def _serve_secured(self, stream: trio.abc.Stream) -> None:
        if self._ssl_context is not None:
            stream = trio.SSLStream(stream, self._ssl_context, server_side=True, https_compatible=True)
        async with stream:
            connection = Connection(stream)
            try:
                while (head := await connection.next_head()) and await self._serve_request(connection, head):
                    pass
            except h11.RemoteProtocolError as error:
                await connection.refuse(refusal(error.error_status_hint, str(error)))

    async def _serve_request(self, connection: Connection, head: h11.Request) -> bool:
        """Read a request and answer it as scripted. Return whether the connection continues."""
        if self._is_down():
            return False
        entry = self._script.take()
        if isinstance(entry, Reset) and entry.when == "before_body":
            self._note_outcome(self._receive(head, b""), None)
            await connection.reset()
            return False
        try:
            body = await connection.read_body(head, self._max_request_bytes)
        except BodyTooLarge:
            request = self._receive(head, None)
            await connection.refuse(self._settle(request, request.default_answer))
            return False
        request = self._receive(head, body)
        return await self._fulfil(connection, request, self._outcome(request, entry))

    def _receive(self, head: h11.Request, body: bytes | None) -> ReceivedRequest:
        limit = self._max_request_bytes
        request = read_request(head, body, path=self._path, location_header=self._location_header, max_bytes=limit)
        if self._keep:
            self.requests.append(request)
        self._received += 1
        self._request_received.unpark_all()
        return request

    def _outcome(self, request: ReceivedRequest, entry: Outcome | Fault | None) -> Outcome:
        try:
            script = self._script.of(request)
            if script is not self._script:
                entry = script.take()
            outcome = script.outcome(entry, lambda: request.spans)
        except Exception:
            logger.exception("The receiver's answers failed; the request is answered 500")
            return _failed("answers")
        if outcome is None:
            outcome = request.default_answer
        return attrs.evolve(outcome, delay=outcome.delay + script.delay) if isinstance(outcome, Answer) else outcome

    async def _fulfil(self, connection: Connection, request: ReceivedRequest, outcome: Outcome) -> bool:
        if isinstance(outcome, Answer):
            await trio.sleep(outcome.delay)
            await connection.respond(self._settle(request, outcome))
            return connection.start_next_cycle()
        if self._note_outcome(request, None) and outcome.store:
            self._store(request, request.spans)
        if isinstance(outcome, Hang):
            await connection.wait_for_end()
        elif isinstance(outcome, Drip):
            await connection.drip(outcome)
        else:
            if outcome.when == "mid_response":
                await connection.respond(request.default_answer, half=True)
            await connection.reset()
        return False

    def _settle(self, request: ReceivedRequest, answer: Answer) -> Answer:
        """Store the spans that ``answer`` accepts. Return the answer to send: 500 if ``on_request`` failed."""
        if not self._note_outcome(request, answer.status):
            return _failed("on_request")
        if answer.stores:
            self._store(request, answer.accepted(request.spans))
        return answer

    def _note_outcome(self, request: ReceivedRequest, status: int | None) -> bool:
        try:
            if self._on_request is not None:
                self._on_request(request, status)
        except Exception:
            logger.exception("The receiver's on_request failed")
            return False
        return True

    def _store(self, request: ReceivedRequest, spans: Sequence[SpanMessage]) -> None:
        if self._keep and spans:
            self.stored.setdefault(request.location, []).extend(spans)


def _is_header_name(name: str | None) -> bool:
    return name is None or re.fullmatch(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+", name) is not None


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r}{f' {count} times' if count > 1 else ''}" for name, count in sorted(names.items()))


def _failed(name: str) -> Answer:
    return Answer(500, headers=[("content-type", "text/plain")], body=f"the receiver's {name} failed".encode())
