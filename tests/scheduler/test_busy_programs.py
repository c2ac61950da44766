"""Programs that give each step of the scheduler as much to do as it does: nothing waits until they pause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span, make_spans
from tests.support.exporters import encoded_span
from trio_spanbatch import BatchPolicy, Delivered, EncodedSpan, Limits, RetryPolicy, Span, SpanBatch, SpanBatcher

# In how many passes of trio's scheduler something must happen.
SOON = 200


@attrs.define(eq=False)
class GatedExporter:
    """Exports take one checkpoint, or wait until the gate of their location is open."""

    gates: dict[str, trio.Event] = attrs.Factory(dict)
    begun: Counter[str] = attrs.Factory(Counter)

    async def export(self, batch: SpanBatch) -> Delivered:
        self.begun[batch.location] += 1
        await trio.lowlevel.checkpoint()
        if (gate := self.gates.get(batch.location.split()[0])) is not None:
            await gate.wait()
        return Delivered()

    async def aclose(self) -> None:
        pass


async def passes(number: int, in_each: Callable[[], object]) -> None:
    """Call a function in each of so many passes of trio's scheduler, which take a millisecond."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    for _ in range(number):
        in_each()
        clock.jump(0.001)
        await trio.lowlevel.checkpoint()


def add_all(batcher: SpanBatcher, location: str, spans: Iterable[Span | EncodedSpan]) -> None:
    """Add spans, up to the first that does not fit."""
    try:
        for span in spans:
            batcher.add_span_nowait(location, span)
    except trio.WouldBlock:
        pass


def add_to_next(count: int, batcher: SpanBatcher, others: Iterator[int], *, size: int = 0) -> None:
    """Add a span to each of the next ``count`` other locations, if it fits."""
    for number in islice(others, count):
        add_all(batcher, f"other {number}", [make_span(size=size)])


async def test_a_location_is_flushed_while_others_always_wait_for_a_slot(mock_clock: MockClock) -> None:
    def fill() -> None:
        for number in range(200):
            add_all(batcher, f"busy {number}", hundred)

    exporter, hundred = GatedExporter(), [encoded_span()] * 100
    batch, limits = BatchPolicy(max_spans=10, max_delay=0.05), Limits(max_exports=128, max_queued_spans=100)
    async with SpanBatcher(exporter, batch=batch, limits=limits, shutdown_timeout=60) as batcher:
        # All locations come to run several exports, and wait for slots when these have hung for a while.
        await passes(50, fill)
        exporter.gates["busy"] = trio.Event()
        await passes(50, fill)
        exporter.gates.pop("busy").set()
        await passes(50, fill)
        batcher.add_spans_nowait("another", make_spans(10))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.flush, "another")
            await passes(SOON, fill)
            assert not nursery.child_tasks
        assert exporter.begun["another"] == 1


@pytest.mark.parametrize("refused_in_each_pass", [70, 100])
async def test_an_adder_gets_free_bytes_while_refused_spans_open_one_location_after_the_other(
    mock_clock: MockClock, refused_in_each_pass: int
) -> None:
    def add_to_others() -> None:
        add_to_next(refused_in_each_pass, batcher, others, size=300)
        lengths.append(len(batcher._admission.inbox))

    exporter, others, lengths = GatedExporter({"full": trio.Event()}), cycle(range(200)), list[int]()
    limits = Limits(max_pending_bytes=10_000, max_pending_bytes_per_location=10_000, max_locations=100)
    async with SpanBatcher(exporter, limits=limits, shutdown_timeout=60) as batcher:
        add_all(batcher, "full", make_spans(100, size=300))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.add_span, "waits", make_span(size=300))
            await passes(10, lambda: None)
            assert nursery.child_tasks
            exporter.gates["full"].set()
            await passes(SOON, add_to_others)
            assert not nursery.child_tasks
    # No location is in it twice, and those that were evicted leave it.
    assert max(lengths) < 64 * refused_in_each_pass


@pytest.mark.parametrize("full_in_each_pass", [13, 20])
async def test_a_location_gets_another_slot_while_others_always_have_something_to_send(
    mock_clock: MockClock, full_in_each_pass: int
) -> None:
    def add_to_others() -> None:
        add_to_next(full_in_each_pass, batcher, others)

    exporter, others = GatedExporter(), cycle(range(500))
    retry = RetryPolicy(attempt_timeout=1000)
    async with SpanBatcher(exporter, batch=BatchPolicy(max_spans=1), retry=retry, shutdown_timeout=60) as batcher:
        for _ in range(2):
            # With each success it may run one export more.
            batcher.add_span_nowait("hangs", make_span())
            await passes(10, lambda: None)
        exporter.gates.update(hangs=trio.Event(), slow=trio.Event())
        for number in range(40):
            batcher.add_span_nowait(f"slow {number}", make_span())
        batcher.add_spans_nowait("hangs", make_spans(1))
        await passes(10, lambda: None)
        batcher.add_spans_nowait("hangs", make_spans(1))
        await passes(10, add_to_others)
        assert exporter.begun["hangs"] == 3, "so many exports of others run that no slot can be spared"
        exporter.gates["slow"].set()
        await passes(SOON, add_to_others)
        exporter.gates["hangs"].set()
        assert exporter.begun["hangs"] == 4
