"""The exporter against the real receiver: over TCP, and over memory where time matters."""

from __future__ import annotations

import gc
import gzip
import logging
import math
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpcore
import httpx
import pytest
import trio
import trio.testing
from exporter_support import batch_of, encoded_span, no_connections_left
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from trio_spanbatch import (
    Delivered,
    InvalidLocationError,
    OTLPExporter,
    Refused,
    SpanBatch,
    SpanExporter,
    TryLater,
)
from trio_spanbatch._exporter import LocationChecker
from trio_spanbatch._version import __version__
from trio_spanbatch.otlp.auth import Auth, AuthError
from trio_spanbatch.otlp.body import PIECE, BoundedBody, gzip_compress
from trio_spanbatch.otlp.http import KEEPALIVE_EXPIRY
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome, ReceivedRequest, Reset, partial_success

ENDPOINT = "http://localhost:4318/v1/traces"
SECRET = "dapi-0123456789abcdef"


async def export_once(receiver: OTLPReceiver, batch: SpanBatch | None = None, **options: Any) -> Any:
    exporter = OTLPExporter(receiver.url, **options)
    try:
        return await exporter.export(batch or batch_of())
    finally:
        await exporter.aclose()


def stored(receiver: OTLPReceiver) -> list[SpanMessage]:
    return [span for spans in receiver.stored.values() for span in spans]


def over_memory(receiver: OTLPReceiver, **options: Any) -> OTLPExporter:
    return OTLPExporter(receiver.url, transport=receiver.memory_transport(), **options)


# What is sent.


async def test_a_batch_arrives_with_the_headers_that_the_specification_asks_for() -> None:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        result = await export_once(receiver, batch_of(3, "tenant 7"), location_header="X-Scope-OrgID")
        assert result == Delivered()
        headers = dict(receiver.requests[0].headers)
        assert headers["content-type"] == "application/x-protobuf"
        assert headers["user-agent"].startswith(f"trio-spanbatch/{__version__} (OTLP exporter; Python 3.")
        assert headers["accept-encoding"] == "gzip, deflate"
        assert "content-encoding" not in headers
        assert "transfer-encoding" not in headers
        assert [span.name for span in receiver.stored["tenant 7"]] == ["step"] * 3


async def test_the_exporter_is_what_a_batcher_asks_for() -> None:
    exporter: SpanExporter = OTLPExporter(ENDPOINT)
    assert isinstance(exporter, LocationChecker)
    await exporter.aclose()


@pytest.mark.parametrize(("endpoint", "path"), [("", "/"), ("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/a/b", "/a/b")])
async def test_the_endpoint_is_used_as_it_is_and_no_path_means_the_root(endpoint: str, path: str) -> None:
    async with OTLPReceiver(path=None) as receiver:
        exporter = OTLPExporter(f"http://127.0.0.1:{receiver.port}{endpoint}")
        assert await exporter.export(batch_of()) == Delivered()
        assert receiver.requests[0].target == path
        await exporter.aclose()


async def test_compressed_requests_say_so_and_arrive() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, batch_of(300), compression="gzip") == Delivered()
        request = receiver.requests[0]
        assert request.header("content-encoding") == "gzip"
        assert int(request.header("content-length") or 0) < batch_of(300).size / 2
        assert len(stored(receiver)) == 300


async def test_compression_checkpoints_after_each_piece_and_restores_to_the_same_bytes() -> None:
    body = bytes(range(256)) * (PIECE // 16)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        assert gzip.decompress(await gzip_compress(body)) == body
        nursery.cancel_scope.cancel()
    assert ticks >= len(body) // PIECE - 3


async def test_a_large_request_arrives_whole() -> None:
    async with OTLPReceiver() as receiver:
        batch = SpanBatch("", tuple(encoded_span(n, "x" * PIECE) for n in range(1, 40)))
        assert await export_once(receiver, batch) == Delivered()
        assert len(stored(receiver)) == 39


async def test_a_batch_without_spans_is_not_sent() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, SpanBatch("x", ())) == Delivered()
        assert receiver.requests == []


