"""The stream below TLS: writes never fail, and looking for surplus data neither waits nor continues forever."""

from __future__ import annotations

import errno
import itertools

import pytest
import trio
import trio.testing

from trio_spanbatch._http.wire import NothingToRead, SocketLink, Wire


class FakeLink:
    """A link with endless data to read that accepts ``takes`` bytes and then fails or blocks."""

    def __init__(self, takes: int = 0, error: OSError | None = None) -> None:
        self.takes = takes
        self.taken = b""
        self.reads = 0
        self.readable = True
        self._error = error

    async def send(self, data: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        space = self.takes - len(self.taken)
        if not space:
            if self._error is None:
                await trio.sleep_forever()
            else:
                raise self._error
        self.taken += bytes(data[: min(space, 10)])
        return min(space, 10, len(data))

    async def recv(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return b"x"

    def is_readable(self) -> bool:
        return self.readable

    def close(self) -> None:
        pass


async def test_a_write_that_fails_is_remembered_and_reading_goes_on() -> None:
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    link = FakeLink(25, error)
    wire = Wire(link)
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await wire.send_all(bytes(100))
    assert (wire.sent, wire.write_error, wire.writable) == (25, error, False)
    assert await wire.receive_some() == b"x"


async def test_a_write_that_is_ended_sends_no_more_and_reading_goes_on() -> None:
    wire = Wire(FakeLink(25))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send_all, bytes(100))
        await trio.testing.wait_all_tasks_blocked()
        wire.stop_writing()
    assert (wire.sent, wire.write_error, wire.writable) == (25, None, False)
    await wire.send_all(bytes(100))
    assert wire.sent == 25
    assert await wire.receive_some() == b"x"


async def test_a_write_that_is_cancelled_is_cancelled() -> None:
    wire = Wire(FakeLink(25))
    with trio.move_on_after(0) as scope:
        await wire.send_all(bytes(100))
    assert scope.cancelled_caught


async def test_without_waiting_reading_ends_soon_for_any_amount_of_data() -> None:
    link = FakeLink()
    wire = Wire(link)
    with wire.without_waiting(), pytest.raises(trio.BrokenResourceError):
        for _ in itertools.count():
            await wire.receive_some()
    assert link.reads < 100
    link.readable = False
    with wire.without_waiting(), pytest.raises(NothingToRead):
        await wire.receive_some()
    assert await wire.receive_some() == b"x"


async def test_without_waiting_nothing_is_written_and_the_connection_becomes_unusable() -> None:
    link = FakeLink()  # which would block
    wire = Wire(link)
    with wire.without_waiting():
        await wire.send_all(b"what TLS answers by itself")
    assert not wire.writable
    assert wire.sent == 0


async def test_a_closed_socket_is_readable_so_that_nobody_waits_for_it() -> None:
    sock = trio.socket.socket()
    link = SocketLink(sock)
    link.close()
    await trio.lowlevel.checkpoint()
    assert link.is_readable()
