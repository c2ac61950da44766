"""A signal handler may raise, or add a span, at any place in a call of the batcher, and the counts stay right.

The places are chosen: each line, or each call and return. Other tests use real signals at random times.
"""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Self

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_spans
from tests.support.interruptions import (
    FOLLOW_UPS,
    PACKAGE,
    SCENES,
    TRIO,
    AtCall,
    AtLine,
    Interrupted,
    Program,
    Run,
    Scene,
    called,
    sweep,
)
from trio_spanbatch import Limits, SpanBatch, SpanBatcher, TooManyLocationsError
from trio_spanbatch.testing import InMemoryExporter

# The number of real signals in each test.
SIGNALS = 50


def named(scene: Scene) -> str:
    return scene.name.replace(" ", "-")


def run_interrupted(
    scene: Scene, number: int, at: Callable[[Callable[[], object]], AtLine | AtCall], then: Callable[[Program], object]
) -> bool:
    """Run a scene in which ``then`` is called at the ``number``-th place. Return whether there is such a place."""
    reached = False

    async def call(scene: Scene, program: Program) -> None:
        def there() -> None:
            nonlocal reached
            reached = True
            then(program)

        with at(there):
            await called(scene, program)
        await trio.lowlevel.checkpoint()

    Run(scene).interrupt(call, FOLLOW_UPS[number % len(FOLLOW_UPS)])
    return reached


def raise_interrupted(_: Program) -> None:
    raise Interrupted


def add(count: int, location: str) -> Callable[[Program], None]:
    def add_them(program: Program) -> None:
        with contextlib.suppress(trio.WouldBlock, TooManyLocationsError):
            if count == 1:
                program.add(location)
            else:
                program.add_many(count, location)

    return add_them


@pytest.mark.parametrize("scene", SCENES, ids=named)
def test_an_exception_of_a_signal_handler_at_any_line_leaves_the_counts_right(scene: Scene) -> None:
    def attempt(number: int) -> bool:
        return run_interrupted(scene, number, lambda there: AtLine(number, there), raise_interrupted)

    assert sweep(attempt) > 10


@pytest.mark.long
# In a call that waits, trio's own steps are among the lines, and an exception there ends the run.
@pytest.mark.parametrize("scene", [scene for scene in SCENES if not scene.is_async], ids=named)
def test_an_exception_of_a_signal_handler_at_any_line_of_trio_leaves_the_counts_right(scene: Scene) -> None:
    def attempt(number: int) -> bool:
        return run_interrupted(scene, number, lambda there: AtLine(number, there, PACKAGE, TRIO), raise_interrupted)

    # Finalize the garbage of other tests now. Otherwise trio's finalizers could run at a place that is counted.
    gc.collect()
    gc.disable()
    try:
        assert sweep(attempt) > 10
    finally:
        gc.enable()


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES, ids=named)
@pytest.mark.parametrize("location", ["a", "b"])
@pytest.mark.parametrize("count", [1, 2])
def test_spans_that_a_signal_handler_adds_at_any_call_are_counted_once(scene: Scene, count: int, location: str) -> None:
    def attempt(number: int) -> bool:
        return run_interrupted(scene, number, lambda there: AtCall(number, there), add(count, location))

    assert sweep(attempt) > 10


class Alarm:
    """Real signals at random times while a program adds spans. The handler calls ``act``."""

    def __init__(self, rng: random.Random, act: Callable[[], None]) -> None:
        self._rng = rng
        self._act = act
        self.is_on = False
        self.count = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def set(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-6, 300e-6))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.is_on:
            self.is_on = False
            self.count += 1
            self._act()


def _raise() -> None:
    raise Interrupted


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("does", ["raises", "adds"])
def test_real_signals_at_random_moments_leave_the_counts_right(seed: int, does: str) -> None:
    rng = random.Random(seed)
    program = Program(Limits(max_queued_spans=10, max_locations=4))

    async def main() -> None:
        with Alarm(rng, _raise if does == "raises" else lambda: add(1, "a")(program)) as alarm:
            async with program.batcher:
                while alarm.count < SIGNALS:
                    alarm.set()
                    for _ in range(30):
                        location = rng.choice("abcdef")
                        many = rng.randrange(10) == 0
                        try:
                            alarm.is_on = True
                            try:
                                if many:
                                    program.add_many(3, location)
                                else:
                                    program.add(location)
                            finally:
                                alarm.is_on = False
                        except (Interrupted, trio.WouldBlock, TooManyLocationsError):
                            pass
                    assert_conserved(program.batcher.statistics())
                    await program.batcher.flush()
                    assert program.batcher.statistics().pending_bytes == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))
    times = program.exporter.ids
    assert len(set(times)) == len(times), "a span was delivered twice"
    assert program.added <= set(times), "a span was lost"
    statistics = program.batcher.statistics()
    assert_conserved(statistics)
    assert statistics.accepted == statistics.delivered == len(times)


def test_the_drivers_steps_run_at_a_constant_stack_depth() -> None:
    """So recursion in the program does not affect them."""
    depths: set[int] = set()
    program = Program()
    step = program.batcher._scheduler.step

    def noted(now: float) -> bool:
        frame: FrameType | None = None
        depth, frame = 0, sys._getframe()
        while frame is not None:
            depth, frame = depth + 1, frame.f_back
        depths.add(depth)
        return step(now)

    program.batcher._scheduler.step = noted  # type: ignore[method-assign]  # to see where it is called

    async def deep(levels: int) -> None:
        if levels:
            await deep(levels - 1)
        else:
            program.add_many(5)
            await program.add_span("b")
            await program.flush()

    async def main() -> None:
        async with program.batcher:
            for levels in (0, 50, 300):
                await deep(levels)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(depths) == 1, depths


async def test_an_exception_in_a_step_of_the_driver_ends_the_batcher_and_all_flushes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in trio's own steps ends the run. What was taken out of a queue in this step may be lost."""

    def exit_by_signal(*args: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(SpanBatch, "sealed", exit_by_signal)
    with pytest.raises(SystemExit):
        async with SpanBatcher(InMemoryExporter(), shutdown_timeout=5) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            with (
                trio.move_on_after(10) as scope,
                pytest.raises(trio.ClosedResourceError, match="the batcher has failed"),
            ):
                await batcher.flush()
            has_ended = not scope.cancelled_caught
    assert has_ended
