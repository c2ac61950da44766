"""Answers that come while the request is still being written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import trio
import trio.testing

from tests.support.scripted import (
    OK,
    Tls,
    answer,
    listening,
    no_sockets_left,
    post,
    read_head,
    read_request,
    url_of,
)
from trio_spanbatch._http.transport import HTTPTransport

# More than the buffers of two sockets hold.
LARGE = bytes(24 * 1024 * 1024)


@pytest.fixture(params=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "TLS" else None


def transport_for(tls: Tls | None) -> HTTPTransport:
    return HTTPTransport(tls.client) if tls else HTTPTransport()


def refusal(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large" % status


async def stays(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def closes(stream: trio.abc.Stream) -> None:
    pass


async def lingers(stream: trio.abc.Stream) -> None:
    """Read all data until the client has closed."""
    while await stream.receive_some():
        pass


@pytest.mark.parametrize("status", [413, 401, 307, 503])
@pytest.mark.parametrize("then", [closes, lingers, stays])
@pytest.mark.parametrize("content", ["bytes", "stream"])
async def test_a_refusal_before_the_end_of_the_request_is_read(
    tls: Tls | None, status: int, then: Callable[[trio.abc.Stream], Awaitable[None]], content: str
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(refusal(status))
        await then(stream)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(LARGE), 1024 * 1024):
            await trio.lowlevel.checkpoint()
            yield LARGE[at : at + 1024 * 1024]

    with no_sockets_left():
        async with listening(serve, tls) as port, transport_for(tls) as transport:
            request, progress = post(url_of(port, tls), LARGE if content == "bytes" else pieces)
            assert await answer(transport, request) == (status, b"too large")
            assert progress.sent


@pytest.mark.parametrize("size", [1_000, 60_000, 70_000, 1_000_000, len(LARGE)])
async def test_a_refusal_is_read_in_each_of_many_tries(size: int, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(refusal(413))

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        for _ in range(25):
            assert await answer(transport, post(url_of(port, tls), LARGE[:size])[0]) == (413, b"too large")


async def test_a_refusal_is_read_while_the_body_of_the_request_is_waited_for(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(refusal(413))
        await lingers(stream)

    ended = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            ended.set()

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, post(url_of(port, tls), pieces)[0]) == (413, b"too large")
    assert ended.is_set()


async def test_a_refused_request_leaves_no_connection_for_the_next_one(tls: Tls | None) -> None:
    connections = 0

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        head, _ = await read_head(stream)
        large = b"large" in head
        # Without "Connection: close".
        await stream.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n" if large else OK)
        await trio.sleep_forever()

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        request, _ = post(url_of(port, tls), LARGE, headers={"x": "large"})
        assert await answer(transport, request) == (413, b"")
        assert await answer(transport, url_of(port, tls)) == (200, b"ok")
    assert connections == 2


async def test_a_success_that_comes_early_counts_once_the_whole_request_was_written(tls: Tls | None) -> None:
    go_on, answered, was_read = trio.Event(), trio.Event(), trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        _, body = await read_head(stream)
        await stream.send_all(OK)
        await go_on.wait()
        length = len(body)
        while length < len(LARGE):
            length += len(await stream.receive_some(1024 * 1024))
        was_read.set()
        await trio.sleep_forever()

    async def ask(port: int) -> None:
        assert await answer(transport, post(url_of(port, tls), LARGE)[0]) == (200, b"ok")
        answered.set()

    async with (
        listening(serve, tls) as port,
        transport_for(tls) as transport,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ask, port)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not answered.is_set()
        go_on.set()
        await was_read.wait()
        await answered.wait()


@pytest.mark.parametrize("reads", [True, False], ids=["reads half", "reads nothing"])
async def test_a_success_for_a_request_that_could_not_be_written_is_an_error(tls: Tls | None, reads: bool) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(OK)
        length = 0
        while reads and length < len(LARGE) // 2:
            length += len(await stream.receive_some(1024 * 1024))

    with no_sockets_left():
        async with listening(serve, tls) as port, transport_for(tls) as transport:
            request, progress = post(url_of(port, tls), LARGE)
            with pytest.raises(httpx.WriteError):
                await answer(transport, request)
            assert progress.sent
            assert progress.write_error is not None


async def test_a_server_that_reads_slowly_gets_the_whole_request(tls: Tls | None) -> None:
    bodies: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        _, body = await read_request(stream)
        bodies.append(body)
        await stream.send_all(OK)

    content = bytes(range(256)) * 1000 * 4
    async with listening(serve, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, post(url_of(port, tls), content)[0]) == (200, b"ok")
    assert bodies == [content]


async def test_a_server_that_closes_in_the_middle_of_a_request_is_an_error(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)

    with no_sockets_left():
        async with listening(serve, tls) as port, transport_for(tls) as transport:
            request, progress = post(url_of(port, tls), LARGE)
            with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
                await answer(transport, request)
            assert progress.sent
