"""Exchanges that break: over TCP, and over memory where time matters."""

from __future__ import annotations

import gc
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.support.exporters import ENDPOINT, SECRET, batch_of, export_once, no_connections_left, over_memory
from trio_spanbatch import Delivered, OTLPExporter, Refused, TryLater
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Reset


async def test_an_unreachable_server_is_retried_and_not_ambiguous() -> None:
    async with OTLPReceiver() as receiver:
        url = receiver.url
    exporter = OTLPExporter(url)
    result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert result.reason.startswith("cannot connect to 127.0.0.1:")
    assert "refused" in result.reason.lower()
    await exporter.aclose()


async def test_the_error_for_a_host_says_that_all_of_its_addresses_refuse() -> None:
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
    assert result == TryLater("cannot connect to collector.test:4318: Name or service not known", endpoint=True)
    await exporter.aclose()


@pytest.mark.parametrize("when", ["before_body", "after_body", "mid_response"])
async def test_a_connection_that_breaks_after_the_request_began_is_ambiguous(when: Any) -> None:
    async with OTLPReceiver(answers=[Reset(when)]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        assert f"the exchange with 127.0.0.1:{receiver.port} broke" in result.reason


async def test_a_server_that_closes_without_a_response_is_ambiguous() -> None:
    async with OTLPReceiver(answers=[Drip([])]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        assert "Server disconnected" in result.reason


async def test_a_delivery_whose_response_breaks_off_is_ambiguous() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 100\r\n\r\nxx"
    async with OTLPReceiver(answers=[Drip([head])]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, TryLater)
        assert result.ambiguous


async def test_a_failure_whose_response_breaks_off_counts_by_its_status() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\nno such table"
    async with OTLPReceiver(answers=[Drip([head])]) as receiver:
        assert await export_once(receiver) == Refused("400 Bad Request: no such table", 400, isolate=True)


async def test_a_response_that_is_not_http_is_retried() -> None:
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
        assert result == TryLater("no connection to receiver.test:80 within 3 s", endpoint=True)
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


async def test_a_failure_that_arrives_too_slowly_counts_by_its_status(
    autojump_clock: trio.testing.MockClock,
) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 9\r\ncontent-length: 1000\r\n\r\nbusy"
    async with OTLPReceiver(answers=[Drip([head, *[b" "] * 1000], 1.0)], listen=False) as receiver:
        exporter = over_memory(receiver)
        assert await exporter.export(batch_of()) == TryLater(
            "503 Service Unavailable: busy", after=9.0, status_code=503
        )
        await exporter.aclose()


async def test_without_a_timeout_an_attempt_has_no_time_limit(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=[Answer(delay=5000)], listen=False) as receiver:
        exporter = over_memory(receiver, timeout=math.inf)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()


async def test_a_timeout_is_ambiguous_with_a_transport_without_a_trace(
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
        (httpx.ProxyError("407 No"), TryLater("the proxy localhost:4318 does not connect: 407 No", endpoint=True)),
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


async def test_other_exceptions_are_bugs_and_propagate() -> None:
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


async def test_a_response_is_closed_even_if_reading_it_fails() -> None:
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


async def test_a_cancel_between_connecting_and_sending_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OTLPReceiver(listen=False) as receiver:
        transport = receiver.memory_transport()
        exporter = OTLPExporter(receiver.url, transport=transport)
        connect_tcp = receiver.network.connect_tcp

        async def connect_while_cancelled(host: str, port: int) -> Any:
            stream = await connect_tcp(host, port)
            scope.cancel()
            return stream

        monkeypatch.setattr(receiver.network, "connect_tcp", connect_while_cancelled)
        with trio.CancelScope() as scope:
            await exporter.export(batch_of())
        assert scope.cancelled_caught
        await no_connections_left(receiver)
        assert receiver.requests == []
        await exporter.aclose()
