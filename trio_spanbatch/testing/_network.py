"""A network without sockets between httpx and a receiver, so that the whole HTTP path runs on a mock clock.

`MemoryNetwork` is a network backend for httpcore: each connection is a pair of trio's memory streams, and the receiver
serves the other end. Unlike trio's memory streams, but like TCP, a connection can break without an orderly end, and a
server cannot write for ever to a client that does not read.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import httpcore
import httpx
import trio
import trio.testing

__all__ = ["MemoryNetwork", "MemoryTransport"]

SocketOption: TypeAlias = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

# How many bytes a server can send ahead of its client; about as many as the buffers of a TCP connection hold.
_WINDOW = 256 * 1024


class MemoryNetwork(httpcore.AsyncNetworkBackend):
    """A network that connects httpcore to a receiver, for any host and port.

    Attributes:
        refuse_connections: Whether connecting fails as if no server were running. Open connections stay open.
        connect_delay: Seconds that connecting takes, on trio's clock; ``math.inf`` means for ever.
    """

    def __init__(self, serve: Callable[[trio.abc.Stream], bool]) -> None:
        self.refuse_connections = False
        self.connect_delay: float = 0.0
        self._serve = serve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore calls it with one
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a connection to the receiver.

        Raises:
            httpcore.ConnectTimeout: ``timeout`` seconds have passed.
            httpcore.ConnectError: The network refuses connections, or the receiver was left.
        """
        with _httpcore_errors(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            await trio.sleep(self.connect_delay)
        client_end, server_end = connected_pair()
        if self.refuse_connections or not self._serve(server_end):
            raise httpcore.ConnectError(f"{host}:{port} refuses the connection")
        return _ClientStream(client_end, client_end)

    async def sleep(self, seconds: float) -> None:
        """Sleep on trio's clock."""
        await trio.sleep(seconds)


class MemoryTransport(httpx.AsyncHTTPTransport):
    """The transport of httpx with the connection pool of httpcore, over a `MemoryNetwork`.

    Args:
        network: The network of its connections.
        limits: The limits of the pool, those of httpx by default.
        ssl_context: Verifies the certificate of an https receiver.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        limits: httpx.Limits | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(verify=False, trust_env=False)
        # httpx has no public way to pass a network backend to httpcore, so its private pool is replaced by an
        # equivalent one. The assertion fails if a newer httpx keeps its pool elsewhere.
        assert isinstance(self._pool, httpcore.AsyncConnectionPool)
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20) if limits is None else limits
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=network,
        )


class _Window:
    """The state of a connection that both ends share: bytes on their way to the client, and who has closed."""

    def __init__(self) -> None:
        self.unread = 0
        self.server_closed = self.client_closed = self.broken = False
        self._room = trio.lowlevel.ParkingLot()

    def read(self, size: int) -> None:
        self.unread -= size
        self._room.unpark_all()

    def close_client(self) -> None:
        self.client_closed = True
        self._room.unpark_all()

    async def wait_for_room(self) -> None:
        while self.unread > _WINDOW and not self.client_closed:
            await self._room.park()


class _End(trio.abc.HalfCloseableStream):
    """One end of a connection, around trio's memory stream."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, window: _Window) -> None:
        self._stream = stream
        self.window = window

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()


class _ClientEnd(_End):
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self.window.read(len(data))
        if not data and self.window.broken:
            raise trio.BrokenResourceError("the server broke the connection")
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.window.close_client()
        await self._stream.aclose()


class _ServerEnd(_End):
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.window.unread += len(data)
        await self._stream.send_all(data)
        await self.window.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        self.window.server_closed = True
        await self._stream.send_eof()

    def break_on_close(self) -> None:
        self.window.broken = True

    async def aclose(self) -> None:
        self.window.server_closed = True
        await self._stream.aclose()


def connected_pair() -> tuple[_ClientEnd, _ServerEnd]:
    client, server = trio.testing.memory_stream_pair()
    window = _Window()
    return _ClientEnd(client, window), _ServerEnd(server, window)


class _ClientStream(httpcore.AsyncNetworkStream):
    """A connection for httpcore, with the errors of httpcore's own backend for trio."""

    def __init__(self, stream: trio.abc.Stream, end: _ClientEnd) -> None:
        self._stream = stream
        self._end = end

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - see above
        with _httpcore_errors(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - see above
        with _httpcore_errors(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - see above
    ) -> httpcore.AsyncNetworkStream:
        stream = trio.SSLStream(self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True)
        try:
            with _httpcore_errors(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
                await stream.do_handshake()
        except (httpcore.ConnectTimeout, httpcore.ConnectError):
            await trio.aclose_forcefully(stream)
            raise
        return _ClientStream(stream, self._end)

    def get_extra_info(self, info: str) -> Any:
        # httpcore asks this of an idle connection: if it is readable, the server has closed it.
        if info == "is_readable":
            window = self._end.window
            return window.server_closed or window.broken or window.unread > 0
        if info == "ssl_object" and isinstance(self._stream, trio.SSLStream):
            return self._stream
        return None


@contextmanager
def _httpcore_errors(timeout: float | None, too_slow: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Limit the time of what is inside, and raise the errors that httpcore expects."""
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except trio.TooSlowError as error:
        raise too_slow(str(error)) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise broken(str(error)) from error
