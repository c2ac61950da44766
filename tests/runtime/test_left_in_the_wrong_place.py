"""A batcher that is left inside a scope opened after it, and an exporter that leaves a nursery open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_span, watched_batcher
from trio_spanbatch import BatchPolicy, ExportResult, Refused, SpanBatch, SpanBatcher
from trio_spanbatch.testing import InMemoryExporter

ONE = BatchPolicy(max_spans=1)


@asynccontextmanager
async def scope() -> AsyncIterator[None]:
    with trio.CancelScope():
        await trio.lowlevel.checkpoint()
        yield


@asynccontextmanager
async def cancelled_scope() -> AsyncIterator[None]:
    with trio.CancelScope() as scope:
        await trio.lowlevel.checkpoint()
        scope.cancel()
        yield


Inside = Callable[[], AbstractAsyncContextManager[object]]
INSIDE: list[Inside] = [scope, cancelled_scope, trio.open_nursery, lambda: SpanBatcher(InMemoryExporter())]


async def leave_inside(inside: Inside, batcher: SpanBatcher, error: Exception | None) -> list[Exception]:
    """Leave ``batcher`` inside a scope that is entered after it. Return the exception."""
    raised: list[Exception] = []

    async def use() -> None:
        await batcher.__aenter__()
        batcher.add_span_nowait("a", make_span())
        what = inside()
        await what.__aenter__()
        try:
            await batcher.__aexit__(None if error is None else type(error), error, None)
        except Exception as exc:
            raised.append(exc)
        await what.__aexit__(None, None, None)

    # In a separate task: trio complains in several places, and again when the task ends.
    with suppress(ExceptionGroup):
        async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # for a separate task
            nursery.start_soon(use)
    return raised


@pytest.mark.parametrize("inside", INSIDE)
async def test_leaving_inside_a_scope_that_was_entered_later_accounts_for_all_spans_and_raises_an_explanation(
    inside: Inside, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = SpanBatcher(InMemoryExporter(lambda batch: Refused("no")), batch=ONE)
    (raised,) = await leave_inside(inside, batcher, None)
    assert isinstance(raised, RuntimeError)
    assert "opened after it; leave in the reverse order" in str(raised)
    statistics = batcher.statistics()
    assert_conserved(statistics)
    assert statistics.rejected == 1
    assert "1 of 1 span was rejected" in caplog.text
    with pytest.raises(RuntimeError, match="left already"):
        await batcher.__aexit__(None, None, None)


@pytest.mark.parametrize("inside", INSIDE)
async def test_the_bodys_exception_leaves_unchanged_with_a_note_about_the_wrong_place(
    inside: Inside, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("of the body")
    batcher = SpanBatcher(InMemoryExporter(), batch=ONE)
    # Like any `__aexit__`, it returns to let the exception propagate.
    assert await leave_inside(inside, batcher, error) == []
    assert any("leaving it failed" in note for note in error.__notes__)
    assert "opened after it; leave in the reverse order" in caplog.text
    assert batcher.statistics().delivered == 1


# -- nurseries that an exporter leaves open ----------------------------------------------------------------------------


class LeavesOpen(InMemoryExporter):
    """Opens a nursery with a task that never ends, and then does not close it."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self._then = then
        self.tasks_ended = 0

    async def _work(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.tasks_ended += 1

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._work)
        await trio.sleep(1)
        self._then()
        return await super().export(batch)


def exits() -> None:
    raise SystemExit(3)


async def test_an_exit_of_an_exporter_that_left_a_nursery_open_still_propagates(autojump_clock: MockClock) -> None:
    exporter = LeavesOpen(exits)
    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(exporter, ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(5)
    assert caught.value.code == 3
    assert exporter.tasks_ended == 1
    assert batcher.statistics().undelivered == 1


async def test_an_exit_of_an_exporter_that_left_a_scope_open_still_propagates(autojump_clock: MockClock) -> None:
    class LeavesAScopeOpen(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            self.scope = trio.CancelScope().__enter__()
            await trio.sleep(1)
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(LeavesAScopeOpen(), ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(5)
    assert caught.value.code == 3
    assert batcher.undelivered[0].reason == "the exporter raised SystemExit"


async def test_tasks_in_a_nursery_that_an_exporter_left_open_end_with_the_delivery(autojump_clock: MockClock) -> None:
    exporter = LeavesOpen(lambda: None)
    with pytest.raises(RuntimeError, match="Nursery stack corrupted"):
        async with watched_batcher(exporter, ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(5)
            assert exporter.tasks_ended == 1
            with pytest.raises(trio.ClosedResourceError):
                batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().undelivered == 1


async def test_the_drain_ends_tasks_in_a_nursery_that_aclose_left_open(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class LeavesOpenAsItCloses(LeavesOpen):
        async def aclose(self) -> None:
            await super().export(SpanBatch("a", ()))

    exporter = LeavesOpenAsItCloses(lambda: None)
    async with watched_batcher(exporter, ONE):
        pass
    assert exporter.tasks_ended == 1
    assert "closing the exporter failed with RuntimeError" in caplog.text
