"""Many locations: no single step handles all of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import encoded_size, make_span, watched_batcher
from trio_spanbatch import BatchPolicy, Limits, Loss, Refused, RetryPolicy, SpanBatcher
from trio_spanbatch.testing import Hang, InMemoryExporter

MANY = 300


@attrs.define(eq=False)
class AfterEachStep(trio.abc.Instrument):
    """Records how much a number grows in each step of a task."""

    read: Callable[[], int]
    last: int = 0
    grown: list[int] = attrs.Factory(list)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        now = self.read()
        self.grown.append(now - self.last)
        self.last = now


async def test_other_tasks_run_after_12_exports_begun_where_all_locations_are_due_at_once(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_exports=MANY)
    async with watched_batcher(InMemoryExporter(), BatchPolicy(max_delay=1), limits=limits) as batcher:
        for number in range(MANY):
            batcher.add_span_nowait(f"location {number}", make_span())
        steps = AfterEachStep(lambda: batcher.statistics().in_flight + batcher.statistics().delivered)
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(2)
        trio.lowlevel.remove_instrument(steps)
        assert batcher.statistics().delivered == MANY
    assert sum(steps.grown) == MANY
    assert max(steps.grown) == 12


@pytest.mark.parametrize("locations", [1, MANY])
async def test_other_tasks_run_while_many_waiting_adders_are_admitted(
    autojump_clock: MockClock, locations: int
) -> None:
    async def add(location: str) -> None:
        await batcher.add_span(location, make_span())
        admitted_at.add(trio.current_time())

    admitted_at: set[float] = set()
    budget = encoded_size(make_span(size=100_000))
    limits = Limits(max_pending_bytes=budget, max_pending_bytes_per_location=budget)
    exporter = InMemoryExporter([Hang(), None])
    async with watched_batcher(exporter, limits=limits, retry=RetryPolicy(attempt_timeout=10)) as batcher:
        batcher.add_span_nowait("fills the budget", make_span(size=100_000))
        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(add, f"location {number % locations}")
            await wait_all_tasks_blocked()
            assert batcher.statistics().accepted == 1
            steps = AfterEachStep(lambda: batcher.statistics().accepted)
            trio.lowlevel.add_instrument(steps)
        trio.lowlevel.remove_instrument(steps)
    assert sum(steps.grown) == MANY + 1
    assert max(steps.grown[1:]) == 64
    assert len(admitted_at) == 1, "some waited for more than that the space was free"


async def test_a_cancelled_flush_leaves_the_others_of_its_locations(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=5)
    ended: list[int] = []

    async def flush(scope: trio.CancelScope) -> None:
        with scope:
            ended.append((await batcher.flush()).delivered)

    async with watched_batcher(exporter, BatchPolicy(max_delay=1000), shutdown_timeout=100) as batcher:
        for number in range(5):
            batcher.add_span_nowait(f"location {number}", make_span())
        scopes = [trio.CancelScope() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(flush, scope)
            await wait_all_tasks_blocked()
            for scope in scopes[1:3]:
                scope.cancel()
    assert ended == [5, 5]


async def test_a_flush_over_many_locations_reports_all_spans_that_were_pending_when_it_was_called(
    autojump_clock: MockClock,
) -> None:
    policy, limits = BatchPolicy(max_spans=2, max_delay=1000), Limits(max_locations=2000)
    names = [f"{number}" for number in range(2000)]
    exporter = InMemoryExporter(lambda batch: Refused("no"))
    async with SpanBatcher(exporter, batch=policy, limits=limits, on_loss=lambda loss: None) as batcher:
        for name in names:
            batcher.add_span_nowait(name, make_span())
        await trio.sleep(1)
        # The last locations are exported while the flush has come to the first ones.
        for name in reversed(names):
            batcher.add_span_nowait(name, make_span())
        report = await batcher.flush()
        assert (report.rejected, len(report.locations)) == (4000, 2000)


@pytest.mark.parametrize(("locations", "batches"), [(1000, 1), (100, 20)])
async def test_other_tasks_run_while_thousands_of_batches_are_handed_back_at_the_deadline(
    autojump_clock: MockClock, locations: int, batches: int
) -> None:
    handed_back = [0]

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            handed_back.append(0)

    def on_loss(loss: Loss) -> None:
        handed_back[-1] += loss.count

    exporter = InMemoryExporter(lambda batch: Hang())
    batch, limits = BatchPolicy(max_spans=1), Limits(max_locations=1000)
    async with SpanBatcher(exporter, batch=batch, limits=limits, on_loss=on_loss, shutdown_timeout=5) as batcher:
        for number in range(locations * batches):
            batcher.add_span_nowait(f"{number % locations}", make_span())
        trio.lowlevel.add_instrument(Steps())
    assert sum(handed_back) == batcher.statistics().undelivered == locations * batches
    assert max(handed_back) < 64 + batches
