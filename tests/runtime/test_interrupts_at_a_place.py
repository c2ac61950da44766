"""Ctrl-C at one place of the code, as a SIGINT that the process sends to itself.

Trio raises a KeyboardInterrupt in the code that runs at that moment or, if that is protected, at the next checkpoint of
the main task, here the body. The signal always comes at the same step, so these runs repeat exactly, on the mock clock.
How whole programs end on a Ctrl-C is in `test_interrupts`.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_span, make_spans
from trio_spanbatch import BatchPolicy, ExportResult, Limits, Refused, SpanBatch, SpanBatcher, SpanBatcherStatistics
from trio_spanbatch._runtime.interrupts import InterruptWatch
from trio_spanbatch._runtime.supervisor import Supervisor
from trio_spanbatch._scheduler.admission import Admission
from trio_spanbatch._scheduler.ledger import Ledger
from trio_spanbatch.testing import Hang, InMemoryExporter

ONE = BatchPolicy(max_spans=1)
NEVER = BatchPolicy(max_delay=math.inf)
# How long a body sleeps until a Ctrl-C wakes it, in seconds of the mock clock.
LONG = 1000.0


class CtrlC:
    """Presses Ctrl-C when it is called for the first time."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, *_: object) -> None:
        if not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)

    def at_the_beginning_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper of a method that first presses Ctrl-C."""

        def press_and_do(*args: object) -> Any:
            self()
            return method(*args)

        return press_and_do

    def at_the_end_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper of a method that presses Ctrl-C just before it returns."""

        def do_and_press(*args: object) -> Any:
            result = method(*args)
            self()
            return result

        return do_and_press


class CheckingExporter(InMemoryExporter):
    """An exporter that checks locations by calling a function."""

    def __init__(self, check: Callable[[str], None]) -> None:
        super().__init__()
        self._check = check

    def check_location(self, location: str) -> None:
        self._check(location)


def run_until_interrupted(main: Callable[[], Awaitable[None]]) -> KeyboardInterrupt:
    """Run a program that a Ctrl-C ends. The KeyboardInterrupt is not in a group."""
    with pytest.raises(KeyboardInterrupt) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return caught.value


def statistics_at_rest(batcher: SpanBatcher) -> SpanBatcherStatistics:
    statistics = batcher.statistics()
    assert_conserved(statistics)
    assert statistics.queued == statistics.in_flight == 0
    return statistics


async def add_and_sleep(batcher: SpanBatcher) -> None:
    async with batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await trio.sleep(LONG)


# -- while spans are added -----------------------------------------------------------------------------------------


async def add_span_nowait(batcher: SpanBatcher) -> None:
    batcher.add_span_nowait("a", make_span())
    await trio.lowlevel.checkpoint()


async def add_spans_nowait(batcher: SpanBatcher) -> None:
    batcher.add_spans_nowait("a", make_spans(3))
    await trio.lowlevel.checkpoint()


async def add_span(batcher: SpanBatcher) -> None:
    await batcher.add_span("a", make_span())


async def add_spans(batcher: SpanBatcher) -> None:
    await batcher.add_spans("a", make_spans(1))


