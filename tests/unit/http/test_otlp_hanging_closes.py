"""Given transports that hang in ``aclose`` delay neither an attempt nor the drain."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_spans
from tests.support.exporters import ENDPOINT, batch_of
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    Limits,
    OTLPExporter,
    RetryPolicy,
    SpanBatcher,
    SpanBatcherStatistics,
    TryLater,
)
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.destinations.databricks_auth import DatabricksAuth

TIMEOUTS = [0.0, 0.5, 3.0, 5.0, 10.0]
ONE = BatchPolicy(max_spans=1)


class HangsWhenClosed(httpx.AsyncByteStream):
    """A body that may or may not end, and whose ``aclose`` does not."""

    def __init__(self, *, ends: bool) -> None:
        self._ends = ends

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""
        if not self._ends:
            await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.sleep_forever()


@attrs.define(eq=False)
class Transport(httpx.AsyncBaseTransport):
    """Answers 200, or not at all, and hangs in each ``aclose``."""

    answers: bool = True
    body_ends: bool = True
    asked: int = 0
    cancelled_closes: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if not self.answers:
            await trio.sleep_forever()
        return httpx.Response(200, stream=HangsWhenClosed(ends=self.body_ends))

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled_closes += 1
            raise


TRANSPORTS = {
    "no answer": Transport(answers=False),
    "half an answer": Transport(body_ends=False),
    "a whole answer": Transport(),
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    return attrs.evolve(TRANSPORTS[request.param])


async def drain(exporter: OTLPExporter, shutdown_timeout: float) -> tuple[float, SpanBatcherStatistics]:
    """Return how long the drain took with several attempts that hang, and its result."""
    batcher = SpanBatcher(exporter, batch=ONE, shutdown_timeout=shutdown_timeout)
    async with batcher:
        for location in ("1", "2", "3"):
            batcher.add_spans_nowait(location, make_spans(2))
        await trio.sleep(2)
        left_at = trio.current_time()
    return trio.current_time() - left_at, batcher.statistics()


@pytest.mark.parametrize("shutdown_timeout", TIMEOUTS)
async def test_the_drain_ends_within_shutdown_timeout_even_if_a_close_hangs(
    shutdown_timeout: float, transport: Transport, autojump_clock: MockClock
) -> None:
    took, statistics = await drain(OTLPExporter(ENDPOINT, transport=transport), shutdown_timeout)
    assert took <= shutdown_timeout + 1e-6
    assert statistics.accepted == statistics.delivered + statistics.undelivered == 6
    assert transport.cancelled_closes == 1


@pytest.mark.parametrize("shutdown_timeout", TIMEOUTS)
async def test_the_drain_ends_within_shutdown_timeout_even_if_a_client_hangs(
    shutdown_timeout: float, transport: Transport, autojump_clock: MockClock
) -> None:
    class Auth(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
            try:
                yield request
            finally:
                await trio.sleep_forever()  # noqa: ASYNC102  # on purpose

    client = httpx.AsyncClient(transport=transport, auth=Auth())
    took, statistics = await drain(OTLPExporter(ENDPOINT, client=client), shutdown_timeout)
    assert took <= shutdown_timeout + 1e-6
    assert statistics.undelivered == 6
    assert not client.is_closed


@pytest.mark.parametrize("shutdown_timeout", TIMEOUTS)
async def test_the_drain_ends_within_shutdown_timeout_even_if_a_lookup_of_an_experiment_hangs(
    shutdown_timeout: float, transport: Transport, autojump_clock: MockClock
) -> None:
    exporter = mlflow("http://mlflow.test", experiments="name", environ={}, transport=transport)
    took, statistics = await drain(exporter, shutdown_timeout)
    assert took <= shutdown_timeout + 1e-6
    assert statistics.accepted == 6


@pytest.mark.parametrize("shutdown_timeout", TIMEOUTS)
async def test_the_drain_ends_within_shutdown_timeout_even_if_a_fetch_of_credentials_hangs(
    shutdown_timeout: float, transport: Transport, autojump_clock: MockClock
) -> None:
    async def auth(location: str) -> Mapping[str, str]:
        try:
            await trio.sleep_forever()
        finally:
            await trio.sleep_forever()  # noqa: ASYNC102  # on purpose

    took, statistics = await drain(OTLPExporter(ENDPOINT, auth=auth, transport=transport), shutdown_timeout)
    assert took <= shutdown_timeout + 1e-6
    assert (statistics.undelivered, transport.asked) == (6, 0)


async def test_a_drain_without_a_limit_waits_for_a_hanging_close_a_second_at_most(autojump_clock: MockClock) -> None:
    took, statistics = await drain(OTLPExporter(ENDPOINT, transport=Transport()), math.inf)
    assert took <= 10
    assert statistics.delivered == 6


async def test_a_complete_answer_counts_even_if_closing_it_hangs(autojump_clock: MockClock) -> None:
    exporter = OTLPExporter(ENDPOINT, transport=Transport())
    assert await exporter.export(batch_of()) == Delivered(status_code=200)
    assert trio.current_time() <= 1


@pytest.mark.parametrize("limit", [0.5, 7.0])
async def test_an_ended_attempt_releases_its_export_slot_even_if_its_close_hangs(
    limit: float, autojump_clock: MockClock
) -> None:
    transport = Transport(body_ends=False)
    exporter = OTLPExporter(ENDPOINT, transport=transport, timeout=limit)
    result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert trio.current_time() == pytest.approx(limit)
    one_slot = SpanBatcher(exporter, batch=ONE, limits=Limits(max_exports=1), retry=RetryPolicy(max_elapsed=0.001))
    async with one_slot as batcher:
        began_at = trio.current_time()
        for location in ("1", "2"):
            batcher.add_spans_nowait(location, make_spans(1))
        await batcher.flush()
        assert trio.current_time() - began_at == pytest.approx(2 * limit)


async def test_a_close_of_the_exporter_that_is_cancelled_closes_its_connections(autojump_clock: MockClock) -> None:
    transport = Transport()
    exporter = OTLPExporter(ENDPOINT, transport=transport)
    with trio.CancelScope() as scope:
        scope.cancel()
        await exporter.aclose()
    assert scope.cancelled_caught
    assert transport.cancelled_closes == 1
    assert trio.current_time() == 0
    # Closing again does nothing.
    await exporter.aclose()
    assert trio.current_time() == 0


async def test_an_exception_is_not_replaced_by_a_cancellation_while_the_response_is_closed(
    autojump_clock: MockClock,
) -> None:
    class Breaks(HangsWhenClosed):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            scope.cancel()
            raise ZeroDivisionError

    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Breaks(ends=False)))
    exporter = OTLPExporter(ENDPOINT, transport=transport)
    with trio.CancelScope() as scope, pytest.raises(ZeroDivisionError):
        await exporter.export(batch_of())
    assert trio.current_time() == 0


async def test_the_drain_does_not_wait_for_a_thread_that_fetches_a_token_and_hangs() -> None:
    go_on = threading.Event()
    in_thread = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def make_config() -> Any:
        token.run_sync_soon(in_thread.set)
        go_on.wait()
        raise ValueError

    auth = DatabricksAuth(make_config, "https://workspace.test")
    exporter = OTLPExporter(ENDPOINT, auth=auth, transport=Transport(answers=False))
    try:
        # If the drain waited for the thread, this would never end.
        async with SpanBatcher(exporter, batch=ONE, shutdown_timeout=0.1) as batcher:
            batcher.add_spans_nowait("1", make_spans(1))
            await in_thread.wait()
    finally:
        go_on.set()
    assert batcher.statistics().undelivered == 1
