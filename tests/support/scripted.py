"""Scripted servers on real sockets, and a client's side for `HTTPTransport` without an exporter."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from tests.support.processes import DEADLINE
from trio_spanbatch._http.transport import HTTPTransport, Progress

__all__ = [
    "OK",
    "Tls",
    "answer",
    "answers",
    "length_of",
    "listening",
    "no_sockets_left",
    "post",
    "pump",
    "read_head",
    "read_request",
    "silent",
    "url_of",
]

Serve = Callable[[trio.abc.Stream], Awaitable[object]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Tls:
    """Both sides of TLS for 127.0.0.1, ::1, ``server.test`` and ``localhost``."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        names = ("127.0.0.1", "::1", "server.test", "localhost")
        authority.issue_cert(*names).configure_cert(self.server)
        self._client = ssl.create_default_context()
        authority.configure_trust(self._client)

    def client(self) -> ssl.SSLContext:
        return self._client


async def pump(source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope) -> None:
    """Copy from one stream to another until its end or a broken connection. Then cancel ``scope``."""
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except trio.BrokenResourceError:
        pass
    scope.cancel()


@contextmanager
def no_sockets_left() -> Iterator[None]:
    """Fail if more sockets are open at the end than at the beginning."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    before = _sockets()
    yield
    left = _sockets() - before
    assert not left


def _sockets() -> set[str]:
    """Return the sockets of TCP. Other ones come and go with lookups of names in threads that were given up."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
            if target.startswith("socket:") and _is_tcp(int(path.name)):
                found.add(target)
        except OSError:
            continue  # closed in between, like the descriptor of the listing itself
    return found


def _is_tcp(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM


@asynccontextmanager
async def listening(serve: Serve, tls: Tls | None = None, *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve connections on a port, which is yielded, until the end of the block."""

    async def one(transport: trio.SocketStream) -> None:
        stream: trio.abc.Stream = transport
        if tls is not None:
            stream = trio.SSLStream(transport, tls.server, server_side=True, https_compatible=True)
        try:
            await serve(stream)
        except trio.BrokenResourceError:
            pass  # the client has gone
        finally:
            await trio.aclose_forcefully(transport)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        await nursery.start(partial(trio.serve_listeners, one, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_head(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    """Return the head of a request and the part of its body that came with it; ``b""`` if there is no head."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(16 * 1024)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def length_of(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)


async def read_request(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    """Return head and body of a request; ``b""`` if there is no head."""
    head, rest = await read_head(stream)
    body = bytearray(rest)
    while len(body) < length_of(head):
        more = await stream.receive_some()
        if not more:
            return b"", bytes(body)
        body += more
    return head, bytes(body)


def answers(*responses: bytes, heads: list[bytes] | None = None) -> Serve:
    """Return a server that answers the requests of all connections in order, the last response forever.

    A connection is closed where a response is empty.
    """
    left = list(responses)

    async def serve(stream: trio.abc.Stream) -> None:
        while head := (await read_request(stream))[0]:
            if heads is not None:
                heads.append(head)
            response = left.pop(0) if len(left) > 1 else left[0]
            if not response:
                return
            await stream.send_all(response)

    return serve


async def silent(stream: trio.abc.Stream) -> None:
    """Keep the connection open and neither read nor write."""
    await trio.sleep_forever()


def url_of(port: int, tls: Tls | None = None, host: str = "127.0.0.1") -> str:
    return f"http{'s' if tls else ''}://{host}:{port}/v1/traces"


def post(
    url: str,
    content: bytes | Callable[[], AsyncIterator[bytes]] = b"spans",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    **timeout: float | None,
) -> tuple[httpx.Request, Progress]:
    """Return a request, whose content may be a function that returns an iterator, and how far it got."""
    progress = Progress()
    extensions = {"progress": progress, "timeout": timeout}
    if isinstance(content, bytes):
        return httpx.Request(method, url, content=content, headers=headers, extensions=extensions), progress
    headers = {"host": httpx.URL(url).netloc.decode(), "transfer-encoding": "chunked", **(headers or {})}
    return httpx.Request(method, url, stream=_Generated(content), headers=headers, extensions=extensions), progress


class _Generated(httpx.AsyncByteStream):
    # httpx's own class for iterators never closes them.
    def __init__(self, pieces: Callable[[], AsyncIterator[bytes]]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()


async def answer(transport: HTTPTransport, request: Any) -> tuple[int, bytes]:
    """Send a request; return the response's status and body."""
    if isinstance(request, str):
        request, _ = post(request)
    with trio.fail_after(DEADLINE):
        response = await transport.handle_async_request(request)
        try:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            return response.status_code, b"".join([piece async for piece in response.stream])
        finally:
            await response.aclose()
