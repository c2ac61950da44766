"""The stream below TLS: it counts the bytes that were sent, and remembers a failed write instead of raising it.

A server or proxy may answer before it has read the whole request (413, 401) and then close the connection. Writing
fails, but the answer can still be read. If trio's `trio.SSLStream` sees its transport fail or be cancelled while it
writes, it refuses to read, too. So a failed write is remembered here, what follows it is discarded, and reading
goes on until it ends by itself.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

# The most that TLS is given to decrypt at once, in bytes.
_READ_SIZE = 16 * 1024

# How often `Wire.without_waiting` lets TLS read: some session tickets, but not all that a server can send.
_READS_WITHOUT_WAITING = 8


class NothingToRead(Exception):
    """Reading would have to wait, and `Wire.without_waiting` forbids that."""


class Link(Protocol):
    """What a connection needs of a network: the methods of `trio.socket.SocketType`, and whether it is readable."""

    def send(self, data: memoryview, /) -> Awaitable[int]:
        """Send at least the first byte of ``data``; return how many bytes were sent. If cancelled, none were."""

    def recv(self, max_bytes: int, /) -> Awaitable[bytes]:
        """Wait for data and return it; an empty result is the end."""

    def is_readable(self) -> bool:
        """Return whether `recv` would not have to wait: there is data, the end, or an error."""

    def close(self) -> None:
        """Close it, without waiting."""


class SocketLink:
    """A `Link` over a connected socket, which it takes over from trio.

    trio's own methods let other tasks run both when sending and when receiving. For a small request and its response,
    once is enough.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._sock.setblocking(False)

    async def send(self, data: memoryview) -> int:
        """Send at least the first byte of ``data``. If that need not wait, no other task runs meanwhile."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._sock.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    async def recv(self, max_bytes: int) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv(max_bytes)
            except BlockingIOError:  # it was only announced
                continue

    def is_readable(self) -> bool:
        descriptor = self._sock.fileno()
        if descriptor < 0:
            return True
        if sys.platform == "win32":
            return bool(select.select([descriptor], [], [], 0)[0])
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class Wire(trio.abc.Stream):
    """A stream over a `Link`, whose writes never fail."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.sent: int = 0  # how many bytes the operating system took
        self.write_error: OSError | None = None  # the error that ended writing. What is written after it is discarded
        # A scope costs more than the rest of a small write.
        self.may_be_stopped = True  # whether `stop_writing` may be called while something is written
        self._stopped = False
        self._reads_left: int | None = None
        self._writing: trio.CancelScope | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` until that fails or `stop_writing` is called."""
        if self._reads_left is not None:
            self._stopped = True  # what TLS answers by itself is missing from now on
        if not self.writable:
            await trio.lowlevel.checkpoint()
            return
        with memoryview(data) as view:
            if self.may_be_stopped:
                with trio.CancelScope() as self._writing:
                    await self._send(view)
                    await trio.lowlevel.checkpoint()
            else:
                await self._send(view)

    async def _send(self, view: memoryview) -> None:
        at = 0
        try:
            while at < len(view):
                count = await self._link.send(view[at:])
                at += count
                self.sent += count
        except OSError as error:
            self.write_error = error

    def stop_writing(self) -> None:
        """End a write that is under way, and discard what follows. Reading is not affected."""
        self._stopped = True
        if self._writing is not None:
            self._writing.cancel()

    @property
    def writable(self) -> bool:
        return not self._stopped and self.write_error is None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it; an empty result is the end."""
        if self._reads_left is not None:
            if not self._link.is_readable():
                raise NothingToRead
            if not self._reads_left:
                raise trio.BrokenResourceError("the server sends more and more")
            self._reads_left -= 1
        return await self._link.recv(_READ_SIZE if max_bytes is None else max_bytes)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Meanwhile, reading raises `NothingToRead` where it would have to wait, and a write ends all writing."""
        self._reads_left = _READS_WITHOUT_WAITING
        try:
            yield
        finally:
            self._reads_left = None

    def is_readable(self) -> bool:
        return self._link.is_readable()

    async def wait_send_all_might_not_block(self) -> None:
        """Do nothing: h11 and TLS do not need it."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._stopped = True
        self._link.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
