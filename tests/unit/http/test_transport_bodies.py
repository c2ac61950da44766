"""Bodies of requests: iterators that end, raise or differ from their length, and the pieces in which they are sent."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import AsyncIterator

import h11
import httpx
import pytest
import trio
import trio.testing

from tests.support.scripted import (
    OK,
    Tls,
    answer,
    answers,
    listening,
    no_sockets_left,
    post,
    read_head,
    url_of,
)
from trio_spanbatch._http.transport import HTTPTransport
from trio_spanbatch._http.wire import Link, SocketLink


@pytest.fixture(params=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "TLS" else None


def transport_for(tls: Tls | None) -> HTTPTransport:
    return HTTPTransport(tls.client) if tls else HTTPTransport()


async def waits_for_the_rest(stream: trio.abc.Stream) -> None:
    await read_head(stream)
    while await stream.receive_some():
        pass


class NoMore(Exception):
    """An error of the program."""


@pytest.mark.parametrize(
    "error",
    [
        NoMore("x"),
        FileNotFoundError(2, "x"),
        trio.TooSlowError(),
        trio.BrokenResourceError("x"),
        h11.RemoteProtocolError("x"),
        httpx.ReadError("x"),
        ExceptionGroup("x", [ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_an_exception_from_the_body_of_a_request_propagates_unchanged(
    error: Exception, pieces: int, tls: Tls | None
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            await trio.lowlevel.checkpoint()
            yield b"piece"
        error.__traceback__ = None
        raise error

    with no_sockets_left():
        async with listening(waits_for_the_rest, tls) as port, transport_for(tls) as transport:
            request, progress = post(url_of(port, tls), body)
            with pytest.raises(type(error)) as caught:
                await answer(transport, request)
            assert caught.value is error
            assert error.__cause__ is None
            assert progress.sent
            await trio.testing.wait_all_tasks_blocked()


async def test_a_body_that_is_cancelled_cancels_the_request(tls: Tls | None) -> None:
    raised: list[BaseException] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        await trio.sleep_forever()

    async with listening(waits_for_the_rest, tls) as port, transport_for(tls) as transport:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    try:
                        await transport.handle_async_request(post(url_of(port, tls), body)[0])
                    except BaseException as error:
                        raised.append(error)
                        raise

                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
    assert [type(error) for error in raised] == [trio.Cancelled]


async def test_an_iterator_that_is_not_read_to_its_end_is_closed(tls: Tls | None) -> None:
    closed: list[str] = []

    async def refuses(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                await trio.lowlevel.checkpoint()
                yield bytes(100_000)
        finally:
            closed.append("closed")

    async with listening(refuses, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, post(url_of(port, tls), body)[0]) == (413, b"")
    assert closed == ["closed"]


@pytest.mark.parametrize("length", ["4", "6"])
@pytest.mark.parametrize("size", [5, 100_000])
async def test_a_body_of_another_length_than_announced_is_an_error_at_once(
    length: str, size: int, tls: Tls | None
) -> None:
    async def body() -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield bytes(size)

    announced = str(size - 5 + int(length))
    with no_sockets_left():
        async with listening(waits_for_the_rest, tls) as port, transport_for(tls) as transport:
            for content in (body, bytes(size)):
                request, _ = post(url_of(port, tls), content, headers={"content-length": announced})
                if "transfer-encoding" in request.headers:
                    del request.headers["transfer-encoding"]
                with pytest.raises(httpx.LocalProtocolError):
                    await answer(transport, request)


async def test_empty_pieces_do_not_end_a_chunked_body(tls: Tls | None) -> None:
    received: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        _, data = await read_head(stream)
        while b"0\r\n\r\n" not in data:
            data += await stream.receive_some()
        received.append(data)
        await stream.send_all(OK)
        await trio.sleep_forever()

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"", b"one", b"", b"two", b""):
            await trio.lowlevel.checkpoint()
            yield piece

    async with listening(serve, tls) as port, transport_for(tls) as transport:
        assert await answer(transport, post(url_of(port, tls), body)[0]) == (200, b"ok")
    assert received == [b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"]


class Noting:
    """Notes how much is written at once."""

    def __init__(self, link: Link, sizes: list[int]) -> None:
        self._link = link
        self._sizes = sizes
        self.recv, self.is_readable, self.close = link.recv, link.is_readable, link.close

    async def send(self, data: memoryview) -> int:
        self._sizes.append(len(data))
        return await self._link.send(data)


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "stream"])
async def test_a_body_goes_out_in_pieces_of_64_kib(streamed: bool, tls: Tls | None) -> None:
    sizes: list[int] = []
    content = bytes(1024 * 1024)

    class Network:
        async def connect_tcp(self, host: str, port: int) -> Link:
            sock = trio.socket.socket()
            await sock.connect((host, port))
            return Noting(SocketLink(sock), sizes)

    async def body() -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield content

    async def serve(stream: trio.abc.Stream) -> None:
        _, body = await read_head(stream)
        received = len(body)
        while received < len(content):
            received += len(await stream.receive_some())
        await stream.send_all(OK)
        await trio.sleep_forever()

    async with listening(serve, tls) as port:
        context = tls.client if tls else Tls().client
        async with HTTPTransport(context, network=Network()) as transport:
            request, _ = post(url_of(port, tls), body if streamed else content)
            # The server counts the frames of chunks as well, and answers before it has read the last of them.
            assert (await answer(transport, request))[0] == 200
    assert max(sizes) <= 64 * 1024 + 1024
    assert sum(sizes) >= len(content)


async def test_a_head_of_100_kib_is_read_and_a_larger_one_refused(tls: Tls | None) -> None:
    for size, fits in ((90_000, True), (200_000, False)):
        cookies = b"Set-Cookie: %s\r\n" % (b"x" * 1000) * (size // 1000)
        response = OK.replace(b"\r\n\r\n", b"\r\n" + cookies + b"\r\n")
        async with listening(answers(response), tls) as port, transport_for(tls) as transport:
            if fits:
                assert await answer(transport, url_of(port, tls)) == (200, b"ok")
            else:
                with pytest.raises(httpx.RemoteProtocolError):
                    await answer(transport, url_of(port, tls))


async def test_reading_ends_with_its_timeout(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    for response in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf"):

        async def serve(stream: trio.abc.Stream, response: bytes = response) -> None:
            await read_head(stream)
            if response:
                await stream.send_all(response)
            await trio.sleep_forever()

        async with listening(serve) as port, HTTPTransport() as transport:
            request, progress = post(url_of(port), read=3.0)
            with pytest.raises(httpx.ReadTimeout, match="no response"):
                await answer(transport, request)
            assert progress.sent


@pytest.mark.parametrize("ends", ["cancelled", "broken"])
async def test_a_large_body_is_free_at_once_after_its_request_failed(ends: str, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        if ends == "cancelled":
            await trio.sleep_forever()

    async def send(transport: HTTPTransport, url: str, content: bytes) -> None:
        with contextlib.suppress(httpx.TransportError):
            await transport.handle_async_request(post(url, content)[0])

    content = bytes(16 * 1024 * 1024)
    async with listening(serve, tls) as port, transport_for(tls) as transport:
        gc.collect()
        gc.disable()
        try:
            before = sys.getrefcount(content)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, transport, url_of(port, tls), content)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            del nursery
            await trio.testing.wait_all_tasks_blocked()
            assert sys.getrefcount(content) == before
        finally:
            gc.enable()
