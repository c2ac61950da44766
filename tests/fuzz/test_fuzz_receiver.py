"""Any bytes on a connection to the receiver: it answers or closes, logs nothing, and serves the next connection."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import Literal

import attrs
import h11
import pytest
import trio
import trio.testing
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fuzz.support import assert_no_growth_in_task, damaged, fuzz, nothing_logged, pieces
from tests.support.receivers import body_of, raw_request, read_all
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Reset

# The report of a failure may be long; as an error, this warning would hide the failure.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

MAX_BYTES = 3_000
GOOD = raw_request(body_of("x", "y"), "Connection: close")
# Seconds of the mock clock. No conversation takes longer: a client that was refused is listened to for two.
PATIENCE = 60

HEADERS = [
    *(b"Host: x", b"Content-Type: application/x-protobuf", b"Content-Encoding: gzip", b"Content-Encoding: deflate"),
    *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 99999999999999999999", b"Content-Length: -1"),
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Expect: 100-continue",
        b"Connection: close",
    ),
    *(
        b"Connection: upgrade",
        b"Upgrade: h2c",
        b"Connection: keep-alive",
        b"X-Tenant: \xff\xfe",
        b"X: " + b"y" * 20_000,
    ),
    *(b" folded", b"No colon", b": nameless", b"X-Tenant: a\x00b", b"Trailer: X"),
]
FIRST_LINES = [
    *(
        b"POST /v1/traces HTTP/1.1",
        b"POST /v1/traces HTTP/1.0",
        b"TRACE /v1/traces HTTP/1.1",
        b"HEAD /v1/traces HTTP/1.1",
    ),
    *(
        b"CONNECT receiver:80 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET /v1/traces?x HTTP/1.1",
        b"POST http://x/v1/traces HTTP/1.1",
    ),
    *(b"PRI * HTTP/2.0", b"POST /v1/traces HTTP/9.9", b"POST /\xff HTTP/1.1", b"POST  HTTP/1.1", b"", b"\x16\x03\x01"),
]
BODIES = [
    *(
        b"",
        b"5\r\nabcde\r\n0\r\n\r\n",
        b"5;x=y\r\nabcde\r\n0\r\nX: y\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"-1\r\n",
        b"zz\r\n",
    ),
    *(
        b"abcde",
        body_of("x"),
        gzip.compress(body_of("x"), mtime=0),
        gzip.compress(b"x" * 100_000, mtime=0),
        b"\x1f\x8b",
        b"y" * 10_000,
    ),
    *(f"{len(body_of('x')):x}\r\n".encode() + body_of("x") + b"\r\n0\r\n\r\n",),
]


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    """A request assembled from parts that need not fit together."""
    lines = [draw(st.sampled_from(FIRST_LINES)), *draw(st.lists(st.sampled_from(HEADERS), max_size=6))]
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]))
    return end.join([*lines, b"", b""]) + draw(st.sampled_from(BODIES))


SPLICES = [b"\r\n", b"\n", b"\r\n\r\n", b" ", b":", b"\x00", b"\r", b"0", b"HTTP/1.1"]
REQUESTS = st.one_of(
    st.just(raw_request(body_of("x"))),
    nearly_requests(),
    nearly_requests().flatmap(lambda data: damaged(data, splices=SPLICES)),
    damaged(raw_request(body_of("x"), "Expect: 100-continue"), splices=SPLICES),
    damaged(raw_request(gzip.compress(body_of("x"), mtime=0), "Content-Encoding: gzip"), splices=SPLICES),
    st.binary(max_size=60),
)
OUTCOMES = st.sampled_from(
    [
        *([None] * 4),
        *(Answer(status) for status in (200, 204, 304, 503)),
        Answer(200, body=b"x" * 100_000, delay=1),
        Answer(200, headers=[("content-length", "9")], body=b"short"),
        Answer(200, headers=[("transfer-encoding", "chunked")], body=b"chunked"),
        Answer(200, headers=[("connection", "close")]),
        *(Reset("before_body"), Reset("after_body"), Reset("mid_response")),
        *(Hang(), Drip([b"HTTP/1.1 200 OK\r\n", b"\r\n", b"x"], interval=1)),
    ]
)


@attrs.frozen
class Visit:
    """The behaviour of one client.

    Attributes:
        chunks: The data that it sends.
        ending: ``"half"``: it closes its sending side, and waits until the receiver is done. ``"stay"``: it waits
            without closing. ``"read"``: it reads for a second, then closes. ``"close"``: it closes at once.
    """

    chunks: list[bytes] = attrs.field(repr=lambda chunks: f"{chunks!r:.3000}")
    ending: Literal["half", "stay", "read", "close"]


@attrs.frozen
class VisitResult:
    """The outcome of a visit.

    Attributes:
        received: The data that the receiver sent.
        served: Whether the receiver ended the conversation by itself.
    """

    received: bytes
    served: bool


@st.composite
def visits(draw: st.DrawFn) -> Visit:
    data = b"".join(draw(st.lists(REQUESTS, max_size=4)))
    return Visit(draw(pieces(data)), draw(st.sampled_from(["half", "half", "stay", "read", "close"])))


async def carry_out(receiver: OTLPReceiver, visit: Visit) -> VisitResult:
    """Carry out ``visit``."""
    client, server = trio.testing.memory_stream_pair()
    received, served = bytearray(), trio.Event()

    async def serve() -> None:
        await receiver.serve_stream(server)
        served.set()

    async def listen() -> None:
        received.extend(await read_all(client))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with trio.open_nursery() as listening:
            if visit.ending != "close":
                listening.start_soon(listen)
            try:
                for chunk in visit.chunks:
                    await client.send_all(chunk)
                if visit.ending == "half":
                    await client.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # The receiver has closed the connection.
            with trio.move_on_after({"read": 1, "close": 0}.get(visit.ending, PATIENCE)):
                await served.wait()
            if not served.is_set():
                listening.cancel_scope.cancel()
        result = VisitResult(bytes(received), served.is_set())
        await client.aclose()
    return result


def on_the_mock_clock(play: Callable[[], Awaitable[None]]) -> None:
    async def with_a_limit() -> None:
        with trio.fail_after(100 * PATIENCE):
            await play()

    with nothing_logged():
        trio.run(with_a_limit, clock=trio.testing.MockClock(autojump_threshold=0))


async def assert_serves_on(receiver: OTLPReceiver, tasks: int) -> None:
    """Fail if earlier connections left something, or if the next one is not served."""
    assert receiver.open_connections == 0
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert (await carry_out(receiver, Visit([GOOD], "stay"))).received.startswith(b"HTTP/1.1 200 ")


@fuzz(60)
@given(st.lists(visits(), min_size=1, max_size=3))
def test_any_bytes_are_answered_or_the_connection_ends(clients: list[Visit]) -> None:
    async def play() -> None:
        async with OTLPReceiver(listen=False, location_header="X-Tenant", max_request_bytes=MAX_BYTES) as receiver:
            tasks = trio.lowlevel.current_statistics().tasks_living
            for client in clients:
                result = await carry_out(receiver, client)
                assert not result.received or result.received.startswith(b"HTTP/1.1 ")
                if client.ending == "half":
                    assert result.served
                    assert result.received[9:12].isdigit() or not b"".join(client.chunks).strip(b"\r\n")
                elif client.ending == "stay":
                    assert result.served or b"connection: close" not in result.received.lower()
            await assert_serves_on(receiver, tasks)

    on_the_mock_clock(play)


@fuzz(60)
@given(st.lists(visits(), min_size=1, max_size=5), st.lists(OUTCOMES, max_size=10))
def test_any_bytes_together_with_any_script_leave_nothing_behind(
    clients: list[Visit], outcomes: list[Answer | Reset | Hang | Drip | None]
) -> None:
    async def play() -> None:
        steps = iter(outcomes)
        receiver = OTLPReceiver(
            listen=False, answers=lambda _request: next(steps, None), keep=False, max_request_bytes=MAX_BYTES
        )
        async with receiver:
            tasks = trio.lowlevel.current_statistics().tasks_living
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(carry_out, receiver, client)
            for _ in steps:
                pass
            await assert_serves_on(receiver, tasks)
            assert receiver.requests == []
            assert receiver.stored == {}

    on_the_mock_clock(play)


@fuzz(60)
@given(visits(), st.integers(0, 3_000))
def test_leaving_the_receiver_ends_any_conversation_at_once(client: Visit, steps: int) -> None:
    async def play() -> None:
        start = trio.current_time()
        receiver = OTLPReceiver(listen=False, answers=lambda _request: Hang(), keep=False)
        async with trio.open_nursery() as nursery:
            async with receiver:
                nursery.start_soon(carry_out, receiver, client)
                for _ in range(steps % 30):
                    await trio.lowlevel.checkpoint()
            assert trio.current_time() == start
            await trio.testing.wait_all_tasks_blocked()
            assert receiver.open_connections == 0
            nursery.cancel_scope.cancel()

    on_the_mock_clock(play)


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "deflate": zlib.compress,
    "br": bytes,
}


def is_request(content: bytes) -> bool:
    try:
        ExportTraceServiceRequest.FromString(content)
    except DecodeError:
        return False
    return True


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    return draw(damaged(body_of("x", "y" * 100)) | st.binary(max_size=50) | st.just(b"\x00" * (MAX_BYTES + 1)))


async def exchange(receiver: OTLPReceiver, headers: list[tuple[str, str]], chunks: list[bytes]) -> int:
    """Send a request with h11, and return the status that it reads."""
    client, server = trio.testing.memory_stream_pair()
    connection = h11.Connection(h11.CLIENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.serve_stream, server)
        sent = connection.send(h11.Request(method="POST", target="/v1/traces", headers=headers)) or b""
        for chunk in chunks:
            sent += connection.send(h11.Data(data=chunk)) or b""
        await client.send_all(sent + (connection.send(h11.EndOfMessage()) or b""))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await client.receive_some()))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                break
        await client.aclose()
    return status


@fuzz(60)
@given(contents(), st.sampled_from(sorted(ENCODINGS)), st.booleans(), st.data())
def test_the_body_of_a_valid_request_is_stored_if_it_parses_and_refused_otherwise(
    content: bytes, encoding: str, chunked: bool, data: st.DataObject
) -> None:
    body = ENCODINGS[encoding](content)
    whole = len(body)
    if encoding in ("gzip", "deflate") and len(content) <= MAX_BYTES and data.draw(st.integers(0, 3)) == 0:
        body = body[: data.draw(st.integers(0, whole))]
    chunks = data.draw(pieces(body)) if chunked else [body]
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    headers = [("Host", "x"), ("Content-Type", "application/x-protobuf"), ("Content-Encoding", encoding), framing]
    if max(len(body), 0 if encoding == "br" else len(content)) > MAX_BYTES:
        expected = 413
    elif len(body) < whole:
        expected = 400
    elif encoding == "br":
        expected = 415
    else:
        expected = 200 if is_request(content) else 400

    async def play() -> None:
        async with OTLPReceiver(listen=False, max_request_bytes=MAX_BYTES) as receiver:
            assert await exchange(receiver, headers, chunks) == expected
            assert receiver.open_connections == 0
            spans = [] if expected != 200 else receiver.requests[0].spans
            assert receiver.stored == ({"default": spans} if spans else {})

    on_the_mock_clock(play)


@fuzz(3, shrink=False)
@given(st.lists(visits(), min_size=3, max_size=8))
def test_a_receiver_that_keeps_nothing_holds_no_more_after_more_visits(clients: list[Visit]) -> None:
    async def play() -> None:
        async with OTLPReceiver(listen=False, keep=False, max_request_bytes=MAX_BYTES) as receiver:

            async def visit_all() -> None:
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(carry_out, receiver, client)
                # Trio forgets a deadline when it has passed, not when its scope was left.
                await trio.sleep(2 * PATIENCE)

            await assert_no_growth_in_task(visit_all)

    on_the_mock_clock(play)
