"""A network without sockets between a client and a receiver, so that the whole HTTP path runs on a mock clock.

Each connection of `MemoryNetwork` is a pair of trio's memory streams, and the receiver serves the other end. Unlike
trio's memory streams, but like TCP, a connection can break without an orderly end, and a server cannot write forever
to a client that does not read.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeAlias

import trio
import trio.testing

from .._http.transport import HTTPTransport
from ._checks import NONE, check, check_function

_MemoryStream: TypeAlias = "trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]"

# How many bytes a server can send ahead of its client; about as many as the buffers of a TCP connection hold.
_WINDOW = 256 * 1024


class MemoryNetwork:
    """A network that leads to a receiver, for any host and port.

    Attributes:
        refuse_connections: Whether connecting fails as if no server were running. Open connections stay open.
        connect_delay: Seconds that connecting takes, on trio's clock; ``math.inf`` means forever.
    """

    def __init__(self, serve: Callable[[trio.abc.Stream], bool]) -> None:
        check_function("serve", serve)
        self.refuse_connections = False
        self.connect_delay: float = 0.0
        self._serve = serve

    async def connect_tcp(self, host: str, port: int) -> _ClientEnd:
        """Open a connection to the receiver.

        Raises:
            ConnectionRefusedError: The network refuses connections, or the receiver was left.
        """
        check("host", host, "a str", str)
        check("port", port, "an int", int)
        await trio.sleep(self.connect_delay)
        client_end, server_end = connected_pair()
        if self.refuse_connections or not self._serve(server_end):
            raise ConnectionRefusedError(f"{host}:{port} refuses the connection")
        return client_end


class MemoryTransport(HTTPTransport):
    """The transport of `OTLPExporter` over a `MemoryNetwork`. It can be given to an ``httpx.AsyncClient`` too.

    Args:
        network: The network of its connections.
        ssl_context: Verifies the certificate of an https receiver.
    """

    def __init__(self, network: MemoryNetwork, *, ssl_context: ssl.SSLContext | None = None) -> None:
        check("network", network, "a MemoryNetwork, such as OTLPReceiver.network", MemoryNetwork)
        check("ssl_context", ssl_context, "an ssl.SSLContext or None", ssl.SSLContext, NONE)
        super().__init__(ssl.create_default_context if ssl_context is None else lambda: ssl_context, network=network)


class ServerEnd(trio.abc.HalfCloseableStream):
    """The server's end of a connection, around trio's memory stream, with the state that the client's end looks at."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self._read_or_closed = trio.lowlevel.ParkingLot()
        self._client_closed = False
        self.unread = 0  # bytes on their way to the client
        self.closed = False
        self.broken = False  # if it is closed then, the connection breaks for the client, instead of ending

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.unread += len(data)
        await self._stream.send_all(data)
        while self.unread > _WINDOW and not self._client_closed:
            await self._read_or_closed.park()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        self.closed = True
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.closed = True
        await self._stream.aclose()

    def client_read(self, size: int) -> None:
        self.unread -= size
        self._read_or_closed.unpark_all()

    def client_closed(self) -> None:
        self._client_closed = True
        self._read_or_closed.unpark_all()


class _ClientEnd:
    """The client's end of a connection, with the methods that a transport needs of a socket."""

    def __init__(self, stream: _MemoryStream, server_end: ServerEnd) -> None:
        self._stream = stream
        self._server_end = server_end

    async def send(self, data: memoryview, /) -> int:
        try:
            await self._stream.send_all(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise BrokenPipeError("the server closed the connection") from error
        return len(data)

    async def recv(self, max_bytes: int, /) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except trio.ClosedResourceError as error:
            raise ConnectionAbortedError("the connection was closed") from error
        self._server_end.client_read(len(data))
        if not data and self._server_end.broken:
            raise ConnectionResetError("the server broke the connection")
        return data

    def is_readable(self) -> bool:
        """Return whether the server has closed or broken the connection, or has sent something."""
        return self._server_end.closed or self._server_end.broken or self._server_end.unread > 0

    def close(self) -> None:
        self._server_end.client_closed()
        self._stream.send_stream.close()
        self._stream.receive_stream.close()


def connected_pair() -> tuple[_ClientEnd, ServerEnd]:
    client, server = trio.testing.memory_stream_pair()
    server_end = ServerEnd(server)
    return _ClientEnd(client, server_end), server_end
