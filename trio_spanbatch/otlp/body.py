"""Request bodies on their way out, response bodies on their way in: in pieces, and bounded."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx
import trio

__all__ = ["BoundedBody", "PiecewiseStream", "gzip_compress", "read_bounded"]

# The most that is compressed or decompressed without a checkpoint: less than a millisecond of work.
PIECE = 64 * 1024

# The most that is given to a connection at once. TLS encrypts that in one go, at more than a gigabyte a second; each
# piece takes some 25 us on its way through httpx and h11. A batch of 512 spans of 500 bytes is one.
_WRITTEN_PIECE = 512 * 1024

# Measured on 1.7 MB of agents' spans: level 1 takes 8 ms and makes it 5.1 times smaller, 5 takes 16 ms for 6.0,
# 6 (zlib's default) 30 ms for 6.3, 9 takes 86 ms for 6.4.
GZIP_LEVEL = 5

_GZIP_FORMAT = 16 + zlib.MAX_WBITS
_ZLIB_FORMAT = zlib.MAX_WBITS
_RAW_FORMAT = -zlib.MAX_WBITS


async def gzip_compress(body: bytes) -> bytes:
    """Return ``body`` in gzip's format, compressed in pieces with a checkpoint after each."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    view = memoryview(body)
    compressed: list[bytes] = []
    for start in range(0, len(view), PIECE):
        compressed.append(compressor.compress(view[start : start + PIECE]))
        await trio.lowlevel.checkpoint()
    compressed.append(compressor.flush())
    return b"".join(compressed)


class PiecewiseStream(httpx.AsyncByteStream):
    """A request body that is written in pieces: TLS encrypts what it is given in one go, and in memory.

    It iterates without a generator: httpx drops one half-way when the connection breaks, and trio warns of that.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self._body)


class _Pieces(AsyncIterator[bytes]):
    def __init__(self, body: bytes) -> None:
        self._view = memoryview(body)

    async def __anext__(self) -> bytes:
        if not self._view:
            raise StopAsyncIteration
        piece, self._view = self._view[:_WRITTEN_PIECE], self._view[_WRITTEN_PIECE:]
        return bytes(piece)


class BoundedBody:
    """Collects a response's body, decompressed, and never more than ``limit`` bytes of it.

    Attributes:
        limit: In bytes.
        exceeded: Whether there was more, before or after decompression. What is collected is then the beginning.
        readable: Whether the encoding is known and the data fits to it.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        encoding = encoding.strip().lower()
        self.exceeded: bool = False
        self.readable: bool = encoding in ("", "identity", "gzip", "x-gzip", "deflate")
        self.limit = limit
        self._received = 0
        # One buffer, not a list of pieces: a server that sends two bytes at a time would fill memory with objects.
        self._collected = bytearray()
        self._deflate = encoding == "deflate"
        self._inflater = None
        if encoding in ("gzip", "x-gzip"):
            self._inflater = zlib.decompressobj(_GZIP_FORMAT)
        elif self._deflate:
            self._inflater = zlib.decompressobj(_ZLIB_FORMAT)

    @property
    def content(self) -> bytes | None:
        """What was collected; ``None`` if it is not readable."""
        return bytes(self._collected) if self.readable else None

    def feed(self, data: bytes) -> None:
        """Take in a piece as it came from the network."""
        self._received += len(data)
        self.exceeded = self.exceeded or self._received > self.limit
        if self.exceeded or not self.readable:
            return
        if self._inflater is None:
            self._collect(data)
            return
        try:
            self._inflate(data)
        except zlib.error:
            self.readable = False
            self._collected.clear()

    def _inflate(self, data: bytes) -> None:
        assert self._inflater is not None
        if self._deflate and self._received == len(data):
            # "deflate" means zlib's format, but some servers send what is inside of it: the first bytes tell.
            # (RFC 9110, section 8.4.1.2)
            try:
                zlib.decompressobj(_ZLIB_FORMAT).decompress(data, 1)
            except zlib.error:
                self._inflater = zlib.decompressobj(_RAW_FORMAT)
        while data and not self.exceeded and not self._inflater.eof:
            # One byte more than there is room for tells "just fits" from "too much".
            room = self.limit + 1 - len(self._collected)
            self._collect(self._inflater.decompress(data, min(room, PIECE)))
            data = self._inflater.unconsumed_tail

    def _collect(self, piece: bytes) -> None:
        if len(self._collected) + len(piece) > self.limit:
            self.exceeded = True
        else:
            self._collected += piece


async def read_bounded(response: httpx.Response, body: BoundedBody) -> None:
    """Read the body of ``response`` into ``body`` until it ends or exceeds its limit.

    What is too much is not read: the connection is closed. The raw bytes are taken, as httpx would decompress each
    piece of the network in one go, whatever comes out of it.
    """
    with trio.CancelScope() as scope:
        # Leaving httpx's generators half-way would leave them, and the connection, to the garbage collector. A
        # cancel while they wait for the network unwinds them all. For the same reason nothing is awaited in here.
        async for data in response.aiter_raw():
            if scope.cancel_called:
                continue
            body.feed(data)
            if body.exceeded:
                scope.cancel()
