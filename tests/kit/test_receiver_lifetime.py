"""Entering and leaving the receiver, cancels, Ctrl-C and crashes."""

from __future__ import annotations

import errno
import itertools
import math
import signal

import pytest
import trio
import trio.testing

from tests.support.receivers import (
    body_of,
    client_for,
    converse,
    nothing_leaks,
    post,
    raw_request,
    stored_names,
    wait_until,
)
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome

networks = pytest.mark.parametrize("memory", [False, True], ids=["tcp", "memory"])

GOOD = raw_request(body_of("x"))


@networks
async def test_leaving_ends_all_connections_in_any_state(memory: bool) -> None:
    answers: list[Outcome | None] = [Hang(), Answer(delay=math.inf), Drip(itertools.repeat(b"x"), 1000.0), None]
    with nothing_leaks():
        async with trio.open_nursery() as clients:
            receiver = OTLPReceiver(listen=not memory, answers=answers)
            async with receiver:
                for count in range(1, 5):
                    clients.start_soon(converse, receiver, memory, GOOD)
                    await receiver.wait_for_requests(count)
                clients.start_soon(converse, receiver, memory, GOOD[:20])
                clients.start_soon(converse, receiver, memory, b"")
                await wait_until(lambda: receiver.open_connections == 6)
            # Over memory streams, tasks of the test serve the connections; the receiver has cancelled them.
            await wait_until(lambda: receiver.open_connections == 0)
    assert stored_names(receiver) == ["x"]


async def test_the_port_is_free_again_after_leaving_and_a_second_receiver_can_take_it() -> None:
    async with OTLPReceiver() as first:
        port = first.port
        assert port != 0
        with pytest.raises(OSError, match=r"^\[Errno") as caught:
            await OTLPReceiver(port=port).__aenter__()
        assert caught.value.errno == errno.EADDRINUSE
    async with OTLPReceiver(port=port) as second, client_for(second, memory=False) as client:
        assert second.port == port
        assert (await post(client, second, body_of("x"))).is_success


@pytest.mark.parametrize(
    ("host", "start"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://localhost:")],
)
async def test_a_client_can_use_the_url(host: str, start: str) -> None:
    async with OTLPReceiver(host=host) as receiver, client_for(receiver, memory=False) as client:
        assert receiver.url == f"{start}{receiver.port}/v1/traces"
        assert (await post(client, receiver, body_of("x"))).is_success


def test_the_url_of_an_ipv6_address_has_brackets() -> None:
    assert OTLPReceiver(host="::1", port=4318).url == "http://[::1]:4318/v1/traces"
    assert OTLPReceiver(host="::", port=4318).url == "http://[::1]:4318/v1/traces"


async def test_a_receiver_can_be_entered_only_once() -> None:
    receiver = OTLPReceiver(listen=False)
    async with receiver:
        with pytest.raises(trio.BusyResourceError):
            await receiver.__aenter__()
    with pytest.raises(trio.BusyResourceError):
        await receiver.__aenter__()


@networks
async def test_an_exception_of_the_body_is_not_wrapped_in_a_group(memory: bool) -> None:
    for error in (ValueError("mine"), ExceptionGroup("my own group", [ValueError("mine")]), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            async with OTLPReceiver(listen=not memory):
                raise error
        assert caught.value is error


@networks
async def test_a_cancelled_receiver_runs_until_its_body_has_ended(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory)
    with trio.CancelScope() as scope:
        async with receiver, client_for(receiver, memory=memory) as client:
            scope.cancel()
            with trio.CancelScope(shield=True):
                assert (await post(client, receiver, body_of("drained"))).is_success
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert stored_names(receiver) == ["drained"]
    assert receiver.open_connections == 0


@networks
async def test_entering_in_a_cancelled_scope_ends_immediately(memory: bool) -> None:
    with nothing_leaks():
        with trio.CancelScope() as scope:
            scope.cancel()
            async with OTLPReceiver(listen=not memory):
                raise AssertionError("entered")
        assert scope.cancelled_caught


async def test_a_cancelled_body_is_not_an_error_and_leaving_does_not_cancel_the_body() -> None:
    with trio.CancelScope() as scope:
        async with OTLPReceiver():
            scope.cancel()
    assert not scope.cancelled_caught


async def test_an_accept_loop_that_crashes_ends_the_body_and_shows_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(_handler: object, listeners: list[trio.SocketListener]) -> None:
        for listener in listeners:
            await listener.aclose()
        raise OSError("no more sockets")

    monkeypatch.setattr(trio, "serve_listeners", crash)
    with nothing_leaks(), pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no more sockets")):
        async with OTLPReceiver():
            await trio.sleep_forever()


async def test_an_accept_loop_that_crashes_while_leaving_shows_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(_handler: object, listeners: list[trio.SocketListener]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            listeners[0].socket.close()
            raise OSError("no more sockets")

    monkeypatch.setattr(trio, "serve_listeners", crash)
    with nothing_leaks(), pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no more sockets")):
        async with OTLPReceiver():
            await trio.testing.wait_all_tasks_blocked()


def test_ctrl_c_in_the_body_and_while_leaving_is_raised_as_it_is() -> None:
    async def interrupted_in_the_body() -> None:
        async with OTLPReceiver():
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    async def interrupted_while_leaving() -> None:
        async with OTLPReceiver():
            await trio.testing.wait_all_tasks_blocked()
            # Runs when the main task waits next, for the tasks of the receiver.
            trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)

    for interrupted in (interrupted_in_the_body, interrupted_while_leaving):
        with nothing_leaks(), pytest.raises(KeyboardInterrupt):
            trio.run(interrupted)


async def test_serve_stream_after_leaving_closes_the_stream() -> None:
    receiver = OTLPReceiver(listen=False)
    async with receiver:
        pass
    client, server = trio.testing.memory_stream_pair()
    await receiver.serve_stream(server)
    assert await client.receive_some() == b""


async def test_serve_stream_works_on_its_own_and_ends_when_it_is_cancelled() -> None:
    receiver = OTLPReceiver(listen=False)
    client, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.serve_stream, server)
        await client.send_all(GOOD)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
        assert receiver.open_connections == 1
        nursery.cancel_scope.cancel()
    assert receiver.open_connections == 0
    assert await client.receive_some() == b""
