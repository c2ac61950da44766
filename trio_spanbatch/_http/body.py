"""Bodies of requests and responses: compressed, sent, received and decompressed in pieces, and bounded."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, AsyncIterator
from functools import cache
from typing import Any, cast

import httpx
import trio

from .packages import package_of

# The most that is compressed or decompressed without a checkpoint: less than a millisecond of work.
PIECE = 64 * 1024

# The most that is passed to a given client or transport at once: TLS encrypts it in one step, at more than 1 GB/s.
_WRITTEN_PIECE = 512 * 1024

# Seconds that closing a response or the client may take. Connections are closed or kept without waiting; this is for
# given streams and transports.
CLOSE_TIMEOUT = 1.0

# Measured on 1.7 MB of agents' spans: level 1 takes 8 ms and makes them 5.1 times smaller, 5 takes 16 ms for 6.0,
# 6 (zlib's default) 30 ms for 6.3, 9 takes 86 ms for 6.4.
GZIP_LEVEL = 5

# The most compressed bytes that are decompressed at once: zlib copies the data after the end of a gzip member, and a
# body may consist of nothing but empty members.
_INFLATED_PIECE = 4096

_GZIP_MAGIC = b"\x1f\x8b"
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


def piecewise_stream(body: bytes, like: object) -> httpx.AsyncByteStream:
    """Return a request body that is written in pieces: TLS encrypts each write in one step, and in memory.

    It iterates without a generator: httpx drops one half-way when the connection breaks, and trio warns of that. It is
    of the package of the stream ``like``, which it replaces: httpx and httpx2 accept only their own.
    """
    stream: httpx.AsyncByteStream = _stream_class(package_of(like, "AsyncByteStream"))(body)
    return stream


@cache
def _stream_class(package: Any) -> Any:
    return type("PiecewiseStream", (_PiecewiseStream, package.AsyncByteStream), {})


class _PiecewiseStream:
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
    """Collects the body of a response or request, decompressed, and never more than ``limit`` bytes of it."""

    def __init__(self, encoding: str, limit: int) -> None:
        codings = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
        encoding = ", ".join(codings)
        # Whether there was more, before or after decompression. What is collected is then the beginning.
        self.exceeded: bool = False
        # Whether the encoding is known and the data matches it.
        self.readable: bool = encoding in ("", "gzip", "x-gzip", "deflate")
        self.limit = limit  # in bytes
        self._received = 0
        # One buffer, not a list of pieces: a server that sends two bytes at a time would fill memory with objects.
        self._collected = bytearray()
        self._gzip = encoding in ("gzip", "x-gzip")
        self._compressed = self._gzip or encoding == "deflate"
        self._inflater: zlib._Decompress | None = None
        self._streams = 0
        # The first byte of a stream whose format two bytes tell.
        self._lead = b""
        # Whether data follows the compressed stream. It is ignored, as gzip does it.
        self.has_trailing_data: bool = False

    @property
    def content(self) -> bytes | None:
        """The collected data; ``None`` if the body is not readable."""
        return bytes(self._collected) if self.readable or self._received == 0 else None

    @property
    def cut_off(self) -> bool:
        """Whether the body ends in the middle of compressed data. An empty body does not."""
        return self._inflater is not None or (self._compressed and self._received > 0 and self._streams == 0)

    def take_read(self, content: bytes) -> None:
        """Collect a whole body that is decompressed already."""
        self.readable, self.exceeded = True, len(content) > self.limit
        self._inflater = None
        self._collected += content[: self.limit]

    def feed(self, data: bytes) -> None:
        self._received += len(data)
        self.exceeded = self.exceeded or self._received > self.limit
        if self.exceeded or not self.readable:
            return
        if not self._compressed:
            self._collect(data)
            return
        try:
            for start in range(0, len(data), _INFLATED_PIECE):
                self._inflate(data[start : start + _INFLATED_PIECE])
        except zlib.error:
            self.readable = False
            self._inflater = None
            self._collected.clear()

    def _inflate(self, data: bytes) -> None:
        while data and not self.exceeded and not self.has_trailing_data:
            data = self._begin(data) if self._inflater is None else self._continue(self._inflater, data)

    def _begin(self, data: bytes) -> bytes:
        """Begin to decompress a stream once its first two bytes are there. Return the data to decompress."""
        data, self._lead = self._lead + data, b""
        if len(data) < 2:
            self._lead = data
            return b""
        if self._streams > 0 and not (self._gzip and data.startswith(_GZIP_MAGIC)):
            # gzip may consist of several members (RFC 1952, section 2.2).
            self.has_trailing_data = True
        else:
            self._streams += 1
            self._inflater = zlib.decompressobj(_GZIP_FORMAT if self._gzip else _deflate_format(data))
        return data

    def _continue(self, inflater: zlib._Decompress, data: bytes) -> bytes:
        """Decompress up to one piece of ``data``. Return the rest."""
        # One byte more than fits, to distinguish "just fits" from "too much".
        most = min(self.limit + 1 - len(self._collected), PIECE)
        piece = inflater.decompress(data, most)
        self._collect(piece)
        if inflater.eof:
            self._inflater = None
            return inflater.unused_data
        if len(piece) == most and not inflater.unconsumed_tail and not self.exceeded:
            # All input was consumed, but not all output fitted into the piece.
            return self._continue(inflater, b"")
        return inflater.unconsumed_tail

    def _collect(self, piece: bytes) -> None:
        if len(self._collected) + len(piece) > self.limit:
            self.exceeded = True
        else:
            self._collected += piece


def _deflate_format(data: bytes) -> int:
    # "deflate" means zlib's format (RFC 1950), but some servers send the raw data without it (RFC 1951): the first two
    # bytes tell. (RFC 9110, section 8.4.1.2)
    in_zlib = data[0] & 0x8F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return _ZLIB_FORMAT if in_zlib else _RAW_FORMAT


async def read_bounded(response: httpx.Response, body: BoundedBody) -> None:
    """Read the body of ``response`` into ``body`` until it ends or exceeds its limit, and close the response.

    The rest beyond the limit is not read: the connection is closed. The raw bytes are read, as httpx would decompress
    each received piece in one step, whatever its size.

    If this is cancelled, the caller must close the response.
    """
    if response.is_stream_consumed:
        # By a hook of a given client, or by a transport without a stream. httpx has decompressed it.
        body.take_read(response.content)
        return
    with trio.CancelScope() as scope:
        # Leaving httpx's generators half-way would leave them, and the connection, to the garbage collector.
        # Cancelling them while they wait for the network unwinds them all. So nothing else is awaited in this loop.
        # `aiter_raw` is not used, as it closes the response at the end: if that hangs, the end would not be noticed.
        async for data in cast("AsyncIterable[bytes]", response.stream):
            if scope.cancel_called:
                continue
            body.feed(data)
            if body.exceeded:
                scope.cancel()
    with trio.move_on_after(CLOSE_TIMEOUT):
        await response.aclose()
