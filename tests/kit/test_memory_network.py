"""The receiver over memory streams, with the real client of httpx on a mock clock."""

from __future__ import annotations

import itertools
import math
import ssl

import httpx
import pytest
import trio
import trio.testing
import trustme

from tests.support.receivers import PROTOBUF, body_of, client_for, nothing_leaks, post, request_to, stored_names
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Reset
from trio_spanbatch.testing._network import connected_pair

DISCONNECTS = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)


def receiver_with(**options: object) -> OTLPReceiver:
    return OTLPReceiver(listen=False, **options)  # type: ignore[arg-type]  # each test's own options


async def test_any_host_and_port_lead_to_the_receiver_and_no_socket_is_opened(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def no_sockets(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(trio.socket, "socket", no_sockets)
    async with receiver_with() as receiver, client_for(receiver, memory=True) as client:
        assert receiver.port == 0
        for url in (
            receiver.url,
            "http://10.1.2.3:4318/v1/traces",
            "http://[::1]/v1/traces",
            "http://no.where/v1/traces",
        ):
            assert (await client.post(url, content=body_of("x"), headers=PROTOBUF)).is_success
        assert receiver.connections == 4


async def test_an_answer_takes_its_delay_on_the_mock_clock(autojump_clock: trio.testing.MockClock) -> None:
    async with receiver_with(answers=[Answer(delay=3600.0)]) as receiver, client_for(receiver, memory=True) as client:
        start = trio.current_time()
        assert (await post(client, receiver, body_of("x"))).is_success
        assert trio.current_time() == start + 3600
        assert receiver.requests[0].at == start


async def test_spans_are_stored_after_the_delay_whether_or_not_the_client_still_listens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with receiver_with(answers=[Answer(delay=10.0)]) as receiver, client_for(receiver, memory=True) as client:
        with trio.move_on_after(5):
            await post(client, receiver, body_of("x"))
        assert stored_names(receiver) == []
        await trio.sleep(6)
        assert stored_names(receiver) == ["x"]
        assert receiver.open_connections == 0


@pytest.mark.parametrize("answer", [Hang(), Answer(delay=math.inf), Drip([b"HTTP/1.1 200 OK\r\n"], math.inf)])
async def test_a_read_timeout_is_that_of_httpx_at_the_exact_time(
    answer: Hang | Answer | Drip, autojump_clock: trio.testing.MockClock
) -> None:
    with nothing_leaks():
        async with (
            receiver_with(answers=[answer]) as receiver,
            client_for(receiver, memory=True, timeout=7.0) as client,
        ):
            start = trio.current_time()
            with pytest.raises(httpx.ReadTimeout):
                await post(client, receiver, body_of("x"))
            assert trio.current_time() == start + 7


async def test_one_byte_per_second_never_causes_a_read_timeout_but_exceeds_a_total_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    drip = Drip(itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b"x")), interval=1.0)
    with nothing_leaks():
        async with receiver_with(answers=[drip]) as receiver, client_for(receiver, memory=True, timeout=5.0) as client:
            start = trio.current_time()
            with trio.move_on_after(100) as scope:
                await post(client, receiver, body_of("x"))
            assert scope.cancelled_caught
            assert trio.current_time() == start + 100
            await trio.sleep(2)
            assert receiver.open_connections == 0


async def test_connecting_can_take_time_and_time_out(autojump_clock: trio.testing.MockClock) -> None:
    async with receiver_with() as receiver, client_for(receiver, memory=True, timeout=5.0) as client:
        start = trio.current_time()
        receiver.network.connect_delay = 2.0
        assert (await post(client, receiver, body_of("x"))).is_success
        assert trio.current_time() == start + 2
        receiver.network.connect_delay = math.inf
        assert (await post(client, receiver, body_of("x"))).is_success  # on the connection that is there
        receiver.drop_connections()  # noticed at once, so that a new one is made
        with pytest.raises(httpx.ConnectTimeout):
            await post(client, receiver, body_of("x"))
        assert trio.current_time() == start + 7


async def test_a_server_that_is_down_refuses_connections_until_it_is_up_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with receiver_with() as receiver, client_for(receiver, memory=True) as client:
        receiver.network.refuse_connections = True
        with pytest.raises(httpx.ConnectError, match=r"receiver\.test:80 refuses the connection"):
            await post(client, receiver, body_of("x"))
        assert receiver.connections == 0
        receiver.network.refuse_connections = False
        assert (await post(client, receiver, body_of("x"))).is_success


async def test_connections_are_refused_before_the_receiver_is_entered_and_after_it_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    receiver = receiver_with()
    async with client_for(receiver, memory=True) as client:
        with pytest.raises(httpx.ConnectError):
            await post(client, receiver, body_of("x"))
        async with receiver:
            assert (await post(client, receiver, body_of("x"))).is_success
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await post(client, receiver, body_of("x"))


