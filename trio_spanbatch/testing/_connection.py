"""A connection of the receiver: HTTP/1.1 by h11 over a stream of trio.

A client can cause only three exceptions, which end the connection: ``h11.RemoteProtocolError`` (malformed HTTP),
``trio.BrokenResourceError`` (the client went away) and `BodyTooLarge`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from http.client import responses

import h11
import trio

from ._answers import Answer, Drip
from ._network import ServerEnd

_READ_SIZE = 64 * 1024

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})

# For how long, and for how many bytes, to keep reading after a client was refused in the middle of its request. Closing
# immediately would reset the connection, so that the client could not read the refusal.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 1024 * 1024


class BodyTooLarge(Exception):
    """The body of a request is too long, by its content or its Content-Length. The rest of it was not read."""


def break_on_close(stream: trio.abc.Stream) -> None:
    """Make closing ``stream`` reset the connection, if the stream supports that."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        # Linger for 0 seconds: close sends RST and discards unsent data. The socket may be closed already.
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif isinstance(stream, ServerEnd):
        stream.broken = True


class Connection:
    """HTTP/1.1 with a client, one request at a time; pipelined requests wait in h11's buffer."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER)
        self._method = b""

    async def next_head(self) -> h11.Request | None:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method
        return event

    async def read_body(self, head: h11.Request, limit: int) -> bytes:
        """Return the body of the request that begins with ``head``; raise `BodyTooLarge` beyond ``limit`` bytes."""
        # h11 has checked that it is a single number.
        declared = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
        if declared > limit:
            raise BodyTooLarge
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > limit:
                raise BodyTooLarge
        return bytes(body)

    async def respond(self, answer: Answer, *, half: bool = False) -> None:
        """Send ``answer``, or the first half of its bytes, without its delay."""
        data = self._encoded(answer)
        await self._stream.send_all(data[: len(data) // 2] if half else data)

    async def drip(self, drip: Drip) -> None:
        for chunk in drip.chunks:
            await self._stream.send_all(chunk)
            await trio.sleep(drip.interval)

    async def wait_for_end(self) -> None:
        """Wait until the client gives up, discarding what it sends."""
        while await self._stream.receive_some(_READ_SIZE):
            pass

    async def reset(self) -> None:
        """Close the connection so that it breaks for the client."""
        break_on_close(self._stream)
        await trio.aclose_forcefully(self._stream)

    def start_next_cycle(self) -> bool:
        """Prepare for the next request. Return whether there can be one."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def refuse(self, answer: Answer) -> None:
        """Send ``answer`` in the middle of a request, in a way that the client can read it."""
        await self._stream.send_all(self._encoded(answer, [("connection", "close")]))
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        rest = _LINGER_BYTES
        with trio.move_on_after(_LINGER_SECONDS):
            while rest > 0 and (data := await self._stream.receive_some(_READ_SIZE)):
                rest -= len(data)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self._stream.send_all(self._h11.send(go_on) or b"")
            self._h11.receive_data(bytes(await self._stream.receive_some(_READ_SIZE)))
        return event

    def _encoded(self, answer: Answer, more_headers: Sequence[tuple[str, str]] = ()) -> bytes:
        pairs = (*answer.headers, *more_headers)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        body = b"" if self._method == b"HEAD" else answer.body
        if not _BODY_HEADERS & {name.lower() for name, _ in headers} and answer.status not in _BODILESS:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        reason = responses.get(answer.status, "").encode()
        response = h11.Response(status_code=answer.status, headers=headers, reason=reason)
        head = self._h11.send(response) or b""
        try:
            return head + (self._h11.send(h11.Data(data=body)) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:
            # The script deliberately gives a Content-Length that does not match its body. h11 is in its error state
            # now, so the connection is closed afterwards.
            return head + body
