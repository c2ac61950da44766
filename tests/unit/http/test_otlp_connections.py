"""Reuse of connections, surplus data on them, and how much is read at once."""

from __future__ import annotations

import gc

import httpx
import pytest
import trio
import trio.testing

from tests.support.batchers import make_spans, watched_batcher
from tests.support.deliveries import AT_ONCE, BIG
from tests.support.exporters import batch_of
from tests.support.receivers import nothing_leaks
from tests.support.wire_server import CHUNKED, OK, Tls, chunk, wire_server
from trio_spanbatch import Delivered, Loss
from trio_spanbatch._http import connection
from trio_spanbatch._http.attempt import Attempt

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 3\r\n\r\nbad"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

# Responses with surplus data.
SURPLUS = {
    "the same response twice": [OK, OK],
    "another response": [OK, UNAUTHORIZED],
    "a timeout and nothing else": [OK, TIMEOUT],
    "an interim response": [OK, b"HTTP/1.1 103 Early Hints\r\n\r\n"],
    "the beginning of a response": [OK, b"HTTP/1.1 4"],
    "a body longer than it said": [OK, b"surprise"],
    "a body where there is none": [b"HTTP/1.1 204 No Content\r\n\r\n", b"surprise"],
    "bytes after the last chunk": [CHUNKED + b"0\r\n\r\n", OK],
}

NETWORKS = {
    "memory": (False, False),
    "memory, TLS": (False, True),
    "TCP": (True, False),
    "TCP, TLS": (True, True),
}


@pytest.fixture(scope="module")
def tls() -> Tls:
    return Tls.make()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("pieces", SURPLUS.values(), ids=list(SURPLUS))
async def test_data_after_a_response_is_never_the_response_to_the_next_request(
    pieces: list[bytes], network: str, tls: Tls
) -> None:
    tcp, with_tls = NETWORKS[network]
    status = 204 if b"204" in pieces[0] else 200
    with nothing_leaks():
        async with wire_server([pieces], tcp=tcp, tls=tls if with_tls else None) as (server, exporter):
            assert await exporter.export(batch_of()) == Delivered(status_code=status)
            # At once: not by the garbage collector, nor with the next request.
            await server.wait_closed(0)
            assert await exporter.export(batch_of()) == Delivered(status_code=200)
            assert await exporter.export(batch_of()) == Delivered(status_code=200)
            assert server.requests == [1, 2], "the connection with the surplus was left, the other one is kept"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("late", [OK, TIMEOUT, b"HTTP/1.1 103 Early Hints\r\n\r\n", b"H"])
async def test_data_between_two_requests_is_not_the_response_to_the_second(late: bytes, network: str, tls: Tls) -> None:
    tcp, with_tls = NETWORKS[network]
    with nothing_leaks():
        async with wire_server([], tcp=tcp, tls=tls if with_tls else None) as (server, exporter):
            assert await exporter.export(batch_of()) == Delivered(status_code=200)
            await server.send_unasked(late)
            assert await exporter.export(batch_of()) == Delivered(status_code=200)
            assert server.requests == [1, 1]


@pytest.mark.parametrize("network", NETWORKS)
async def test_a_connection_without_surplus_data_is_reused(network: str, tls: Tls) -> None:
    tcp, with_tls = NETWORKS[network]
    answers = [[OK], [CHUNKED, chunk(b"")], [UNAUTHORIZED], [b"HTTP/1.1 204 No Content\r\n\r\n"]]
    async with wire_server(answers, tcp=tcp, tls=tls if with_tls else None) as (server, exporter):
        for _ in range(6):
            await exporter.export(batch_of())
        assert server.requests == [6]


async def test_surplus_data_for_one_location_does_not_settle_the_spans_of_another() -> None:
    losses: list[Loss] = []
    async with (
        wire_server([[OK, UNAUTHORIZED]]) as (_, exporter),
        watched_batcher(exporter, BIG, retry=AT_ONCE, on_loss=losses.append) as batcher,
    ):
        for location in ("a", "b"):
            batcher.add_spans_nowait(location, make_spans(3))
            assert (await batcher.flush()).locations[location].delivered == 3
    assert losses == []


# Tens of thousands of chunks or responses fit into 64 KiB.
STORMS = {
    "chunks of one byte": [CHUNKED, chunk(b"x") * 10_000, b"0\r\n\r\n"],
    "interim responses": [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2_000, OK],
}


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("pieces", STORMS.values(), ids=list(STORMS))
async def test_other_tasks_run_while_a_response_of_ten_thousand_pieces_is_read(
    pieces: list[bytes], with_tls: bool, tls: Tls
) -> None:
    steps = 0

    async def count_steps() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with wire_server([[OK], pieces], tls=tls if with_tls else None) as (server, exporter):
        await exporter.export(batch_of())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_steps)
            before = steps
            assert isinstance(await exporter.export(batch_of()), Delivered)
            nursery.cancel_scope.cancel()
        assert steps - before >= sum(map(len, pieces)) // connection._READ_AT_ONCE
        assert server.requests == [2]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "response",
    [OK, UNAUTHORIZED, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nill", b"SMTP\r\n\r\n"],
    ids=["delivered", "refused", "later", "broken"],
)
async def test_nothing_of_an_export_waits_for_the_garbage_collector(response: bytes, network: str, tls: Tls) -> None:
    tcp, with_tls = NETWORKS[network]
    async with wire_server([[response]] * 3, tcp=tcp, tls=tls if with_tls else None) as (_, exporter):
        await exporter.export(batch_of())
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await exporter.export(batch_of())
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            # A stream of TLS is trio's, and leads back to itself.
            assert not [thing for thing in gc.garbage if isinstance(thing, httpx.Request | httpx.Response | Attempt)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