async def test_a_request_that_is_too_large_is_not_sent_and_may_be_split() -> None:
    async with OTLPReceiver() as receiver:
        batch = batch_of(10)
        result = await export_once(receiver, batch, max_request_bytes=batch.size - 1)
        assert isinstance(result, Refused)
        assert result.isolate
        assert result.status_code is None
        assert str(batch.size) in result.reason
        assert receiver.requests == []
        assert await export_once(receiver, batch, max_request_bytes=batch.size) == Delivered()


async def test_the_limit_of_a_request_is_64_mib_before_compression_by_default() -> None:
    async with OTLPReceiver() as receiver:
        batch = SpanBatch("x", (encoded_span(),), size=64 * 1024 * 1024 + 1)
        assert isinstance(await export_once(receiver, batch, compression="gzip"), Refused)
        assert receiver.requests == []


async def test_a_user_agent_of_the_users_stands_before_the_exporters_own() -> None:
    async with OTLPReceiver() as receiver:
        await export_once(receiver, headers={"User-Agent": "my-agents/2"})
        assert (receiver.requests[0].header("user-agent") or "").startswith("my-agents/2 trio-spanbatch/")


async def test_static_headers_are_sent_with_every_request() -> None:
    async with OTLPReceiver() as receiver:
        await export_once(receiver, headers={"X-Mixed-Case": "a b", "empty": "", "latin": "\xe9"})
        headers = dict(receiver.requests[0].headers)
        assert (headers["x-mixed-case"], headers["empty"], headers["latin"]) == ("a b", "", "\xe9")


async def test_connections_are_kept_alive() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        for _ in range(5):
            assert await exporter.export(batch_of()) == Delivered()
        assert receiver.connections == 1
        await exporter.aclose()
    assert KEEPALIVE_EXPIRY > 5


async def test_connections_are_kept_alive_after_errors_too() -> None:
    async with OTLPReceiver(answers=[Answer(503, body=b"busy"), Answer(400, body=b"bad" * 50_000)]) as receiver:
        exporter = OTLPExporter(receiver.url)
        for _ in range(3):
            await exporter.export(batch_of())
        assert receiver.connections == 1
        await exporter.aclose()


async def test_any_number_of_exports_run_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=lambda _: Answer(delay=1), listen=False) as receiver:
        limits = httpx.Limits(max_connections=None)
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport(limits=limits), timeout=1.5)
        results = []

        async def export() -> None:
            results.append(await exporter.export(batch_of()))

        async with trio.open_nursery() as nursery:
            for _ in range(150):
                nursery.start_soon(export)
        assert results == [Delivered()] * 150
        await exporter.aclose()


async def test_a_client_of_the_exporters_own_never_queues_for_a_connection() -> None:
    gate = trio.Event()
    async with OTLPReceiver(answers=lambda _: Hang()) as receiver:
        exporter = OTLPExporter(receiver.url)
        async with trio.open_nursery() as nursery:
            for _ in range(110):
                nursery.start_soon(exporter.export, batch_of())
            await receiver.wait_for_requests(110)
            nursery.cancel_scope.cancel()
        gate.set()
        await exporter.aclose()


# What comes back.


async def test_a_partial_success_is_a_delivery_with_rejected_spans() -> None:
    async with OTLPReceiver(answers=[partial_success(2, "too old")]) as receiver:
        assert await export_once(receiver, batch_of(5)) == Delivered(2, "too old")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_answers_are_read(encoding: str) -> None:

    plain = partial_success(2, "too old")
    body = gzip.compress(plain.body) if encoding == "gzip" else zlib.compress(plain.body)
    answer = Answer(headers=[*plain.headers, ("content-encoding", encoding)], body=body)
    async with OTLPReceiver(answers=[answer]) as receiver:
        assert await export_once(receiver) == Delivered(2, "too old")


async def test_retry_after_comes_with_the_result() -> None:
    async with OTLPReceiver(answers=[Answer(429, headers=[("Retry-After", "17")])]) as receiver:
        assert await export_once(receiver) == TryLater("429 Too Many Requests", after=17.0)