@pytest.mark.parametrize("add", [add_span_nowait, add_spans_nowait, add_span, add_spans])
@pytest.mark.parametrize("where", ["check_location", "batch", "Ledger.accept"])
def test_ctrl_c_while_a_span_is_accepted_is_raised_afterwards(
    where: str, add: Callable[[SpanBatcher], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctrl_c = CtrlC()

    def policy(_location: str) -> BatchPolicy:
        if where == "batch":
            ctrl_c()
        return NEVER

    if where == "Ledger.accept":
        # Not at its end: without protection, a span that is counted but not queued keeps its location busy forever.
        monkeypatch.setattr(Ledger, "accept", ctrl_c.at_the_beginning_of(Ledger.accept))
    exporter = CheckingExporter(ctrl_c) if where == "check_location" else InMemoryExporter()
    batcher = SpanBatcher(exporter, batch=policy)

    async def main() -> None:
        async with batcher:
            await add(batcher)
            await trio.sleep(LONG)

    run_until_interrupted(main)
    assert ctrl_c.pressed
    statistics = statistics_at_rest(batcher)
    assert statistics.accepted == statistics.delivered == (3 if add is add_spans_nowait else 1)


def test_ctrl_c_as_an_adder_begins_to_wait_accepts_none_of_its_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl_c = CtrlC()
    monkeypatch.setattr(Admission, "_serve", ctrl_c.at_the_end_of(Admission._serve))
    batcher = SpanBatcher(InMemoryExporter(delay=1), batch=NEVER, limits=Limits(max_queued_spans=1))

    async def main() -> None:
        async with batcher:
            # No other task runs in between, so the queue is full.
            batcher.add_span_nowait("a", make_span())
            await batcher.add_span("a", make_span())

    run_until_interrupted(main)
    assert ctrl_c.pressed
    statistics = statistics_at_rest(batcher)
    assert statistics.accepted == statistics.delivered == 1


# -- in the batcher's tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["seal", "settle"])
def test_ctrl_c_while_a_task_counts_has_no_effect_on_the_counts(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl_c = CtrlC()
    monkeypatch.setattr(Ledger, method, ctrl_c.at_the_end_of(getattr(Ledger, method)))
    batcher = SpanBatcher(InMemoryExporter(), batch=ONE)
    run_until_interrupted(partial(add_and_sleep, batcher))
    assert ctrl_c.pressed
    assert statistics_at_rest(batcher).delivered == 3


def test_ctrl_c_inside_export_interrupts_no_export(caplog: pytest.LogCaptureFixture) -> None:
    ctrl_c = CtrlC()

    class Exporter(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            ctrl_c()
            return await super().export(batch)

    batcher = SpanBatcher(Exporter(), batch=ONE)
    run_until_interrupted(partial(add_and_sleep, batcher))
    assert ctrl_c.pressed
    assert statistics_at_rest(batcher).delivered == 3
    assert caplog.records == []


def test_ctrl_c_inside_on_loss_is_not_taken_for_something_that_on_loss_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ctrl_c = CtrlC()
    batcher = SpanBatcher(InMemoryExporter(lambda batch: Refused("no")), batch=ONE, on_loss=ctrl_c)
    run_until_interrupted(partial(add_and_sleep, batcher))
    assert ctrl_c.pressed
    assert statistics_at_rest(batcher).rejected == 3
    assert "on_loss raised" not in caplog.text


def test_ctrl_c_inside_aclose_outside_of_the_drain_lets_it_end(caplog: pytest.LogCaptureFixture) -> None:
    ctrl_c = CtrlC()

    class Exporter(InMemoryExporter):
        closed_to_the_end = False

        async def export(self, batch: SpanBatch) -> ExportResult:
            # The supervisor ends, and the body continues.
            raise SystemExit(3)

        async def aclose(self) -> None:
            ctrl_c()
            await super().aclose()
            self.closed_to_the_end = True

    exporter = Exporter()
    batcher = SpanBatcher(exporter, batch=ONE)
    run_until_interrupted(partial(add_and_sleep, batcher))
    assert ctrl_c.pressed
    assert exporter.closed_to_the_end
    assert "closing the exporter failed" not in caplog.text
    assert statistics_at_rest(batcher).undelivered == 3


# -- while entering and leaving ------------------------------------------------------------------------------------


def test_ctrl_c_just_before_the_batcher_is_entered_is_raised_in_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl_c = CtrlC()
    open_ = Supervisor.open

    async def open_and_press(self: Supervisor) -> None:
        await open_(self)
        ctrl_c()

    monkeypatch.setattr(Supervisor, "open", open_and_press)
    batcher = SpanBatcher(InMemoryExporter(), batch=NEVER)
    run_until_interrupted(partial(add_and_sleep, batcher))
    assert ctrl_c.pressed
    assert statistics_at_rest(batcher).delivered == 3


def test_ctrl_c_just_before_the_drain_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl_c = CtrlC()
    monkeypatch.setattr(InterruptWatch, "add", ctrl_c.at_the_beginning_of(InterruptWatch.add))
    batcher = SpanBatcher(InMemoryExporter(delay=math.inf), shutdown_timeout=math.inf)

    async def main() -> None:
        async with batcher:
            batcher.add_spans_nowait("a", make_spans(3))

    run_until_interrupted(main)
    assert ctrl_c.pressed
    assert statistics_at_rest(batcher).undelivered == 3
    assert {loss.reason for loss in batcher.undelivered} == {"Ctrl-C during the drain"}


def test_ctrl_c_just_after_the_drain_does_not_interrupt_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ctrl_c = CtrlC()
    monkeypatch.setattr(InterruptWatch, "remove", ctrl_c.at_the_end_of(InterruptWatch.remove))
    batcher = SpanBatcher(InMemoryExporter(lambda batch: Refused("no")))

    async def main() -> None:
        async with batcher:
            batcher.add_spans_nowait("a", make_spans(3))

    run_until_interrupted(main)
    assert ctrl_c.pressed
    assert "3 of 3 spans were rejected (no: 3)" in caplog.text


# -- in the drain --------------------------------------------------------------------------------------------------


class PressesInExport(InMemoryExporter):
    """Every export hangs, and the first one presses Ctrl-C."""

    def __init__(self) -> None:
        super().__init__(lambda batch: Hang())
        self._ctrl_c = CtrlC()

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._ctrl_c()
        return await super().export(batch)


def test_ctrl_c_in_the_drain_is_raised_also_after_a_body_that_raised() -> None:
    batcher = SpanBatcher(PressesInExport(), batch=NEVER, shutdown_timeout=math.inf)
    error = ValueError("mine")

    async def main() -> None:
        async with batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            raise error

    interrupt = run_until_interrupted(main)
    assert interrupt.__context__ is error
    for left in (interrupt, error):
        assert "3 of 3 spans were handed back undelivered (Ctrl-C during the drain: 3)" in left.__notes__[0]
    assert statistics_at_rest(batcher).undelivered == 3


def test_ctrl_c_in_the_drain_is_raised_also_after_a_body_that_was_cancelled() -> None:
    batcher = SpanBatcher(PressesInExport(), batch=NEVER, shutdown_timeout=math.inf)

    async def main() -> None:
        with trio.move_on_after(1):
            await add_and_sleep(batcher)

    interrupt = run_until_interrupted(main)
    assert isinstance(interrupt.__context__, trio.Cancelled)
    assert statistics_at_rest(batcher).undelivered == 3


@pytest.mark.parametrize(("pressed_at", "left_at"), [(2.0, 3.0), (9.5, 10.0)])
def test_ctrl_c_leaves_the_exporter_one_second_to_close_or_its_remaining_time(
    pressed_at: float, left_at: float
) -> None:
    class Exporter(InMemoryExporter):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    batcher = SpanBatcher(Exporter(lambda batch: Hang()), batch=NEVER, shutdown_timeout=10)
    times: list[float] = []

    async def press() -> None:
        await trio.sleep(pressed_at)
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        # In a system task of trio, so that no nursery of the test wraps the KeyboardInterrupt.
        trio.lowlevel.spawn_system_task(press)
        try:
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))
        finally:
            times.append(trio.current_time())

    run_until_interrupted(main)
    assert times == [left_at]
    assert statistics_at_rest(batcher).undelivered == 3
