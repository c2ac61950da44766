"""Faults with a name: the same tests for an exporter and for a receiver over memory streams and over TCP."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.support.batchers import make_span, make_spans, watched_batcher
from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, ExportResult, OTLPExporter, Refused, SpanExporter, TryLater
from trio_spanbatch.testing import (
    Answer,
    InMemoryExporter,
    OTLPReceiver,
    Reset,
    outage,
    poison,
    rate_limited,
    slow,
)

kinds = pytest.mark.parametrize("kind", ["exporter", "memory", "tcp"])


class Server:
    """An exporter whose batches end in itself or at a receiver, with the names of the spans that arrived."""

    def __init__(self, exporter: SpanExporter, names: Callable[[], list[str]]) -> None:
        self.exporter = exporter
        self.names = names

    async def send(self, *, location: str = "a", name: str = "step") -> ExportResult:
        return await self.exporter.export(batch_of(1, location, name))


@asynccontextmanager
async def server(kind: str, script: Any) -> AsyncIterator[Server]:
    if kind == "exporter":
        exporter = InMemoryExporter(script)
        yield Server(
            exporter,
            lambda: [span.to_message().name for spans in exporter.delivered.values() for span in spans],
        )
        return
    async with OTLPReceiver(listen=kind == "tcp", location_header="x-location", answers=script) as receiver:
        transport = receiver.memory_transport() if kind == "memory" else None
        sender = OTLPExporter(receiver.url, location_header="x-location", transport=transport)
        try:
            yield Server(sender, lambda: [span.name for spans in receiver.stored.values() for span in spans])
        finally:
            await sender.aclose()


def ambiguous(result: ExportResult) -> bool:
    assert isinstance(result, TryLater), result
    assert result.status_code is None
    return result.ambiguous


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """A clock that a test sets, as the kernel's sockets do not know of a mock clock."""
    return trio.testing.MockClock()


@kinds
async def test_an_outage_lasts_from_its_first_use_and_then_the_next_answers_apply(
    kind: str, clock: trio.testing.MockClock
) -> None:
    async with server(kind, [None, outage(30), rate_limited(1)]) as to:
        assert isinstance(await to.send(name="before"), Delivered)
        clock.jump(100)
        ambiguous(await to.send())
        for _ in range(3):
            clock.jump(9.9)
            assert not ambiguous(await to.send())
        clock.jump(0.3)
        await trio.testing.wait_all_tasks_blocked()
        assert await to.send() == TryLater("429 Too Many Requests: too many requests", status_code=429)
        assert isinstance(await to.send(name="after"), Delivered)
        assert to.names() == ["before", "after"]


@pytest.mark.parametrize("kind", ["exporter", "memory"])
async def test_nothing_of_a_request_leaves_during_an_outage_not_even_of_the_first(kind: str) -> None:
    async with server(kind, outage(30)) as to:
        assert not ambiguous(await to.send())


async def test_nothing_arrives_at_a_receiver_during_an_outage_and_all_its_connections_break(
    clock: trio.testing.MockClock,
) -> None:
    async with OTLPReceiver(answers=[None, outage(math.inf)]) as receiver, trio.open_nursery() as nursery:
        exporter = OTLPExporter(receiver.url)
        other = await trio.open_tcp_stream("127.0.0.1", receiver.port)
        await exporter.export(batch_of())
        await exporter.export(batch_of())
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await other.aclose()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", receiver.port)
        assert len(receiver.requests) == 1
        assert receiver.open_connections == 0
        await exporter.aclose()
        nursery.cancel_scope.cancel()


async def test_a_receiver_listens_on_the_same_port_after_each_outage(clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=[outage(1)] * 3) as receiver:
        exporter, port = OTLPExporter(receiver.url), receiver.port
        for _ in range(3):
            ambiguous(await exporter.export(batch_of()))
            assert not ambiguous(await exporter.export(batch_of()))
            clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(await exporter.export(batch_of()), Delivered)
        assert receiver.port == port
        await exporter.aclose()