async def test_a_retry_after_date_is_relative_to_now() -> None:
    headers = [("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")]
    async with OTLPReceiver(answers=[Answer(503, headers=headers)]) as receiver:
        assert await export_once(receiver) == TryLater("503 Service Unavailable", after=0.0)


@pytest.mark.parametrize("location", ["/elsewhere", "https://user:pw@elsewhere.example/?pw", "http://[::", "//", ""])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_and_refused(status: int, location: str) -> None:
    async with OTLPReceiver(answers=[Answer(status, headers=[("Location", location)])], path=None) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, Refused)
        assert result.status_code == status
        assert "pw" not in result.reason
        assert len(receiver.requests) == 1


async def test_a_client_that_follows_redirects_does_not_follow_them_here() -> None:
    async with OTLPReceiver(answers=[Answer(307, headers=[("Location", "/elsewhere")])], path=None) as receiver:
        async with httpx.AsyncClient(follow_redirects=True) as client:
            assert isinstance(await export_once(receiver, client=client), Refused)
        assert len(receiver.requests) == 1


async def test_a_login_page_is_refused() -> None:
    answer = Answer(headers=[("Content-Type", "text/html")], body=b"<html><title>Sign in</title></html>")
    async with OTLPReceiver(answers=[answer]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, Refused)
        assert "login page?" in result.reason