async def test_dropping_connections_breaks_requests_under_way_and_idle_ones_are_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures: list[str] = []

    async def expect_a_disconnect(client: httpx.AsyncClient, receiver: OTLPReceiver) -> None:
        try:
            await post(client, receiver, body_of("x"))
        except httpx.ReadError as error:
            failures.append(str(error))

    receiver = receiver_with(answers=itertools.chain([Hang()] * 3, itertools.repeat(None)))
    with nothing_leaks():
        async with receiver, client_for(receiver, memory=True) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(expect_a_disconnect, client, receiver)
                await receiver.wait_for_requests(3)
                await post(client, receiver, body_of("idle afterwards"))
                receiver.drop_connections()
            assert failures == ["the server broke the connection"] * 3
            await trio.testing.wait_all_tasks_blocked()
            assert receiver.open_connections == 0
            assert (await post(client, receiver, body_of("again"))).is_success
            assert stored_names(receiver) == ["idle afterwards", "again"]


async def test_a_closed_idle_connection_is_noticed_before_it_is_used_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # After a Drip the connection is closed, which the response does not announce.
    drip = Drip([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
    async with receiver_with(answers=[drip]) as receiver, client_for(receiver, memory=True) as client:
        assert (await post(client, receiver, body_of("x"))).is_success
        await trio.testing.wait_all_tasks_blocked()
        assert (await post(client, receiver, body_of("y"))).is_success
        assert receiver.connections == 2


async def test_a_server_cannot_write_forever_to_a_client_that_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written = 0

    def chunks() -> object:
        nonlocal written
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            written += 65536
            yield bytes(65536)

    receiver = receiver_with(answers=[Drip(chunks())])  # type: ignore[arg-type]  # a generator of bytes
    with nothing_leaks():
        async with receiver, client_for(receiver, memory=True) as client:
            response = await client.send(request_to(receiver, body_of("x")), stream=True)
            await trio.sleep(1000)
            assert written < 1_000_000
            await response.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert receiver.open_connections == 0


@pytest.mark.parametrize("steps", [[Hang()], [Answer(delay=100.0)], [Drip([b"HTTP/1.1 200 OK\r\n\r\n", b"x"], 100.0)]])
async def test_a_request_can_be_cancelled_at_every_step_and_leaves_nothing_behind(
    steps: list[Hang | Answer | Drip], autojump_clock: trio.testing.MockClock
) -> None:
    with nothing_leaks():
        for checkpoints in range(40):
            receiver = receiver_with(answers=steps)
            async with receiver, client_for(receiver, memory=True) as client, trio.open_nursery() as nursery:
                nursery.start_soon(post, client, receiver, body_of("x"))
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def test_writing_to_a_connection_that_is_not_read_or_is_gone_fails_as_with_tcp(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with receiver_with(answers=[Reset("before_body")]) as receiver, client_for(receiver, memory=True) as client:
        with nothing_leaks(), pytest.raises(DISCONNECTS):
            await post(client, receiver, *[b"x" * 1000] * 1000)


async def test_a_connection_fails_as_one_of_the_operating_system_does(autojump_clock: trio.testing.MockClock) -> None:
    async with receiver_with() as receiver:
        link = await receiver.network.connect_tcp("anywhere", 1)
        with trio.move_on_after(1.0) as waiting:
            await link.recv(10)
        assert waiting.cancelled_caught
        assert not link.is_readable()
        receiver.drop_connections()
        await trio.testing.wait_all_tasks_blocked()
        assert link.is_readable()
        with pytest.raises(ConnectionResetError):
            await link.recv(10)
        with pytest.raises(BrokenPipeError):
            await link.send(memoryview(b"x"))
        link.close()
        with pytest.raises(ConnectionAbortedError):
            await link.recv(10)
        with pytest.raises(BrokenPipeError):
            await link.send(memoryview(b"x"))


async def test_each_end_receives_what_the_other_sends_until_it_closes() -> None:
    client, server = connected_pair()
    assert await client.send(memoryview(b"request")) == 7
    assert await server.receive_some() == b"request"
    await server.send_all(b"response")
    assert client.is_readable()
    assert await client.recv(4) == b"resp"
    assert await client.recv(100) == b"onse"
    assert not client.is_readable()
    await server.aclose()
    assert await client.recv(100) == b""
    client.close()


async def test_tls_against_plain_http_is_a_connect_error(autojump_clock: trio.testing.MockClock) -> None:
    async with receiver_with() as receiver, client_for(receiver, memory=True) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post("https://receiver.test/v1/traces", content=body_of("x"), headers=PROTOBUF)


async def test_a_tls_server_that_is_not_trusted_is_a_connect_error(autojump_clock: trio.testing.MockClock) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("receiver.test").configure_cert(context)
    async with receiver_with(ssl_context=context) as receiver, client_for(receiver, memory=True) as client:
        assert receiver.url == "https://receiver.test/v1/traces"
        with pytest.raises(httpx.ConnectError):
            await post(client, receiver, body_of("x"))