@pytest.mark.parametrize("kind", ["exporter", "memory"])
async def test_an_outage_ends_exactly_after_its_seconds(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with server(kind, [outage(30)]) as to:
        ambiguous(await to.send())
        await trio.sleep(30 - 0.001)
        ambiguous(await to.send())
        await trio.sleep_until(30)
        assert isinstance(await to.send(), Delivered)


@kinds
async def test_so_many_requests_get_429_with_retry_after(kind: str) -> None:
    async with server(kind, rate_limited(5, retry_after=2)) as to:
        for _ in range(5):
            expected = TryLater("429 Too Many Requests: too many requests", after=2.0, status_code=429)
            assert await to.send() == expected
        assert isinstance(await to.send(), Delivered)


@pytest.mark.parametrize("kind", ["exporter", "memory"])
async def test_slow_answers_take_their_seconds_on_trios_clock(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with server(kind, [slow(3), None, rate_limited(1), slow(2)]) as to:
        for seconds in (3, 3, 5, 5):
            start = trio.current_time()
            await to.send()
            assert trio.current_time() - start == pytest.approx(seconds)


async def test_a_receiver_over_tcp_is_slow_on_trios_clock(clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=slow(3)) as receiver:
        exporter = OTLPExporter(receiver.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exporter.export, batch_of())
            await receiver.wait_for_requests(1)
            clock.jump(2.9)
            await trio.testing.wait_all_tasks_blocked()
            assert not receiver.stored
            clock.jump(0.2)
        assert len(receiver.stored["default"]) == 1
        await exporter.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_outage_over_tcp_ends_exactly_after_its_seconds(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    # Not at once: the kernel may need a moment to deliver what was sent.
    autojump_clock.autojump_threshold = 0.05
    async with OTLPReceiver(host=host, answers=outage(30)) as receiver:
        exporter = OTLPExporter(receiver.url)
        ambiguous(await exporter.export(batch_of()))
        await trio.sleep(29.9)
        assert not ambiguous(await exporter.export(batch_of()))
        await trio.sleep(0.1)
        assert isinstance(await exporter.export(batch_of()), Delivered)
        await exporter.aclose()


def is_bad(span: SpanMessage) -> bool:
    return span.name.startswith("bad")


@kinds
async def test_of_a_batch_with_poisonous_spans_only_those_are_rejected(kind: str) -> None:
    names = [f"{'bad' if number in (3, 17) else 'good'} {number}" for number in range(40)]
    async with server(kind, [poison(is_bad)]) as to:
        refused = await to.send(name="bad one")
        assert refused == Refused("400 Bad Request: the span 'bad one' is poison", 400, isolate=True)
        async with watched_batcher(to.exporter) as batcher:
            batcher.add_spans_nowait("a", [make_span(name) for name in names])
        assert (batcher.statistics().delivered, batcher.statistics().rejected) == (38, 2)
        assert sorted(to.names()) == sorted(name for name in names if name.startswith("good"))


@kinds
async def test_a_function_gives_faults_to_one_location_and_the_server_itself_is_up(
    kind: str, clock: trio.testing.MockClock
) -> None:
    async with server(kind, lambda request: outage(30) if request.location == "a" else None) as to:
        for seconds in (5, 24):
            assert await to.send() == TryLater("503 Service Unavailable: the server is down", status_code=503)
            assert isinstance(await to.send(location="b"), Delivered)
            clock.jump(seconds)
        assert isinstance(await to.send(), TryLater)
        clock.jump(1)
        assert isinstance(await to.send(), Delivered)


@kinds
async def test_a_function_that_returns_equal_rate_limits_means_the_same_one(kind: str) -> None:
    async with server(kind, lambda request: rate_limited(2)) as to:
        assert [type(await to.send()) for _ in range(4)] == [TryLater, TryLater, Delivered, Delivered]


@kinds
async def test_faults_have_no_state_and_can_be_used_again(kind: str) -> None:
    fault = rate_limited(1)
    for _ in range(2):
        async with server(kind, [fault, None, fault]) as to:
            assert [type(await to.send()) for _ in range(4)] == [TryLater, Delivered, TryLater, Delivered]


@kinds
async def test_an_endless_iterable_can_repeat_a_fault_that_lasts(kind: str) -> None:
    async with server(kind, itertools.cycle([poison(is_bad), slow(0), rate_limited(1)])) as to:
        found = [type(await to.send()) for _ in range(5)]
    assert found == [TryLater, Delivered, Delivered, TryLater, Delivered]


@pytest.mark.parametrize("kind", ["exporter", "memory"])
async def test_a_batcher_gets_through_all_faults_in_order(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    script = [outage(30), rate_limited(5, retry_after=2), slow(3), poison(is_bad)]
    async with server(kind, script) as to:
        async with watched_batcher(to.exporter, shutdown_timeout=600) as batcher:
            batcher.add_spans_nowait("a", [*make_spans(20), make_span("bad"), *make_spans(20)])
        assert (batcher.statistics().delivered, batcher.statistics().rejected) == (40, 1)
        assert to.names() == ["work"] * 40


async def test_other_answers_of_a_list_are_taken_as_before() -> None:
    async with OTLPReceiver(listen=False, answers=[rate_limited(1), Answer(503), Reset("before_body")]) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        results = [await exporter.export(batch_of()) for _ in range(4)]
        await exporter.aclose()
    assert [getattr(result, "status_code", None) for result in results] == [429, 503, None, 200]


async def is_bad_async(span: SpanMessage) -> bool:
    await trio.lowlevel.checkpoint()
    return is_bad(span)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: outage(0), ValueError, "seconds is 0; it must be above 0"),
        (lambda: outage(math.nan), ValueError, "seconds is nan; it must be above 0"),
        (lambda: outage("30"), TypeError, "seconds is '30'; it must be above 0"),  # type: ignore[arg-type]  # the mistake under test
        (lambda: rate_limited(0), ValueError, "requests is 0; it must be an int of at least 1"),
        (lambda: rate_limited(1.5), ValueError, "requests is 1.5"),  # type: ignore[arg-type]  # the mistake under test
        (lambda: rate_limited(True), TypeError, "requests is True"),
        (lambda: rate_limited(1, retry_after=-1), ValueError, "retry_after is -1; it must be"),
        (lambda: rate_limited(1, retry_after=0.5), ValueError, "retry_after is 0.5"),  # type: ignore[arg-type]  # the mistake under test
        (lambda: slow(-1), ValueError, "seconds is -1; it must be at least 0"),
        (lambda: poison("bad"), TypeError, "predicate is 'bad'; it must be a function that is not async"),  # type: ignore[arg-type]  # the mistake under test
        (
            lambda: poison(is_bad_async),
            TypeError,
            "predicate is <function is_bad_async at .*; it must be a function that is not async",
        ),
    ],
)
def test_an_invalid_argument_is_named_with_its_value(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