async def test_cookies_are_neither_kept_nor_sent() -> None:
    async with OTLPReceiver(answers=[Answer(headers=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")])]) as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        await exporter.export(batch_of())
        assert receiver.requests[1].header("cookie") is None
        await exporter.aclose()


# What breaks.


async def test_a_server_that_is_not_there_is_tried_later_and_not_ambiguous() -> None:
    async with OTLPReceiver() as receiver:
        url = receiver.url
    exporter = OTLPExporter(url)
    result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert result.reason.startswith("cannot connect to 127.0.0.1:")
    assert "refused" in result.reason.lower()
    await exporter.aclose()


async def test_a_host_with_several_addresses_that_all_refuse_says_so() -> None:
    async with OTLPReceiver() as receiver:
        port = receiver.port
    exporter = OTLPExporter(f"http://localhost:{port}")
    result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert result.reason.startswith(f"cannot connect to localhost:{port}: ")
    assert "refused" in result.reason.lower()
    await exporter.aclose()


async def test_a_host_that_does_not_exist_is_tried_later() -> None:
    class NoSuchHost(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_args: Any, **_options: Any) -> Any:
            raise trio.socket.gaierror(-2, "Name or service not known")

        async def getnameinfo(self, *_args: Any) -> Any:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(NoSuchHost())
    exporter = OTLPExporter("http://collector.test:4318")
    result = await exporter.export(batch_of())
    assert result == TryLater("cannot connect to collector.test:4318: Name or service not known")
    await exporter.aclose()


@pytest.mark.parametrize("when", ["before_body", "after_body", "mid_response"])
async def test_a_connection_that_breaks_after_the_request_began_is_ambiguous(when: Any) -> None:
    async with OTLPReceiver(answers=[Reset(when)]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        assert f"the exchange with 127.0.0.1:{receiver.port} broke" in result.reason


async def test_a_server_that_closes_without_a_word_is_ambiguous() -> None:
    async with OTLPReceiver(answers=[Drip([])]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        assert "Server disconnected" in result.reason


async def test_a_delivery_whose_answer_breaks_off_is_ambiguous() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 100\r\n\r\nxx"
    async with OTLPReceiver(answers=[Drip([head])]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous


async def test_a_failure_whose_answer_breaks_off_is_what_its_status_says() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\nno such table"
    async with OTLPReceiver(answers=[Drip([head])]) as receiver:
        assert await export_once(receiver) == Refused("400 Bad Request: no such table", 400, isolate=True)


async def test_something_that_is_no_http_is_tried_later() -> None:
    async with OTLPReceiver(answers=[Drip([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"])]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert "illegal status line" in result.reason


async def test_a_server_that_never_answers_ends_with_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=[Hang()], listen=False) as receiver:
        exporter = over_memory(receiver)
        began = trio.current_time()
        result = await exporter.export(batch_of())
        assert trio.current_time() - began == pytest.approx(10)
        assert result == TryLater("no complete answer from receiver.test:80 within 10 s", ambiguous=True)
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.open_connections == 0
        await exporter.aclose()


async def test_a_server_that_never_accepts_ends_with_the_timeout_and_is_not_ambiguous(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with OTLPReceiver(listen=False) as receiver:
        receiver.network.connect_delay = math.inf
        exporter = over_memory(receiver, timeout=3)
        result = await exporter.export(batch_of())
        assert result == TryLater("no connection to receiver.test:80 within 3 s")
        await exporter.aclose()


async def test_the_timeout_is_for_the_whole_attempt_not_for_its_steps(autojump_clock: trio.testing.MockClock) -> None:
    body = [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", *[b"x"] * 1000]
    async with OTLPReceiver(answers=[Drip(body, 1.0)], listen=False) as receiver:
        receiver.network.connect_delay = 4.0
        exporter = over_memory(receiver)
        began = trio.current_time()
        result = await exporter.export(batch_of())
        assert trio.current_time() - began == pytest.approx(10)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        await exporter.aclose()


async def test_a_failure_that_drips_is_what_its_status_says_when_time_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 9\r\ncontent-length: 1000\r\n\r\nbusy"
    async with OTLPReceiver(answers=[Drip([head, *[b" "] * 1000], 1.0)], listen=False) as receiver:
        exporter = over_memory(receiver)
        assert await exporter.export(batch_of()) == TryLater("503 Service Unavailable: busy", after=9.0)
        await exporter.aclose()


async def test_without_a_timeout_an_attempt_takes_as_long_as_it_takes(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=[Answer(delay=5000)], listen=False) as receiver:
        exporter = over_memory(receiver, timeout=math.inf)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()


async def test_a_transport_that_tells_nothing_leaves_a_timeout_ambiguous(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hang(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    exporter = OTLPExporter(ENDPOINT, transport=httpx.MockTransport(hang))
    result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert result.ambiguous
    await exporter.aclose()


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (httpx.PoolTimeout("x"), TryLater("cannot connect to localhost:4318: x")),
        (httpx.ProxyError("407 No"), TryLater("the proxy localhost:4318 does not connect: 407 No")),
        (httpx.ReadError(""), TryLater("the exchange with localhost:4318 broke: ReadError", ambiguous=True)),
        (httpx.DecodingError("x"), TryLater("the exchange with localhost:4318 broke: x", ambiguous=True)),
        (httpx.LocalProtocolError(f"b'{SECRET}'"), Refused("the request cannot be sent: LocalProtocolError")),
        (httpx.UnsupportedProtocol("x"), Refused("the request cannot be sent: UnsupportedProtocol")),
        (httpx.InvalidURL(SECRET), Refused("the request cannot be sent: InvalidURL")),
        (httpx.ReadError(f"no {SECRET}"), TryLater("the exchange with localhost:4318 broke: no ***", ambiguous=True)),
    ],
)  # fmt: skip
async def test_each_exception_of_httpx_is_a_result(error: Exception, result: object) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    headers = {"authorization": f"Bearer {SECRET}"}
    exporter = OTLPExporter(ENDPOINT, transport=httpx.MockTransport(fail), headers=headers)
    assert await exporter.export(batch_of()) == result
    await exporter.aclose()


async def test_another_exception_is_a_bug_and_leaves_as_it_is() -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    exporter = OTLPExporter(ENDPOINT, transport=httpx.MockTransport(fail))
    with pytest.raises(ZeroDivisionError):
        await exporter.export(batch_of())
    await exporter.aclose()


class FailingBody(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async def aclose(self) -> None:
        self.closed = True


async def test_a_response_is_closed_whatever_happens_while_it_is_read() -> None:
    body = FailingBody()
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=body))
    exporter = OTLPExporter(ENDPOINT, transport=transport)
    with pytest.raises(ZeroDivisionError):
        await exporter.export(batch_of())
    assert body.closed
    await exporter.aclose()


@pytest.mark.parametrize("outcome", [Hang(), Drip([b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", b"x", b"x"], 5)])
async def test_a_cancelled_export_closes_its_connection(outcome: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=[outcome], listen=False) as receiver:
        exporter = over_memory(receiver)
        with trio.move_on_after(7) as scope:
            await exporter.export(batch_of())
        assert scope.cancelled_caught
        await trio.sleep(10)  # A server that drips notices with its next byte.
        assert receiver.open_connections == 0
        gc.collect()
        await exporter.aclose()


async def test_a_cancel_between_connecting_and_sending_leaves_nothing_in_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OTLPReceiver(listen=False) as receiver:
        transport = receiver.memory_transport()
        exporter = OTLPExporter(receiver.url, transport=transport)
        connect_tcp = receiver.network.connect_tcp

        async def connect_while_cancelled(*args: Any, **options: Any) -> Any:
            stream = await connect_tcp(*args, **options)
            scope.cancel()
            return stream

        monkeypatch.setattr(receiver.network, "connect_tcp", connect_while_cancelled)
        with trio.CancelScope() as scope:
            await exporter.export(batch_of())
        assert scope.cancelled_caught
        await no_connections_left(receiver)
        pool = transport._pool
        assert isinstance(pool, httpcore.AsyncConnectionPool)
        assert pool.connections == []
        assert receiver.requests == []
        await exporter.aclose()


# The location.


@pytest.mark.parametrize(
    "location", ["", " a", "a ", "a\r\nb", "a\nb", "a\0b", "a\tb", "caf\xe9", "\u8868", "a\x7f", "\n", "x" * 200 + "\n"]
)
async def test_a_location_that_no_header_can_carry_is_invalid(location: str) -> None:
    exporter = OTLPExporter(ENDPOINT, location_header="X-Scope-OrgID")
    with pytest.raises(InvalidLocationError) as caught:
        exporter.check_location(location)
    assert repr(location[:100])[:-1] in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidLocationError):
        await exporter.export(batch_of(1, location))
    await exporter.aclose()


@pytest.mark.parametrize("location", ["a", "main.agents.spans", "a b", "42", "~!", "x" * 5000])
async def test_printable_ascii_is_a_location(location: str) -> None:
    exporter = OTLPExporter(ENDPOINT, location_header="X-Scope-OrgID")
    exporter.check_location(location)
    await exporter.aclose()


async def test_without_a_location_header_every_location_will_do() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, batch_of(1, "\u8868\n")) == Delivered()


# What is checked when it is made.


@pytest.mark.parametrize(
    "endpoint",
    [
        f"http://user:{SECRET}@localhost/v1/traces",
        f"http://{SECRET}@localhost",
        f"https://localhost/v1/traces?api_key={SECRET}",
        f"https://user:{SECRET}@localhost/v1/traces?api_key={SECRET}",
        f"https://localhost/#{SECRET}",
        f"http:user:{SECRET}@localhost",
        f"{SECRET}@localhost",
        f"http://user:{SECRET}\\@localhost/",
        f"ftp://user:{SECRET}@localhost?{SECRET}",
    ],
)
def test_credentials_in_the_url_are_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        OTLPExporter(endpoint)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "headers=" in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "localhost:4318", "/v1/traces", "http://", "https:///v1/traces", "ftp://localhost", "http://localhost:port",
        "http://localhost:99999999", "http://localhost:0", "http://a\nb/", f"http://{'a' * 64}.example", "http://[::1",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_no_http_url_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        OTLPExporter(endpoint)


@pytest.mark.parametrize("value", [f"Bearer {SECRET}\n", f"{SECRET}\r\nx: y", f" {SECRET}", f"{SECRET} ", f"{SECRET}\0",
                                   f"{SECRET}\u20ac", f"{SECRET}\x7f", f"{SECRET}\ud800", f"{SECRET}\x0b"])  # fmt: skip
def test_a_header_value_that_cannot_be_sent_is_refused_by_the_headers_name(value: str) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        OTLPExporter(ENDPOINT, headers={"authorization": value})
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"headers": {"a b": "c"}}, ValueError, "'a b' is no header name"),
        ({"headers": {"": "c"}}, ValueError, "no header name"),
        ({"headers": {"Content-Type": "c"}}, ValueError, "set by the exporter itself"),
        ({"headers": {"Host": "c"}}, ValueError, "set by the exporter itself"),
        ({"headers": {"a": 1}}, TypeError, "header 'a'"),
        ({"headers": {b"a": "b"}}, TypeError, "bytes"),
        ({"location_header": "a\n"}, ValueError, "location_header"),
        ({"location_header": "Content-Encoding"}, ValueError, "set by the exporter itself"),
        ({"location_header": "X-Tenant", "headers": {"x-tenant": "a"}}, ValueError, "also among headers"),
        ({"location_header": "User-Agent"}, ValueError, "also among headers"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": -1.0}, ValueError, "timeout is -1.0"),
        ({"timeout": math.nan}, ValueError, "timeout is nan"),
        ({"timeout": "10"}, TypeError, "timeout is '10'"),
        ({"timeout": True}, TypeError, "timeout is True"),
        ({"compression": "br"}, ValueError, "compression is 'br'"),
        ({"max_request_bytes": 0}, ValueError, "max_request_bytes is 0"),
        ({"max_response_bytes": 1.5}, TypeError, "max_response_bytes is 1.5"),
        ({"auth": ("user", SECRET)}, TypeError, "client="),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        OTLPExporter(ENDPOINT, **options)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_an_endpoint_is_a_string() -> None:
    with pytest.raises(TypeError, match="endpoint"):
        OTLPExporter(httpx.URL(ENDPOINT))  # type: ignore[arg-type]  # that is what is tested


def test_it_is_made_outside_of_trio_and_shows_nothing_secret() -> None:
    exporter = OTLPExporter("http://localhost:4318/v1/traces", headers={"authorization": SECRET}, auth=lambda _: {})
    assert repr(exporter) == "<OTLPExporter for http://localhost:4318/v1/traces>"
    assert exporter.endpoint == "http://localhost:4318/v1/traces"


# Whose client it is, and its end.


async def test_closing_closes_its_connections_and_exporting_then_raises() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        await exporter.aclose()
        await exporter.aclose()
        await no_connections_left(receiver)
        with pytest.raises(trio.ClosedResourceError):
            await exporter.export(batch_of())


async def test_closing_while_cancelled_still_closes() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        with trio.CancelScope() as scope:
            scope.cancel()
            await exporter.aclose()
        assert scope.cancelled_caught
        await no_connections_left(receiver)


async def test_a_client_that_was_given_is_not_closed_and_keeps_its_settings() -> None:
    async with OTLPReceiver() as receiver, httpx.AsyncClient(headers={"x-own": "1"}, cookies={"c": "d"}) as client:
        assert await export_once(receiver, client=client) == Delivered()
        assert not client.is_closed
        assert receiver.requests[0].header("x-own") == "1"
        assert receiver.requests[0].header("cookie") == "c=d"


async def test_a_client_that_was_closed_is_reported_as_closed() -> None:
    client = httpx.AsyncClient()
    await client.aclose()
    exporter = OTLPExporter(ENDPOINT, client=client)
    with pytest.raises(trio.ClosedResourceError, match="given"):
        await exporter.export(batch_of())


async def test_a_client_and_a_transport_exclude_each_other() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ValueError, match="exclude each other"):
            OTLPExporter(ENDPOINT, client=client, transport=httpx.AsyncHTTPTransport())


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver(path=None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "other.test")
        exporter = OTLPExporter("http://collector.test/v1/traces")
        assert await exporter.export(batch_of()) == Delivered()
        assert proxy.requests[0].target == "http://collector.test/v1/traces"
        assert proxy.requests[0].header("proxy-authorization") is not None
        await exporter.aclose()


async def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver(answers=[Answer(407)], path=None) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        exporter = OTLPExporter("https://collector.test/v1/traces")
        result = await exporter.export(batch_of())
        assert isinstance(result, TryLater)
        assert result.reason.startswith(f"the proxy 127.0.0.1:{proxy.port} does not connect: 407")
        assert not result.ambiguous
        await exporter.aclose()


# Credentials that are made.


def bearer_for(location: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer for-{location}"}


async def test_auth_is_a_function_of_the_location() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url, auth=bearer_for, headers={"authorization": "replaced"})
        await exporter.export(batch_of(1, "a"))
        await exporter.export(batch_of(1, "b"))
        assert [r.header("authorization") for r in receiver.requests] == ["Bearer for-a", "Bearer for-b"]
        await exporter.aclose()


async def test_auth_may_be_async() -> None:
    async def auth(location: str) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {"Authorization": f"Bearer for-{location}"}

    async with OTLPReceiver() as receiver:
        await export_once(receiver, batch_of(1, "a"), auth=auth)
        assert receiver.requests[0].header("authorization") == "Bearer for-a"


class CachedToken:
    """An `Auth` whose token the server stops accepting."""

    def __init__(self) -> None:
        self.serial = 0
        self.invalidated: list[tuple[str, Mapping[str, str]]] = []

    async def headers(self, location: str) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {"authorization": f"Bearer {self.serial}"}

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        self.invalidated.append((location, headers))
        self.serial += 1


def only(token: str) -> Callable[[ReceivedRequest], Answer | None]:
    return lambda request: None if request.header("authorization") == token else Answer(401)


async def test_after_a_401_credentials_are_fetched_once_more_and_the_request_repeated() -> None:
    async with OTLPReceiver(answers=only("Bearer 1")) as receiver:
        auth = CachedToken()
        assert isinstance(auth, Auth)
        assert await export_once(receiver, batch_of(2), auth=auth) == Delivered()
        assert auth.invalidated == [("tenant-1", {"authorization": "Bearer 0"})]
        assert len(receiver.requests) == 2


async def test_a_401_after_which_there_are_no_credentials_is_tried_later() -> None:
    class Expired(CachedToken):
        async def headers(self, location: str) -> Mapping[str, str]:
            if self.invalidated:
                raise AuthError("the token endpoint answered 503")
            return await super().headers(location)

    async with OTLPReceiver(answers=lambda _: Answer(401)) as receiver:
        result = await export_once(receiver, auth=Expired())
        assert result == TryLater("no credentials: the token endpoint answered 503")


async def test_a_second_401_is_refused() -> None:
    async with OTLPReceiver(answers=lambda _: Answer(401, body=b"no")) as receiver:
        auth = CachedToken()
        assert await export_once(receiver, auth=auth) == Refused("401 Unauthorized: no", 401)
        assert len(receiver.requests) == 2
        assert len(auth.invalidated) == 1


async def test_the_same_credentials_are_not_sent_again_after_a_401() -> None:
    async with OTLPReceiver(answers=lambda _: Answer(401)) as receiver:
        result = await export_once(receiver, auth=lambda _: {"authorization": "Bearer fixed"})
        assert result == Refused("401 Unauthorized", 401)
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (AuthError("the token endpoint answered 503"), TryLater("no credentials: the token endpoint answered 503")),
        (AuthError("no profile", retry=False), Refused("no credentials: no profile")),
        (httpx.ConnectError(SECRET), TryLater("no credentials: ConnectError while they were fetched")),
        (TimeoutError(SECRET), TryLater("no credentials: TimeoutError while they were fetched")),
        (trio.TooSlowError(), TryLater("no credentials: TooSlowError while they were fetched")),
    ],
)
async def test_without_credentials_nothing_is_sent(error: Exception, result: object) -> None:
    def auth(_location: str) -> Mapping[str, str]:
        raise error

    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, auth=auth) == result
        assert receiver.requests == []


async def test_another_exception_of_auth_is_a_bug_and_leaves_as_it_is() -> None:
    def auth(_location: str) -> Mapping[str, str]:
        raise ZeroDivisionError

    async with OTLPReceiver() as receiver:
        with pytest.raises(ZeroDivisionError):
            await export_once(receiver, auth=auth)


@pytest.mark.parametrize("headers", [{"authorization": f"{SECRET}\n"}, {"authorization": 5}, {"content-type": SECRET}])
async def test_credentials_that_cannot_be_sent_are_refused_and_not_shown(headers: Any) -> None:
    async with OTLPReceiver() as receiver:
        result = await export_once(receiver, auth=lambda _: headers)
        assert isinstance(result, Refused)
        assert result.reason.startswith("auth: ")
        assert SECRET not in result.reason
        assert receiver.requests == []


async def test_fetching_credentials_counts_towards_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async def auth(_location: str) -> Mapping[str, str]:
        await trio.sleep_forever()
        raise AssertionError

    exporter = OTLPExporter(ENDPOINT, auth=auth)
    assert await exporter.export(batch_of()) == TryLater("no credentials, or no time to compress, within 10 s")
    await exporter.aclose()


# Secrets.


async def test_no_secret_is_in_any_log_not_even_at_debug(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "trio_spanbatch"):
        caplog.set_level(logging.DEBUG, name)
    echo = f"no such token: Bearer {SECRET}".encode()
    answers: list[Outcome] = [Answer(401, body=echo), Reset(), Answer(503), Answer(200)]
    async with OTLPReceiver(answers=answers) as receiver:
        exporter = OTLPExporter(
            receiver.url, headers={"x-api-key": f"key-{SECRET}"}, auth=lambda _: {"authorization": f"Bearer {SECRET}"}
        )
        results = [await exporter.export(batch_of()) for _ in range(4)]
        await exporter.aclose()
        with pytest.raises(ValueError, match="not shown"):
            OTLPExporter(receiver.url, headers={"authorization": f"Bearer {SECRET}\n"})
    assert results[0] == Refused("401 Unauthorized: no such token: ***", 401)
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert SECRET not in caplog.text
    assert SECRET not in repr((results, exporter, exporter.__dict__.get("_client")))


async def test_no_secret_of_a_proxy_is_in_any_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    async with OTLPReceiver(answers=[Answer(407)], path=None) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        for url in ("http://collector.test", "https://collector.test"):
            exporter = OTLPExporter(url)
            await exporter.export(batch_of())
            await exporter.aclose()
    assert SECRET not in caplog.text


# Bodies.


def test_a_body_up_to_the_limit_is_collected_and_one_byte_more_is_too_much() -> None:
    body = BoundedBody("", 10)
    body.feed(b"12345")
    body.feed(b"67890")
    assert (body.content, body.exceeded) == (b"1234567890", False)
    body.feed(b"!")
    body.feed(b"?")
    assert body.exceeded


def test_the_limit_counts_after_decompression() -> None:
    just = BoundedBody("gzip", 1000)
    just.feed(gzip.compress(b"x" * 1000) + b"trailing bytes are ignored")
    assert (just.content, just.exceeded) == (b"x" * 1000, False)
    over = BoundedBody(" GZIP ", 1000)
    over.feed(gzip.compress(b"x" * 1001))
    assert over.exceeded


def test_deflate_comes_in_two_formats() -> None:

    raw = zlib.compressobj(wbits=-15)
    for data in (zlib.compress(b"abc"), raw.compress(b"abc") + raw.flush()):
        body = BoundedBody("deflate", 1000)
        for byte in range(0, len(data), 4):
            body.feed(data[byte : byte + 4])
        assert body.content == b"abc"


@pytest.mark.parametrize(
    ("encoding", "data"), [("br", b"abc"), ("gzip", b"not gzip"), ("deflate", b"\xff\xff"), ("gzip, gzip", b"")]
)
def test_a_body_that_cannot_be_decompressed_is_not_readable(encoding: str, data: bytes) -> None:
    body = BoundedBody(encoding, 1000)
    body.feed(data)
    body.feed(b"more")
    assert body.content is None
    assert not body.readable
