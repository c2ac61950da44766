"""A task of the batcher fails, for instance because an exporter exits the program."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import make_span, make_spans, watched_batcher
from trio_spanbatch import BatchPolicy, ExportResult, Limits, Loss, SpanBatch, SpanBatcher
from trio_spanbatch._runtime.delivery import Delivery
from trio_spanbatch._scheduler.location import Location
from trio_spanbatch._scheduler.scheduler import Scheduler
from trio_spanbatch.testing import Hang, InMemoryExporter


class ExitsAtB(InMemoryExporter):
    """Exports hang, until one to "b" exits the program after a second."""

    def __init__(self) -> None:
        super().__init__(lambda batch: Hang())

    async def export(self, batch: SpanBatch) -> ExportResult:
        if batch.location == "b":
            await trio.sleep(1)
            raise SystemExit(3)
        return await super().export(batch)


async def test_no_span_is_accepted_while_the_other_tasks_hand_back_theirs(autojump_clock: MockClock) -> None:
    refused: list[str] = []

    def add_elsewhere(loss: Loss) -> None:
        if loss.location != "a":
            return
        try:
            batcher.add_spans_nowait("c", loss.batch.spans)
        except trio.ClosedResourceError:
            refused.append(loss.location)

    with pytest.raises(SystemExit):
        async with watched_batcher(ExitsAtB(), BatchPolicy(max_spans=1), on_loss=add_elsewhere) as batcher:
            for location in "ab":
                batcher.add_spans_nowait(location, make_spans(2))
            await trio.sleep(2)
    # One was in flight, one was queued.
    assert refused == ["a", "a"]
    assert batcher.statistics().accepted == batcher.statistics().undelivered == 4


class InternalError(Exception):
    """A bug of the batcher's own."""


@pytest.mark.parametrize("repetition", range(5))
@pytest.mark.parametrize(
    ("task", "method"),
    [(Scheduler, "_begin_export"), (Scheduler, "_look"), (Delivery, "_answer"), (Delivery, "_next_part")],
)
async def test_a_bug_in_a_task_propagates_without_a_group_and_all_waiting_calls_are_woken(
    task: type, method: str, repetition: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: Counter[str] = Counter()
    original = getattr(task, method)

    def fail_for_b(self: Scheduler | Delivery, *args: object) -> object:
        location = args[0] if isinstance(self, Scheduler) else self._location
        assert isinstance(location, Location)
        if location.name == "b" and trio.current_time() >= 5:
            raise InternalError
        return original(self, *args)

    async def add(batcher: SpanBatcher, location: str) -> None:
        try:
            await batcher.add_span(location, make_span(size=100))
            ends["accepted"] += 1
        except trio.ClosedResourceError:
            ends["closed"] += 1

    async def use() -> None:
        limits = Limits(max_pending_bytes=400, max_queued_spans=1)
        exporter = InMemoryExporter(delay=5)
        async with watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher:
            for location in "abc" * 6:
                adders.start_soon(add, batcher, location)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(task, method, fail_for_b)
            await trio.sleep(100)
            statistics = batcher.statistics()
            assert statistics.accepted == ends["accepted"] == statistics.delivered + statistics.undelivered
            # None, if all spans that were pending were delivered in that very step.
            reasons = {loss.reason for loss in batcher.undelivered}
            assert reasons <= {"a task of the batcher failed with InternalError"}

    with trio.fail_after(1000):
        async with trio.open_nursery() as adders:
            with pytest.raises(InternalError):
                await use()
    assert ends.total() == 18
    assert ends["closed"] > 0
