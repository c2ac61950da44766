"""A tiny HTTP proxy on 127.0.0.1: it forwards plain requests and opens tunnels with CONNECT."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

__all__ = ["Proxy", "running_proxy"]


@attrs.define
class Proxy:
    """A running proxy.

    Attributes:
        url: The value for ``HTTP_PROXY`` and similar variables.
        asked: The first line of each connection's first request, such as ``CONNECT host:443 HTTP/1.1``.
        ports: Host names that the proxy maps to a port of this machine.
    """

    url: str
    asked: list[str] = attrs.Factory(list)
    ports: dict[str, int] = attrs.Factory(dict)

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one connection, which has one tunnel or one request."""
        async with client:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await client.receive_some()
                if not data:
                    return
                head += data
            line, _, rest = head.partition(b"\r\n")
            self.asked.append(line.decode())
            method, target, version = line.split()
            if method == b"CONNECT":
                host, _, port = target.decode().rpartition(":")
                first = b""
            else:
                url = urlsplit(target.decode())
                host, port = url.hostname or "", str(url.port or 80)
                first = b"%s %s %s\r\nConnection: close\r\n%s" % (method, url.path.encode(), version, rest)
            await self._join(client, host, int(port), first, tunnel=method == b"CONNECT")

    async def _join(self, client: trio.SocketStream, host: str, port: int, first: bytes, *, tunnel: bool) -> None:
        if host in self.ports:
            host, port = "127.0.0.1", self.ports[host]
        async with await trio.open_tcp_stream(host, port) as server:
            if tunnel:
                await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                await server.send_all(first)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pipe, client, server, nursery.cancel_scope)
                await _pipe(server, client, nursery.cancel_scope)


async def _pipe(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except trio.BrokenResourceError:
        pass  # One side has closed, so the connection ends.
    scope.cancel()


@asynccontextmanager
async def running_proxy() -> AsyncIterator[Proxy]:
    """Run a proxy on a free port."""
    proxy = Proxy("")
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        proxy.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()
