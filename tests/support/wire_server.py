"""A server that writes bytes as they are and keeps its connections open, over TCP or memory, with or without TLS."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio
import trio.testing
import trustme

from tests.support.processes import DEADLINE
from trio_spanbatch import OTLPExporter
from trio_spanbatch._http.transport import HTTPTransport
from trio_spanbatch.testing._network import MemoryNetwork, MemoryTransport

__all__ = ["CHUNKED", "HEAD", "OK", "Tls", "WireServer", "chunk", "wire_server"]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n"
OK = HEAD + b"content-length: 0\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@attrs.frozen
class Tls:
    """The two sides of TLS, with a separate CA."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def make(cls) -> Tls:
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        return cls(server, client)


class WireServer:
    """Answers the requests on all connections with ``answers`` in order, then with `OK`.

    Each answer is a list of pieces. They are sent in one piece, even where TLS makes a record of each.

    Attributes:
        requests: How many requests came in on each connection.
    """

    def __init__(self, answers: Iterable[Iterable[bytes]]) -> None:
        self.requests: list[int] = []
        self._answers = deque(answers)
        self._streams: list[trio.abc.Stream] = []
        self._closed: list[trio.Event] = []

    async def send_unasked(self, data: bytes) -> None:
        """Send ``data`` on the first connection, once the server has nothing else to send."""
        await trio.testing.wait_all_tasks_blocked()
        await self._streams[0].send_all(data)

    async def wait_closed(self, connection: int) -> None:
        """Return once the client has closed this connection."""
        with trio.fail_after(DEADLINE):
            await self._closed[connection].wait()

    async def serve(self, context: ssl.SSLContext | None, transport: trio.abc.Stream) -> None:
        number = len(self.requests)
        held = _HeldWrites(transport)
        stream: trio.abc.Stream = held
        if context is not None:
            stream = trio.SSLStream(held, context, server_side=True, https_compatible=True)
        self.requests.append(0)
        self._streams.append(stream)
        self._closed.append(trio.Event())
        try:
            while await _request_was_read(stream):
                self.requests[number] += 1
                held.hold()
                for piece in self._answers.popleft() if self._answers else [OK]:
                    await stream.send_all(piece)
                await held.release()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)
        self._closed[number].set()


class _HeldWrites(trio.abc.Stream):
    """Collects the written data, so that it can be sent in one piece."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._held: bytearray | None = None

    def hold(self) -> None:
        self._held = bytearray()

    async def release(self) -> None:
        assert self._held is not None
        data, self._held = self._held, None
        await self._stream.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._held is None:
            await self._stream.send_all(data)
        else:
            self._held += data

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _request_was_read(stream: trio.abc.Stream) -> bool:
    """Read a request to its end, or return False where there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return False
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    missing = int(length.partition(b":")[2]) - len(body)
    while missing > 0:
        missing -= len(await stream.receive_some(missing))
    return True


@asynccontextmanager
async def wire_server(
    answers: Iterable[Iterable[bytes]],
    *,
    tcp: bool = False,
    tls: Tls | None = None,
) -> AsyncIterator[tuple[WireServer, OTLPExporter]]:
    """Run such a server, with an exporter to it that is closed at the end."""
    server = WireServer(answers)
    serve = partial(server.serve, tls.server if tls else None)
    async with trio.open_nursery() as nursery:
        if tcp:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(partial(trio.serve_listeners, serve, listeners))
            port = listeners[0].socket.getsockname()[1]
            transport = HTTPTransport(lambda: tls.client) if tls else HTTPTransport()
        else:
            port = 4318

            def accept(stream: trio.abc.Stream) -> bool:
                nursery.start_soon(serve, stream)
                return True

            transport = MemoryTransport(MemoryNetwork(accept), ssl_context=tls.client if tls else None)
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/"
        exporter = OTLPExporter(url, location_header="x-tenant", transport=transport)
        try:
            yield server, exporter
        finally:
            await exporter.aclose()
        nursery.cancel_scope.cancel()
