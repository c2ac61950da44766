"""Clients of the receiver that behave badly."""

from __future__ import annotations

import contextlib
import itertools
import random
import ssl

import httpx
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tests.support.receivers import (
    body_of,
    client_for,
    converse,
    nothing_leaks,
    post,
    raw_connection,
    raw_request,
    read_all,
    stored_names,
    wait_until,
)
from trio_spanbatch._http.wire import Wire
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Reset

networks = pytest.mark.parametrize("memory", [False, True], ids=["tcp", "memory"])

GOOD = raw_request(body_of("x"))


@networks
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", b"400"),
        (b"POST /v1/traces HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: sandwich\r\n\r\n", b"501"),
        (b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000, b"431"),
        (b"POST /" + b"x" * 100_000, b"431"),
        (raw_request(b"").replace(b"Length: 0", b"Length: 99999999999"), b"413"),
        (raw_request(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 99999999999"), b"413"),
    ],
)
async def test_malformed_requests_are_answered_and_the_connection_is_closed(
    memory: bool, data: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_leaks():
        async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
            data = (
                data.replace(b"\r\n\r\n", b"\r\nContent-Type: application/x-protobuf\r\n\r\n")
                if status == b"413"
                else data
            )
            await stream.send_all(data)
            assert (await read_all(stream)).startswith(b"HTTP/1.1 " + status)
    assert caplog.text == ""


@networks
async def test_a_valid_request_before_a_malformed_one_is_stored(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(GOOD + b"nonsense\r\n\r\n")
        data = await read_all(stream)
        assert data.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 400" in data
        assert stored_names(receiver) == ["x"]


@networks
@pytest.mark.parametrize("method", ["CONNECT", "OPTIONS", "TRACE", "HEAD", "BREW"])
async def test_other_methods_are_answered_405_and_the_connection_continues(memory: bool, method: str) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(raw_request(b"", method=method) + raw_request(body_of("x"), "Connection: close"))
        data = await read_all(stream)
        assert data.startswith(b"HTTP/1.1 405")
        assert b"HTTP/1.1 200" in data


@networks
async def test_a_client_can_disconnect_at_any_byte_of_its_request(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver:
        for length in range(len(GOOD)):
            async with raw_connection(receiver, memory=memory) as stream:
                if length:
                    await stream.send_all(GOOD[:length])
        await wait_until(lambda: receiver.connections == len(GOOD) and receiver.open_connections == 0)
        assert receiver.requests == []


@networks
@pytest.mark.parametrize(
    "answer", [None, Hang(), Reset("mid_response"), Drip([b"x"] * 10), Answer(body=bytes(5_000_000))]
)
async def test_a_client_can_disconnect_without_reading_its_answer(
    memory: bool, answer: Hang | Reset | Drip | Answer | None, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_leaks():
        async with OTLPReceiver(listen=not memory, answers=lambda _request: answer) as receiver:
            for _ in range(5):
                async with raw_connection(receiver, memory=memory) as stream:
                    await stream.send_all(GOOD)
                await wait_until(lambda: receiver.open_connections == 0)
            assert len(receiver.requests) == 5
    assert caplog.text == ""


@networks
async def test_a_client_that_closes_its_sending_half_still_gets_its_answer(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(GOOD)
        await stream.send_eof()
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_a_refused_client_that_never_stops_sending_is_disconnected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    receiver = OTLPReceiver(listen=False)
    client, server = trio.testing.memory_stream_pair()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.serve_stream, server)
        await client.send_all(b"nonsense\r\n\r\n")
    assert trio.current_time() - start < 5


@networks
async def test_data_from_a_client_that_is_never_answered_is_discarded(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Hang()])
    async with receiver:
        async with raw_connection(receiver, memory=memory) as stream:
            await stream.send_all(GOOD)
            await receiver.wait_for_requests(1)
            for _ in range(3):
                await stream.send_all(GOOD)
        await wait_until(lambda: receiver.open_connections == 0)
        assert len(receiver.requests) == 1


async def test_malformed_requests_inside_tls_are_answered_and_the_connection_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    authority = trustme.CA()
    context, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("receiver.test").configure_cert(context)
    authority.configure_trust(trusting)
    async with OTLPReceiver(listen=False, ssl_context=context) as receiver:
        wire = Wire(await receiver.network.connect_tcp("receiver.test", 443))
        async with trio.SSLStream(wire, trusting, server_hostname="receiver.test", https_compatible=True) as stream:
            await stream.send_all(b"nonsense\r\n\r\n")
            assert bytes(await stream.receive_some(1000)).startswith(b"HTTP/1.1 400")
            assert await stream.receive_some(1000) == b""


async def test_a_handshake_with_garbage_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    async with OTLPReceiver(listen=False, ssl_context=context) as receiver:
        await converse(receiver, True, b"nonsense\r\n\r\n" * 100)
    assert caplog.text == ""


@networks
async def test_repeated_resets_do_not_affect_other_connections(memory: bool) -> None:
    def answers(request: object) -> Reset | None:
        return next(steps)

    steps = itertools.cycle([Reset("after_body"), Reset("mid_response"), None])
    async with OTLPReceiver(listen=not memory, answers=answers) as receiver:
        outcomes: list[int | None] = []
        async with client_for(receiver, memory=memory) as client:
            for _ in range(12):
                try:
                    outcomes.append((await post(client, receiver, body_of("x"))).status_code)
                except httpx.TransportError:
                    outcomes.append(None)
        assert outcomes == [None, None, 200] * 4


# Random bytes

fragments = st.sampled_from(
    [
        b"POST /v1/traces HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n",
        b"Host: x\r\n",
        b"Content-Type: application/x-protobuf\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Content-Encoding: deflate\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Length: 5\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        GOOD,
    ]
)


def chop(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    pieces = []
    while data:
        size = rng.randint(1, 200)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@given(st.lists(fragments | st.binary(max_size=40), max_size=12).map(b"".join), st.integers(0, 2**32), st.booleans())
def test_no_input_makes_the_receiver_raise_or_hang(data: bytes, seed: int, half_close: bool) -> None:
    async def play() -> None:
        receiver = OTLPReceiver(listen=False)
        client, server = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.serve_stream, server)
            try:
                for piece in chop(data, seed):
                    await client.send_all(piece)
                if half_close:
                    await client.send_eof()
                    await read_all(client)
            except trio.BrokenResourceError:
                pass  # The receiver has closed the connection.
            await client.aclose()
        assert receiver.open_connections == 0

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


@given(st.lists(st.sampled_from([None, Answer(503), Reset("mid_response"), Reset("before_body")]), max_size=6))
def test_every_request_has_one_outcome_with_any_script(steps: list[Answer | Reset | None]) -> None:
    async def play() -> None:
        seen: list[int | None] = []
        receiver = OTLPReceiver(listen=False, answers=steps, on_request=lambda _request, status: seen.append(status))
        async with receiver, client_for(receiver, memory=True) as client:
            for _ in range(6):
                with contextlib.suppress(httpx.TransportError):
                    await post(client, receiver, body_of("x"))
        expected = [step.status if isinstance(step, Answer) else None if step else 200 for step in steps]
        assert seen == (expected + [200] * 6)[:6]
        assert len(stored_names(receiver)) == seen.count(200)

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
