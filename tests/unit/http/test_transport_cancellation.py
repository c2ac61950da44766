"""An exchange that is cancelled at any step leaves no socket and no task, and raises only `trio.Cancelled`."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.support.scripted import (
    OK,
    Tls,
    answers,
    listening,
    no_sockets_left,
    post,
    read_head,
    read_request,
    silent,
    url_of,
)
from trio_spanbatch._http.transport import HTTPTransport

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"

# More than is written in one piece.
LARGE = bytes(300_000)
# More than the buffers of two sockets hold.
HUGE = bytes(16 * 1024 * 1024)


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after some steps of a task and its children."""

    def __init__(self, steps: int, task: trio.lowlevel.Task, scope: trio.CancelScope) -> None:
        self.left = steps
        self._task = task
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if task is self._task or (nursery is not None and nursery.parent_task is self._task):
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()


async def until_cancelled(exchange: Callable[[], Awaitable[object]], steps: int) -> bool:
    """Run an exchange in a separate task and cancel it after some steps. Return whether it was cancelled."""
    raised: BaseException | None = None
    ended_early = False

    async def run() -> None:
        nonlocal raised, ended_early
        with trio.CancelScope() as scope:
            instrument = CancelAfter(steps, trio.lowlevel.current_task(), scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await exchange()
                ended_early = instrument.left > 0
            except BaseException as error:
                raised = error
                raise
            finally:
                trio.lowlevel.remove_instrument(instrument)

    async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # a task whose steps can be counted
        nursery.start_soon(run)
    assert raised is None or type(raised) is trio.Cancelled
    return not ended_early


async def cancel_everywhere(exchange: Callable[[], Awaitable[object]], *, at_least: int) -> None:
    for steps in itertools.count(1):
        with no_sockets_left():
            cancelled = await until_cancelled(exchange, steps)
            # The servers notice that their clients are gone.
            await trio.testing.wait_all_tasks_blocked()
        if not cancelled:
            assert steps >= at_least
            return


async def exchange(make: Callable[[], HTTPTransport], url: str, content: Any = b"spans", *, requests: int = 1) -> None:
    async with make() as transport:
        for _ in range(requests):
            response = await transport.handle_async_request(post(url, content)[0])
            try:
                assert isinstance(response.stream, httpx.AsyncByteStream)
                assert b"".join([piece async for piece in response.stream])
            finally:
                await response.aclose()


@pytest.fixture(params=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "TLS" else None


def made_for(tls: Tls | None) -> Callable[[], HTTPTransport]:
    return partial(HTTPTransport, tls.client) if tls else HTTPTransport


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        await trio.lowlevel.checkpoint()
        yield b"spans"


@pytest.mark.parametrize("content", [b"spans", LARGE, pieces], ids=["small", "large", "stream"])
async def test_an_exchange_may_be_cancelled_anywhere(content: object, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        while head := (await read_request(stream))[0]:
            if b"chunked" in head.lower():
                data, more = bytearray(), b"begin"
                while more and b"0\r\n\r\n" not in data:
                    more = bytes(await stream.receive_some())
                    data += more
            await stream.send_all(CHUNKED)

    async with listening(serve, tls) as port:
        url = url_of(port, tls)
        await cancel_everywhere(partial(exchange, made_for(tls), url, content, requests=2), at_least=10)


async def test_an_exchange_that_is_refused_early_may_be_cancelled_anywhere(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\ntoo large")
        while await stream.receive_some():
            pass

    async with listening(serve, tls) as port:
        await cancel_everywhere(partial(exchange, made_for(tls), url_of(port, tls), HUGE), at_least=5)


async def test_a_body_that_breaks_may_be_cancelled_anywhere(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        await stream.send_all(b"half")

    async def broken(url: str) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await exchange(made_for(tls), url)

    async with listening(serve, tls) as port:
        await cancel_everywhere(partial(broken, url_of(port, tls)), at_least=5)


@pytest.mark.parametrize("of_proxy", [None, Tls()], ids=["http proxy", "https proxy"])
async def test_a_tunnel_may_be_cancelled_anywhere(of_proxy: Tls | None) -> None:
    tls = Tls()

    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        tunnel = trio.SSLStream(stream, tls.server, server_side=True, https_compatible=True)
        await answers(OK)(tunnel)

    async with listening(serve, of_proxy) as port:
        proxy = httpx.Proxy(f"http{'s' if of_proxy else ''}://127.0.0.1:{port}", auth=("user", "password"))
        make = partial(HTTPTransport, tls.client, proxy=proxy, proxy_context=(of_proxy or tls).client)
        await cancel_everywhere(partial(exchange, make, "https://server.test/"), at_least=8)


async def test_connecting_to_several_addresses_may_be_cancelled_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    real_getaddrinfo = socket.getaddrinfo

    def getaddrinfo(host: object, port: Any, *args: Any) -> Any:
        if host != "server.test":
            return real_getaddrinfo(host, port, *args)  # type: ignore[arg-type]  # passed on as it came
        # The first two refuse.
        hosts = (("127.0.0.1", 1), ("127.0.0.2", 1), ("127.0.0.1", port), ("127.0.0.2", port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", name) for name in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with listening(answers(OK), host="0.0.0.0") as port:
        await cancel_everywhere(partial(exchange, HTTPTransport, url_of(port, host="server.test")), at_least=8)


@pytest.mark.parametrize("stage", ["handshake", "response", "body", "writing", "tunnel"])
async def test_a_cancel_takes_effect_at_once_if_a_server_hangs(stage: str, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        if stage == "writing":
            await trio.lowlevel.checkpoint()
        elif stage in ("response", "tunnel"):
            await read_head(stream)
        elif stage == "body":
            await read_request(stream)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with AsyncExitStack() as stack:
        of_server = None if stage in ("handshake", "tunnel") else tls
        port = await stack.enter_async_context(listening(silent if stage == "handshake" else serve, of_server))
        make, url = made_for(tls), url_of(port, tls)
        if stage == "tunnel":
            make, url = partial(HTTPTransport, proxy=httpx.Proxy(f"http://127.0.0.1:{port}")), "https://server.test/"
        raised: list[BaseException] = []

        async def run() -> None:
            try:
                await exchange(make, url, HUGE if stage == "writing" else b"spans")
            except BaseException as error:
                raised.append(error)
                raise

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not raised
            nursery.cancel_scope.cancel()
        assert [type(error) for error in raised] == [trio.Cancelled]


async def test_each_call_is_a_checkpoint(tls: Tls | None) -> None:
    async with listening(answers(CHUNKED), tls) as port:
        transport = made_for(tls)()
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                response = await transport.handle_async_request(post(url_of(port, tls))[0])
            assert isinstance(response.stream, httpx.AsyncByteStream)
            stream = aiter(response.stream)
            # Both came in one piece, so nothing has to be waited for.
            for byte in (b"o", b"k"):
                with trio.testing.assert_checkpoints():
                    assert await anext(stream) == byte
            with trio.testing.assert_checkpoints():
                await response.aclose()
        with trio.testing.assert_checkpoints():
            await transport.aclose()


async def test_a_cancelled_call_begins_nothing(tls: Tls | None) -> None:
    heads: list[bytes] = []
    async with listening(answers(OK, heads=heads), tls) as port, made_for(tls)() as transport:
        for _ in range(2):
            request, progress = post(url_of(port, tls))
            with trio.CancelScope() as scope:
                scope.cancel()
                await transport.handle_async_request(request)
            assert scope.cancelled_caught
            assert not progress.sent
            # The second time there is a connection to use again.
            await exchange(lambda: transport, url_of(port, tls))
    assert len(heads) == 2


async def test_the_end_of_a_complete_response_is_reported_though_it_is_cancelled(tls: Tls | None) -> None:
    async with listening(answers(OK), tls) as port, made_for(tls)() as transport:
        response = await transport.handle_async_request(post(url_of(port, tls))[0])
        assert isinstance(response.stream, httpx.AsyncByteStream)
        stream = aiter(response.stream)
        assert await anext(stream) == b"ok"
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert not scope.cancelled_caught


@pytest.mark.parametrize("ends", ["cancelled", "broken"])
async def test_a_response_that_fails_need_not_be_closed(ends: str, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        while ends == "cancelled" and await stream.receive_some():
            pass

    async with listening(serve, tls) as port, made_for(tls)() as transport:
        with no_sockets_left():
            response = await transport.handle_async_request(post(url_of(port, tls))[0])
            assert isinstance(response.stream, httpx.AsyncByteStream)
            stream = aiter(response.stream)
            assert await anext(stream) == b"half"
            with trio.CancelScope() as scope:
                if ends == "cancelled":
                    scope.cancel()
                with pytest.raises((trio.Cancelled, httpx.RemoteProtocolError)):
                    await anext(stream)
            await trio.testing.wait_all_tasks_blocked()
