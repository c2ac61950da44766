"""The in-memory exporter keeps batches and follows its script."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
import trio.testing

from trio_spanbatch._exporter import Delivered, ExportResult, Refused, SpanExporter, TryLater
from trio_spanbatch._spans.batch import EncodedSpan, SpanBatch
from trio_spanbatch.testing import Hang, InMemoryExporter


def batch_of(count: int, location: str = "here") -> SpanBatch:
    return SpanBatch(location, tuple(EncodedSpan(b"") for _ in range(count)))


async def test_everything_is_delivered_by_default_and_the_same_objects_are_kept() -> None:
    exporter: SpanExporter = InMemoryExporter()
    assert isinstance(exporter, InMemoryExporter)
    first, second, elsewhere = batch_of(2), batch_of(1), batch_of(3, "there")
    for batch in (first, elsewhere, second):
        assert await exporter.export(batch) == Delivered()
    assert exporter.batches == [first, elsewhere, second]
    assert exporter.delivered == {"here": [*first.spans, *second.spans], "there": [*elsewhere.spans]}
    assert exporter.rejected == {}


async def test_every_export_and_every_close_checkpoints() -> None:
    exporter = InMemoryExporter([Delivered(), TryLater("later"), ValueError("bug")])
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await exporter.export(batch_of(1))
    with trio.testing.assert_checkpoints(), pytest.raises(ValueError, match="bug"):
        await exporter.export(batch_of(1))
    with trio.testing.assert_checkpoints():
        await exporter.aclose()
    with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
        await exporter.export(batch_of(1))
    assert len(exporter.batches) == 3


async def test_steps_are_used_one_for_each_export_and_then_everything_is_delivered() -> None:
    error = RuntimeError("the exporter has a bug")
    steps: list[ExportResult | Exception] = [TryLater("busy", after=3.0), Refused("no", 400, isolate=True), error]
    exporter = InMemoryExporter(steps)
    assert await exporter.export(batch_of(1)) is steps[0]
    assert await exporter.export(batch_of(1)) is steps[1]
    with pytest.raises(RuntimeError) as caught:
        await exporter.export(batch_of(1))
    assert caught.value is error
    assert exporter.delivered == {}
    assert await exporter.export(batch_of(1)) == Delivered()


async def test_an_endless_iterable_of_steps_never_ends() -> None:
    exporter = InMemoryExporter(itertools.cycle([Delivered(), TryLater("every other time")]))
    results = [await exporter.export(batch_of(1)) for _ in range(5)]
    assert [isinstance(result, Delivered) for result in results] == [True, False, True, False, True]


async def test_a_function_decides_for_each_batch_and_may_raise() -> None:
    def decide(batch: SpanBatch) -> ExportResult:
        if batch.location == "broken":
            raise OSError("no such place")
        return Refused("never") if len(batch.spans) > 1 else Delivered()

    exporter = InMemoryExporter(decide)
    assert await exporter.export(batch_of(1)) == Delivered()
    assert await exporter.export(batch_of(2)) == Refused("never")
    with pytest.raises(OSError, match="no such place"):
        await exporter.export(batch_of(1, "broken"))
    assert exporter.active == 0


@pytest.mark.parametrize(("rejected", "taken"), [(0, 5), (2, 3), (5, 0), (9, 0), (-1, 5)])
async def test_a_partial_success_leaves_out_the_last_spans(rejected: int, taken: int) -> None:
    exporter = InMemoryExporter([Delivered(rejected=rejected)])
    batch = batch_of(5)
    await exporter.export(batch)
    assert exporter.delivered["here"] == list(batch.spans[:taken])
    assert exporter.rejected.get("here", []) == list(batch.spans[taken:])


async def test_an_invalid_step_is_a_type_error() -> None:
    steps = ["delivered"]
    with pytest.raises(TypeError, match=r"results\[0\] is 'delivered'; it must be an ExportResult"):
        InMemoryExporter(steps)  # type: ignore[arg-type]  # the mistake under test
    for exporter in (InMemoryExporter(iter(steps)), InMemoryExporter(lambda batch: "delivered")):  # type: ignore[arg-type]  # the same
        with pytest.raises(TypeError, match="an answer of results is 'delivered'"):
            await exporter.export(batch_of(1))


async def test_spans_are_acknowledged_after_the_delay(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter(delay=2.5)
    start = trio.current_time()
    with trio.move_on_after(2):
        await exporter.export(batch_of(1))
    assert exporter.delivered == {}
    await exporter.export(batch_of(1))
    assert trio.current_time() == start + 4.5
    assert len(exporter.delivered["here"]) == 1


async def test_a_delay_can_depend_on_the_batch_and_can_be_infinite(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter(delay=lambda batch: math.inf if batch.location == "slow" else 1.0)
    start = trio.current_time()
    await exporter.export(batch_of(1))
    assert trio.current_time() == start + 1
    with trio.move_on_after(10_000) as scope:
        await exporter.export(batch_of(1, "slow"))
    assert scope.cancelled_caught
    assert "slow" not in exporter.delivered


async def test_a_hanging_export_ends_only_when_it_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter([Hang()])
    with trio.move_on_after(10_000) as scope:
        await exporter.export(batch_of(1))
    assert scope.cancelled_caught
    assert exporter.active == 0
    assert len(exporter.batches) == 1


async def test_exports_in_progress_are_counted_in_all_and_by_location(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter(delay=1.0)
    async with trio.open_nursery() as nursery:
        for location in ("a", "a", "b"):
            nursery.start_soon(exporter.export, batch_of(1, location))
        await trio.testing.wait_all_tasks_blocked()
        assert exporter.active == 3
    await exporter.export(batch_of(1, "b"))
    assert exporter.active == 0
    assert exporter.max_active == 3
    assert exporter.max_active_by_location == {"a": 2, "b": 1}


async def test_steps_are_taken_in_the_order_of_the_calls_not_of_the_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    delays = iter([3.0, 1.0])
    exporter = InMemoryExporter([TryLater("first"), TryLater("second")], delay=lambda _batch: next(delays))
    ends: list[ExportResult] = []

    async def export(location: str) -> None:
        ends.append(await exporter.export(batch_of(1, location)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(export, "one")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(export, "two")
    assert [batch.location for batch in exporter.batches] == ["one", "two"]
    assert ends == [TryLater("second"), TryLater("first")]


async def test_closing_twice_is_allowed_and_a_cancelled_close_still_closes() -> None:
    exporter = InMemoryExporter()
    with trio.CancelScope() as scope:
        scope.cancel()
        await exporter.aclose()
    assert scope.cancelled_caught
    assert exporter.closed
    await exporter.aclose()
