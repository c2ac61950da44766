"""The cost of pending spans in the byte budgets, resources and scopes included."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import encoded_size, make_span, span_ids, watched_batcher
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    InvalidSpanError,
    Limits,
    Refused,
    Resource,
    Span,
    SpanBatch,
)
from trio_spanbatch.testing import Hang, InMemoryExporter


def with_resource(span: Span, resource: Resource) -> Span:
    return attrs.evolve(span, resource=resource)


async def test_different_resources_count_in_the_byte_budget(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes=100_000, max_pending_bytes_per_location=100_000)
    async with watched_batcher(InMemoryExporter(lambda batch: Hang()), limits=limits, shutdown_timeout=1) as batcher:
        accepted = 0
        with pytest.raises(trio.WouldBlock):
            for number in range(1000):
                resource = Resource({"session": f"{number} {'x' * 10_000}"})
                batcher.add_span_nowait("a", with_resource(make_span(), resource))
                accepted += 1
        assert accepted == 9
        assert 90_000 < batcher.statistics().pending_bytes <= 100_000
    assert batcher.statistics().pending_bytes == 0


async def test_a_resource_that_spans_share_counts_once(autojump_clock: MockClock) -> None:
    resource = Resource({"session": "x" * 10_000})
    limits = Limits(max_pending_bytes=20_000, max_pending_bytes_per_location=20_000)
    async with watched_batcher(InMemoryExporter(delay=1), BatchPolicy(max_spans=7), limits=limits) as batcher:
        spans = [with_resource(make_span(), resource) for _ in range(50)]
        sizes = sum(encoded_size(span) for span in spans)
        batcher.add_spans_nowait("a", spans)
        assert 10_000 + sizes < batcher.statistics().pending_bytes < 10_100 + sizes
        await batcher.flush()
        assert batcher.statistics().pending_bytes == 0
        # It counts again after the location was empty.
        batcher.add_span_nowait("a", spans[0])
        assert batcher.statistics().pending_bytes > 10_000
    assert batcher.statistics().pending_bytes == 0


async def test_the_bytes_of_a_batch_that_is_split_are_released_exactly(autojump_clock: MockClock) -> None:
    resources = [Resource({"session": f"{number} {'x' * 500}"}) for number in range(3)]
    spans = [with_resource(make_span(), resources[number // 3 % 3]) for number in range(40)]
    bad = {span.context.span_id for span in spans[5:30:8]}

    def answer(batch: SpanBatch) -> ExportResult:
        found = bad.intersection(span_ids(batch.spans))
        return Refused("bad span", 422, isolate=True) if found else Delivered()

    async with watched_batcher(InMemoryExporter(answer), BatchPolicy(max_spans=25)) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
        assert (report.delivered, report.rejected) == (36, 4)
        assert batcher.statistics().pending_bytes == 0


async def test_a_span_that_can_never_fit_with_its_resource_is_refused_at_once(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes_per_location=1000)
    span = with_resource(make_span(), Resource({"session": "x" * 1000}))
    async with watched_batcher(InMemoryExporter(), limits=limits) as batcher:
        with pytest.raises(InvalidSpanError, match=r"1... bytes with resource and scope, and can never fit"):
            batcher.add_span_nowait("a", span)
        with pytest.raises(InvalidSpanError, match="can never fit"):
            await batcher.add_span("a", span)
        assert batcher.statistics().accepted == 0


async def test_spans_within_the_budget_are_kept_when_they_are_handed_back(autojump_clock: MockClock) -> None:
    resource = Resource({"session": "x" * 1000})
    limits = Limits(max_pending_bytes=100_000, max_pending_bytes_per_location=100_000)
    exporter = InMemoryExporter(lambda batch: Hang())
    async with watched_batcher(exporter, BatchPolicy(max_spans=10), limits=limits, shutdown_timeout=1) as batcher:
        with pytest.raises(trio.WouldBlock):
            while True:
                batcher.add_span_nowait("a", with_resource(make_span(), resource))
    assert sum(len(loss.batch.spans) for loss in batcher.undelivered) == batcher.statistics().accepted > 1000
