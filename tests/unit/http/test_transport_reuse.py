"""Which connections are used again: age, idle time, the server's headers, and unexpected data from the server."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.processes import DEADLINE
from tests.support.scripted import (
    OK,
    Tls,
    answer,
    answers,
    listening,
    no_sockets_left,
    post,
    read_head,
    read_request,
    url_of,
)
from trio_spanbatch._http.transport import HTTPTransport

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def clock() -> MockClock:
    """Let time pass only when a test says so; sockets work in real time."""
    return MockClock()


def transport_for(tls: Tls | None) -> HTTPTransport:
    return HTTPTransport(tls.client) if tls else HTTPTransport()


def counted(
    serve: Callable[[trio.abc.Stream], Awaitable[object]], connections: list[int]
) -> Callable[[trio.abc.Stream], Awaitable[object]]:
    async def one(stream: trio.abc.Stream) -> None:
        connections.append(1)
        await serve(stream)

    return one


async def connections_for(
    responses: list[bytes], tls: Tls | None, *, pause: float = 0.0, requests: int = 2, method: str = "POST"
) -> int:
    """Return how many connections are made for some requests with a pause between."""
    connections: list[int] = []
    clock = trio.lowlevel.current_clock()
    with no_sockets_left():
        async with (
            listening(counted(answers(*responses), connections), tls) as port,
            transport_for(tls) as transport,
        ):
            for number in range(requests):
                if number and pause:
                    assert isinstance(clock, MockClock)
                    clock.jump(pause)
                await answer(transport, post(url_of(port, tls), method=method)[0])
    return len(connections)


async def test_a_connection_is_used_again(tls: Tls | None) -> None:
    assert await connections_for([OK], tls, requests=5) == 1


@pytest.mark.parametrize(
    ("idle", "header", "connections"),
    [
        (3.9, b"", 1),
        (4.0, b"", 2),
        (8.9, b"Keep-Alive: timeout=10\r\n", 1),
        (9.0, b"Keep-Alive: timeout=10\r\n", 2),
        (8.9, b"keep-alive: max=100, TIMEOUT = 10\r\n", 1),
        (3.9, b"Keep-Alive: xtimeout=100\r\n", 1),
        (4.0, b"Keep-Alive: xtimeout=100\r\n", 2),
        (4.0, b"Keep-Alive: timeout=soon\r\n", 2),
        (0.9, b"Keep-Alive: timeout=2\r\n", 1),
        (1.0, b"Keep-Alive: timeout=2\r\n", 2),
        (0.0, b"Keep-Alive: timeout=1\r\n", 2),
        (0.0, b"Keep-Alive: timeout=0\r\n", 2),
        (299.0, b"Keep-Alive: timeout=100000\r\n", 1),
        (300.0, b"Keep-Alive: timeout=100000\r\n", 2),
    ],
)
async def test_idle_connections_are_closed_after_4_s_or_a_second_before_the_server_closes_them(
    idle: float, header: bytes, connections: int, clock: MockClock
) -> None:
    response = OK.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n")
    assert await connections_for([response], None, pause=idle) == connections


async def test_a_connection_that_the_server_ends_at_once_is_not_kept_open() -> None:
    response = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=1\r\n\r\n")
    ended = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(response)
        async for _ in stream:
            pass
        ended.set()

    async with listening(serve) as port, transport_for(None) as transport:
        await answer(transport, url_of(port))
        with trio.fail_after(DEADLINE):
            await ended.wait()


async def test_a_connection_that_is_always_busy_is_closed_after_5_minutes(clock: MockClock) -> None:
    # Begun at 0 s, 3 s, ..., 297 s: the connection of the first one is used until then.
    assert await connections_for([OK], None, pause=3.0, requests=100) == 1
    assert await connections_for([OK], None, pause=3.0, requests=101) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_after_a_502_503_or_504_the_next_request_gets_another_connection(status: int, tls: Tls | None) -> None:
    response = b"HTTP/1.1 %d Sick\r\nContent-Length: 0\r\n\r\n" % status
    assert await connections_for([response, OK], tls, requests=4) == 2


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 429, 500, 501, 505])
async def test_after_other_answers_the_connection_is_used_again(status: int) -> None:
    assert await connections_for([b"HTTP/1.1 %d -\r\nContent-Length: 0\r\n\r\n" % status, OK], None) == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nconnection: x, CLOSE\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
    ],
    ids=["close", "close among others", "HTTP/1.0", "HTTP/1.0 with keep-alive"],
)
async def test_a_connection_ends_when_the_server_says_so(response: bytes, tls: Tls | None) -> None:
    assert await connections_for([response, OK], tls) == 2


@pytest.mark.parametrize("more", [OK, b"x", b"\r\n", b"HTTP/1.1 408 Timeout\r\n\r\n", OK * 3000])
async def test_a_connection_with_more_than_the_response_in_one_piece_is_not_used_again(
    more: bytes, tls: Tls | None
) -> None:
    assert await connections_for([OK + more, OK], tls, requests=3) == 2


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("more", [b"x", OK])
async def test_a_connection_with_more_in_a_second_record_of_tls_is_not_used_again(version: str, more: bytes) -> None:
    tls = Tls()
    tls.server.maximum_version = getattr(ssl.TLSVersion, version)
    connections = 0

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        assert isinstance(stream, trio.SSLStream)
        tcp = stream.transport_stream
        while (await read_request(stream))[0]:
            sent: list[bytes] = []
            # Both records are sent in one piece.
            stream.transport_stream = _Held(sent)
            await stream.send_all(OK)
            if connections == 1:
                await stream.send_all(more)
            stream.transport_stream = tcp
            await tcp.send_all(b"".join(sent))

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        for _ in range(3):
            assert await answer(transport, url_of(port, tls)) == (200, b"ok")
    assert connections == 2


class _Held(trio.abc.SendStream):
    def __init__(self, held: list[bytes]) -> None:
        self._held = held

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._held.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_connection_with_more_that_comes_later_is_not_used_again(tls: Tls | None) -> None:
    connections, sent, go_on = 0, trio.Event(), trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        while (await read_request(stream))[0]:
            await stream.send_all(OK)
            if first:
                await go_on.wait()
                await stream.send_all(b"x")
                sent.set()

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, url_of(port, tls)) == (200, b"ok")
        go_on.set()
        await sent.wait()
        assert await answer(transport, url_of(port, tls)) == (200, b"ok")
    assert connections == 2


async def test_a_connection_that_the_server_ended_meanwhile_is_replaced_without_an_error(tls: Tls | None) -> None:
    connections, closed = 0, trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        await read_request(stream)
        await stream.send_all(OK)
        await trio.aclose_forcefully(stream)
        closed.set()

    with no_sockets_left():
        async with listening(serve, tls) as port, transport_for(tls) as transport:
            for _ in range(3):
                assert await answer(transport, url_of(port, tls)) == (200, b"ok")
                await closed.wait()
                closed = trio.Event()
    assert connections == 3


@pytest.mark.parametrize("content", ["small", "large", "stream"])
async def test_a_connection_that_ends_just_as_a_request_begins_is_replaced_if_nothing_was_sent(
    content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0

    async def pieces() -> object:
        nonlocal begun
        begun += 1
        await trio.lowlevel.checkpoint()
        yield b"spans"

    contents = {"small": b"spans", "large": bytes(200_000), "stream": pieces}
    connections: list[int] = []
    with no_sockets_left():
        async with listening(counted(answers(OK), connections)) as port, HTTPTransport() as transport:
            assert await answer(transport, url_of(port)) == (200, b"ok")
            (idle,) = transport._idle.values()
            (connection,) = idle
            link = connection.wire._link

            async def send(data: memoryview) -> int:
                await trio.lowlevel.checkpoint()
                raise BrokenPipeError(32, "Broken pipe")

            async def recv(max_bytes: int) -> bytes:
                await trio.lowlevel.checkpoint()
                return b""

            monkeypatch.setattr(link, "send", send)
            monkeypatch.setattr(link, "recv", recv)
            request, progress = post(url_of(port), contents[content])  # type: ignore[arg-type]  # each is one of the types
            assert await answer(transport, request) == (200, b"ok")
            assert progress.sent
            assert begun == (content == "stream")
    assert len(connections) == 2


async def test_the_connection_that_was_used_last_is_used_next_and_old_ones_are_closed(clock: MockClock) -> None:
    heads: list[bytes] = []
    at_once = trio.Event()
    connections: list[int] = []

    async def serve(stream: trio.abc.Stream) -> None:
        number = len(connections)
        while (await read_request(stream))[0]:
            heads.append(b"%d" % number)
            if len(heads) < 3:
                await at_once.wait()
            at_once.set()
            await stream.send_all(OK)

    with no_sockets_left():
        async with listening(counted(serve, connections)) as port, HTTPTransport() as transport:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(answer, transport, url_of(port))
            assert len(connections) == 3
            for _ in range(4):
                clock.jump(1.5)
                assert await answer(transport, url_of(port)) == (200, b"ok")
            assert len(connections) == 3
            assert len(set(heads[3:])) == 1
            (idle,) = transport._idle.values()
            assert len(idle) == 1


async def test_a_closed_transport_keeps_no_connection(tls: Tls | None) -> None:
    async with listening(answers(OK), tls) as port:
        with no_sockets_left():
            transport = transport_for(tls)
            request, _ = post(url_of(port, tls))
            response = await transport.handle_async_request(request)
            await transport.aclose()
            assert await response.aread() == b"ok"
            assert await answer(transport, url_of(port, tls)) == (200, b"ok")
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("read", [0, 1])
async def test_a_response_that_is_closed_before_its_end_ends_its_connection(read: int, tls: Tls | None) -> None:
    connections: list[int] = []
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + bytes(5000)
    async with (
        listening(counted(answers(large, OK), connections), tls) as port,
        transport_for(tls) as transport,
    ):
        with no_sockets_left():
            response = await transport.handle_async_request(post(url_of(port, tls))[0])
            assert isinstance(response.stream, httpx.AsyncByteStream)
            pieces = aiter(response.stream)
            for _ in range(read):
                assert await anext(pieces)
            await response.aclose()
            await response.aclose()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)
        assert await answer(transport, url_of(port, tls)) == (200, b"ok")
    assert len(connections) == 2


@pytest.mark.parametrize(
    ("method", "response", "body"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b""),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", b""),
        ("POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
        ("POST", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n", b"ok"),
        (
            "POST",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\ntrailer: x\r\n\r\n",
            b"ok",
        ),
    ],
    ids=["HEAD", "204", "304", "interim", "chunked", "trailer"],
)
async def test_a_response_ends_where_http_says_and_its_connection_is_used_again(
    method: str, response: bytes, body: bytes, tls: Tls | None
) -> None:
    connections: list[int] = []
    async with (
        listening(counted(answers(response), connections), tls) as port,
        transport_for(tls) as transport,
    ):
        for _ in range(3):
            request, _ = post(url_of(port, tls), b"" if method == "HEAD" else b"spans", method=method)
            assert (await answer(transport, request))[1] == body
    assert len(connections) == 1


async def test_a_response_without_a_length_ends_with_its_connection(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, url_of(port, tls)) == (200, b"all of it")
        assert await answer(transport, url_of(port, tls)) == (200, b"all of it")


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"220 smtp.test ESMTP\r\n",
    ],
    ids=["length", "chunked", "head", "nothing", "not HTTP"],
)
async def test_a_response_that_is_not_complete_is_an_error_and_its_request_was_sent(
    response: bytes, tls: Tls | None
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        if response:
            await stream.send_all(response)

    with no_sockets_left():
        async with listening(serve, tls) as port, transport_for(tls) as transport:
            request, progress = post(url_of(port, tls))
            with pytest.raises(httpx.RemoteProtocolError):
                await answer(transport, request)
            assert progress.sent


async def test_a_request_stays_marked_as_sent_when_the_next_request_uses_the_connection() -> None:
    async with listening(answers(OK)) as port, HTTPTransport() as transport:
        first, progress = post(url_of(port))
        assert await answer(transport, first) == (200, b"ok")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, transport, url_of(port))
            for _ in itertools.count():
                await trio.lowlevel.checkpoint()
                if not any(transport._idle.values()):
                    break
            assert progress.sent
