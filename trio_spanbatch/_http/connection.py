"""One connection to a server: HTTP/1.1 by h11 over a stream, one exchange at a time.

A request of more than one piece is written by a separate task while the response is read. A response may come
before the request's end. If it is a success, the server may be slow to read, and writing goes on: such a response
counts only once the whole request was written. Otherwise the request will not be read, and writing ends (RFC 9112,
section 9.5).

A server can put ten thousand chunks of one byte into 64 KiB, or thousands of interim responses: a second of work for
h11 in one step, in which no other task runs and no deadline is noticed. So only a little is given to h11 at once.

A connection is used again only if the server has sent nothing beyond the response: what more there is (the same
response twice, a body longer than announced, a 408 for want of a request) would be read as the response to the *next*
request, which belongs to another batch and perhaps to another location. It can be in the socket (that is looked at
before each reuse), in h11's buffer, or between the socket and TLS.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TypeAlias

import h11
import trio

from .._exceptions import fatal_part, leaves
from .wire import NothingToRead, Wire

# Seconds since connecting, after which a connection is not used again, so that a new server behind the same name gets
# its share.
MAX_AGE = 300.0

# Seconds without a request after which a connection is not used again, unless the server allows more (or less) by
# ``Keep-Alive: timeout=n``: servers close idle connections after 5 (uvicorn) to 75 (nginx) seconds, perhaps in the
# moment in which the next request begins.
MAX_IDLE = 4.0

# Bytes. Most responses are smaller than this, head included.
_READ_AT_ONCE = 1024

# The largest head of a response in bytes: as large as httpx allows it.
_LARGEST_HEAD = 100 * 1024

# The most that is written at once. TLS encrypts it in one step.
WRITE_AT_ONCE = 64 * 1024

# The server, or the node that a proxy chose, is unhealthy: a retry should reach another one.
_UNHEALTHY = frozenset({502, 503, 504})

_TIMEOUT = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*([0-9]{1,9})\b", re.IGNORECASE)

# A whole response as it was received, and for how long a connection may be idle after it.
Answer: TypeAlias = tuple[bytes, float]


class Connection:
    """A connection on which requests are sent one after the other."""

    def __init__(self, wire: Wire, stream: trio.abc.Stream, *, now: float) -> None:
        self.wire = wire  # the stream below TLS
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
        self._ends_at = now + MAX_AGE
        self._max_idle = MAX_IDLE
        self._usable_until = now + MAX_IDLE
        self._next_piece: trio.CancelScope | None = None
        self.body_error: Exception | None = None  # what the iterator of the latest request's body raised
        self.read_timeout: float | None = None  # seconds within which the next data must come; None for no limit
        # The whole latest response, if it came in one piece and the connection can be used again.
        self.answer: Answer | None = None
        # What the latest response began with, empty if there was more; and what `begin` received.
        self._first: bytes | None = None
        self._ahead: bytes | Exception | None = None

    async def begin(self, data: bytes) -> Answer | None:
        """Send a whole request and receive the beginning of its response, for `request` to go on from.

        If it is an `answer` that h11 has read before, here or on another connection, it means the same again: then call
        `finish` in place of `request`. Return None if writing failed, or receiving, which `request` then raises.
        """
        self.wire.may_be_stopped = False
        try:
            await self._stream.send_all(data)
            self._ahead = bytes(await self._stream.receive_some(_READ_AT_ONCE))
        except Exception as error:
            self._ahead = error
        return (self._ahead, self._max_idle) if isinstance(self._ahead, bytes) and self.wire.writable else None

    async def request(self, head: h11.Request, body: bytes | AsyncIterator[bytes]) -> h11.Response:
        """Send a request and return the head of its response. Interim responses are skipped.

        It raises `OSError` if the connection broke, `trio.BrokenResourceError` if TLS did, `trio.TooSlowError` if
        nothing came within ``read_timeout``, `h11.ProtocolError` if one side violates HTTP, and whatever the iterator
        of the body raised, which is `body_error`, too.
        """
        self._first = self.answer = None
        start = self._h11.send(head) or b""
        is_small = isinstance(body, bytes) and len(start) + len(body) <= WRITE_AT_ONCE
        self.wire.may_be_stopped = not is_small
        if isinstance(body, bytes) and is_small:
            # A request this small fits into the socket's buffer.
            data = b"".join((start, self._encoded(body), self._end()))
            if self._ahead is None:
                await self._stream.send_all(data)
            response = await self._response()
        else:
            response = await self._write_while_reading(start, body)
        if response.status_code < 300 and self.wire.write_error is not None:
            raise self.wire.write_error
        self._note(response)
        return response

    async def read(self) -> bytes | None:
        """Return the next data of the response's body; None at its end. It raises what `request` raises.

        If the end has already been received, this is not a checkpoint: the response is complete and must be reported.
        """
        event = self._h11.next_event()
        if event is h11.NEED_DATA:
            event = await self._event()
        elif not isinstance(event, h11.EndOfMessage):
            await trio.lowlevel.checkpoint()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise h11.RemoteProtocolError("the connection ended")

    async def finish(self, now: float) -> bool:
        """Prepare for the next request, after the end of the response. Return whether there can be one.

        This never waits for the server and cannot be cancelled: the response is complete and must be reported.
        """
        known, self._ahead = self._ahead is not None, None  # then h11 has seen nothing of this exchange
        if not known and (self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE):
            return False
        self._usable_until = min(now + self._max_idle, self._ends_at)
        if self.expired(now) or self._h11.trailing_data[0] or not self.wire.writable or await self._tls_has_more():
            return False
        if not known:
            self._h11.start_next_cycle()
            self.answer = (self._first, self._max_idle) if self._first else None
        return True

    def expired(self, now: float) -> bool:
        return now >= self._usable_until

    def usable(self, now: float) -> bool:
        """Return whether an idle connection can be used again: the server has neither ended it nor sent anything."""
        return not self.expired(now) and not self.wire.is_readable()

    def close(self) -> None:
        self.wire.close()

    async def _write_while_reading(self, start: bytes, body: bytes | AsyncIterator[bytes]) -> h11.Response:
        response: h11.Response | None = None
        failures: list[Exception] = []
        interruption: BaseException | None = None

        async def write() -> None:
            try:
                await self._write(start, body)
            except Exception as error:
                failures.append(error)
                if error is self.body_error or not isinstance(error, trio.BrokenResourceError):
                    # The rest of the request will not come, and the server waits for it. (If TLS failed, it failed to
                    # read, and the reader tells why.)
                    nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                try:
                    response = await self._response()
                except Exception as error:
                    failures.insert(0, error)
                    nursery.cancel_scope.cancel()
                else:
                    if response.status_code >= 300 and self._h11.our_state is h11.SEND_BODY:
                        self.wire.stop_writing()
                        if self._next_piece is not None:
                            self._next_piece.cancel()
        except BaseException as error:  # noqa: ASYNC103  # raised below, without the nursery's group
            interruption = fatal_part(error) or leaves(error)[0]
        try:
            if interruption is not None:
                raise interruption
            if response is None or (failures and response.status_code < 300):
                raise failures[0]
            return response
        finally:
            # The tracebacks of exceptions lead back here, and would keep the body until garbage is collected.
            failures.clear()
            del interruption

    async def _write(self, start: bytes, body: bytes | AsyncIterator[bytes]) -> None:
        await self._stream.send_all(start)
        if isinstance(body, bytes):
            await self._send(body)
        else:
            await self._send_pieces(body)
        if self.wire.writable and (end := self._end()):
            await self._stream.send_all(end)

    async def _send_pieces(self, body: AsyncIterator[bytes]) -> None:
        if not self.wire.writable:
            return  # The body is still complete, for another connection.
        try:
            while (piece := await self._piece(body)) is not None:
                await self._send(piece)
        finally:
            if (aclose := getattr(body, "aclose", None)) is not None:
                await aclose()  # noqa: ASYNC102  # generators close whether they are cancelled or not

    async def _piece(self, body: AsyncIterator[bytes]) -> bytes | None:
        """Return the next piece of the body; None at its end, and if it would not be sent."""
        piece = None
        if not self.wire.writable:
            return piece
        # A scope for this alone: TLS would not survive that a write is cancelled.
        with trio.CancelScope() as self._next_piece:
            try:
                piece = await anext(body, None)
            except Exception as error:
                self.body_error = error
                raise
        return piece

    async def _send(self, data: bytes) -> None:
        for at in range(0, len(data), WRITE_AT_ONCE):
            if not self.wire.writable:
                return
            await self._stream.send_all(self._encoded(data[at : at + WRITE_AT_ONCE]))

    def _encoded(self, data: bytes) -> bytes:
        return (self._h11.send(h11.Data(data=data)) or b"") if data else b""

    def _end(self) -> bytes:
        return self._h11.send(h11.EndOfMessage()) or b""

    async def _response(self) -> h11.Response:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended")

    async def _event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._receive())
        return event

    async def _receive(self) -> bytes:
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            try:
                raise ahead
            finally:
                del ahead  # it refers to this frame
        if ahead is not None:
            data = ahead
        elif self.read_timeout is None:
            data = bytes(await self._stream.receive_some(_READ_AT_ONCE))
        else:
            with trio.fail_after(self.read_timeout):
                data = bytes(await self._stream.receive_some(_READ_AT_ONCE))
        if not data and self._h11.their_state is h11.SEND_RESPONSE:
            raise h11.RemoteProtocolError("Server disconnected without sending a response.")
        self._first = data if self._first is None else b""
        return data

    def _note(self, response: h11.Response) -> None:
        if response.status_code in _UNHEALTHY:
            self._ends_at = -1.0
        for name, value in response.headers:
            if name == b"keep-alive" and (found := _TIMEOUT.search(value)) is not None:
                self._max_idle = float(int(found[1]) - 1)

    async def _tls_has_more(self) -> bool:
        """Return whether TLS has received more. Only reading tells, as trio does not say what it has not decrypted."""
        if self._stream is self.wire:
            return False
        try:
            # Neither reading nor writing waits now, and reading ends soon, whatever the server sends.
            with self.wire.without_waiting(), trio.CancelScope(shield=True):
                await self._stream.receive_some(1)
        except NothingToRead:
            return not self.wire.writable
        except (OSError, trio.BrokenResourceError):
            pass
        return True
