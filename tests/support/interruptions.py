"""Interrupt a call at each place: at each depth of the stack, each line, and each call.

A `Scene` is a batcher in some state and a call of it. A `Run` interrupts the call once; then the program continues, and
all counts are checked.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import attrs
import trio
from trio.testing import MockClock

import trio_spanbatch
from tests.support.batchers import assert_conserved, span_ids
from tests.support.exporters import encoded_span
from trio_spanbatch import BatchPolicy, Delivered, EncodedSpan, Limits, SpanBatch, SpanBatcher
from trio_spanbatch._spans.batch import SpanHeaders

__all__ = [
    "FOLLOW_UPS",
    "PACKAGE",
    "SCENES",
    "TRIO",
    "AtCall",
    "AtLine",
    "Interrupted",
    "Program",
    "Run",
    "Scene",
    "called",
    "near_stack_limit",
    "near_stack_limit_async",
    "sweep",
]

PACKAGE = str(Path(trio_spanbatch.__file__).parent)
TRIO = str(Path(trio.__file__).parent)


class Interrupted(Exception):
    """Raised by a signal handler."""


# -- places --------------------------------------------------------------------------------------------------------


def near_stack_limit(frames_left: int, act: Callable[[], object]) -> None:
    """Call ``act`` when only ``frames_left`` frames are left below the recursion limit."""
    raised: list[BaseException] = []

    def down() -> int:
        try:
            above = down() + 1
        except RecursionError:
            above = 0
        if above == frames_left:
            try:
                act()
            except BaseException as exc:  # noqa: ASYNC103  # it is raised below
                raised.append(exc)
        return above

    down()
    if raised:
        raise raised[0]


async def near_stack_limit_async(frames_left: int, act: Callable[[], Awaitable[object]]) -> None:
    """Await ``act`` when only ``frames_left`` frames are left below the recursion limit."""
    raised: list[BaseException] = []

    async def down() -> int:
        try:
            above = await down() + 1
        except RecursionError:
            above = 0
        if above == frames_left:
            try:
                await act()
            except BaseException as exc:  # noqa: ASYNC103  # it is raised below
                raised.append(exc)
        return above

    await down()
    if raised:
        raise raised[0]


class AtLine:
    """Calls a function at the ``number``-th line that this task executes in some files. The function may raise.

    Attributes:
        seen: How many lines were executed.
    """

    def __init__(self, number: int, function: Callable[[], object], *folders: str) -> None:
        self.seen = 0
        self._number = number
        self._function = function
        self._folders = folders or (PACKAGE,)
        self._before: Any = None

    def __enter__(self) -> Self:
        self._task = _task()
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._folders) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and _task() is self._task:
            self.seen += 1
            if self.seen == self._number:
                self._function()
        return self._line


class AtCall:
    """Calls a function where the interpreter runs signal handlers: before or after the ``number``-th call.

    Attributes:
        seen: How many calls and returns there were.
    """

    def __init__(self, number: int, function: Callable[[], object]) -> None:
        self.seen = 0
        self._number = number
        self._function = function
        self._before: Any = None

    def __enter__(self) -> Self:
        self._task = _task()
        self._before = sys.getprofile()
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if _task() is not self._task or not frame.f_code.co_filename.startswith((PACKAGE, TRIO)):
            return
        if event == "call" or event == "c_return":
            self.seen += 1
            if self.seen == self._number:
                self._function()


def _task() -> trio.lowlevel.Task | None:
    try:
        return trio.lowlevel.current_task()
    except RuntimeError:
        return None  # trio's own step


# -- scenes --------------------------------------------------------------------------------------------------------

SMALL_BATCHES = BatchPolicy(max_spans=3, max_delay=1000)
LIMITS = Limits(max_queued_spans=100)
# Most spans have this name. Spans with much shorter or longer ones take a different path in `Admission.try_admit`.
_NAME = "a name of a span that is not short" * 5
OTHER_HEADERS = SpanHeaders(b"\x0a\x02\x0a\x00", b"")


class CheckingExporter:
    """Takes every batch, and checks its size."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.is_down = False

    async def export(self, batch: SpanBatch) -> Delivered:
        assert batch.size == len(batch.to_request())
        if self.is_down:
            await trio.sleep(10)
        await trio.lowlevel.checkpoint()
        self.ids += span_ids(batch.spans)
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Program:
    """A batcher, and which spans a program has added to it.

    Attributes:
        added: The ids of spans for which the call that adds them has returned.
        tried: The ids of spans for which that call has raised, or has not returned yet.
    """

    def __init__(self, limits: Limits = LIMITS, policy: BatchPolicy = SMALL_BATCHES) -> None:
        self.exporter = CheckingExporter()
        self._limits = limits
        self.batcher = SpanBatcher(self.exporter, batch=policy, limits=limits, shutdown_timeout=math.inf)
        self.added: set[int] = set()
        self.tried: set[int] = set()
        self._numbers = itertools.count(1)

    def span(self, headers: SpanHeaders | None = None, name: str = _NAME) -> tuple[int, EncodedSpan]:
        """Return a new span and its id. A signal handler may call this in the middle of a call."""
        number = next(self._numbers)
        span = encoded_span(number, name)
        return number, span if headers is None else EncodedSpan(span.payload, headers)

    def add(self, location: str = "a", headers: SpanHeaders | None = None, name: str = _NAME) -> None:
        number, span = self.span(headers, name)
        with self._trying(number):
            self.batcher.add_span_nowait(location, span)

    def add_many(self, count: int, location: str = "a") -> None:
        numbers, spans = zip(*(self.span() for _ in range(count)), strict=True)
        with self._trying(*numbers):
            self.batcher.add_spans_nowait(location, spans)

    async def add_span(self, location: str = "a") -> None:
        number, span = self.span()
        with self._trying(number):
            await self.batcher.add_span(location, span)

    async def add_spans(self, count: int, location: str = "a") -> None:
        numbers, spans = zip(*(self.span() for _ in range(count)), strict=True)
        with self._trying(*numbers):
            await self.batcher.add_spans(location, spans)

    @contextmanager
    def _trying(self, *numbers: int) -> Iterator[None]:
        self.tried.update(numbers)
        yield
        self.tried.difference_update(numbers)
        self.added.update(numbers)
        assert self.batcher._scheduler.ledger.total.pending_bytes <= self._limits.max_pending_bytes

    async def flush(self) -> None:
        await self.batcher.flush()

    def statistics(self) -> None:
        assert_conserved(self.batcher.statistics())


@attrs.frozen
class Scene:
    """A state of a batcher, and a call.

    Attributes:
        name: A description of the call and the state.
        prepare: Brings the batcher into the state.
        act: The call.
        program: Creates the program with its batcher.
    """

    name: str
    prepare: Callable[[Program], Awaitable[object]]
    act: Callable[[Program], Any]
    program: Callable[[], Program] = Program

    @property
    def is_async(self) -> bool:
        code: CodeType = self.act.__code__
        return bool(code.co_flags & 0x80)


async def _nothing(program: Program) -> None:
    await trio.lowlevel.checkpoint()


async def _one(program: Program) -> None:
    program.add()
    await trio.sleep(1)


async def _two(program: Program) -> None:
    program.add_many(2)
    await trio.sleep(1)


async def _idle(program: Program) -> None:
    program.add()
    await program.batcher.flush()
    await trio.sleep(1)


async def _all_idle(program: Program) -> None:
    for location in "abcde":
        program.add(location)
    await program.batcher.flush()
    await trio.sleep(1)


async def _full(program: Program) -> None:
    program.exporter.is_down = True
    program.add()
    await trio.testing.wait_all_tasks_blocked()
    while True:
        try:
            program.add()
        except trio.WouldBlock:
            break
    program.exporter.is_down = False
    await trio.testing.wait_all_tasks_blocked()


async def _several(program: Program) -> None:
    for location in ("a", "b", "c"):
        program.add(location)
    await trio.sleep(1)


async def _in_flight(program: Program) -> None:
    program.exporter.is_down = True
    program.add_many(3)
    await trio.sleep(1)
    program.exporter.is_down = False
    program.add()


async def _add_span(program: Program) -> None:
    await program.add_span()


async def _add_spans(program: Program) -> None:
    await program.add_spans(2)


async def _flush(program: Program) -> None:
    await program.flush()


async def _flush_one(program: Program) -> None:
    await program.batcher.flush("a")


def _small_queue() -> Program:
    return Program(Limits(max_queued_spans=2, max_exports=2, max_exports_per_location=1))


def _small_byte_budget() -> Program:
    size = encoded_span(1, _NAME).size
    return Program(Limits(max_pending_bytes=4 * size, max_pending_bytes_per_location=4 * size))


def _few_locations() -> Program:
    return Program(Limits(max_queued_spans=100, max_locations=5))


SCENES = (
    Scene("an add", _one, lambda program: program.add()),
    Scene("an add of other headers", _one, lambda program: program.add(headers=OTHER_HEADERS)),
    Scene("an add that fills a batch", _two, lambda program: program.add()),
    Scene("an add to a new location", _nothing, lambda program: program.add()),
    Scene("an add in place of an idle location", _all_idle, lambda program: program.add("new"), _few_locations),
    Scene("an add to an idle location", _idle, lambda program: program.add()),
    Scene("an add while a batch is in flight", _in_flight, lambda program: program.add()),
    Scene("an add to the last space of a queue", _one, lambda program: program.add(), _small_queue),
    Scene(
        "add_spans_nowait to the last spaces of a queue", _nothing, lambda program: program.add_many(2), _small_queue
    ),
    Scene("add_span to the last space of a queue", _one, _add_span, _small_queue),
    Scene("an add of a short span", _one, lambda program: program.add(name="short")),
    Scene("an add to a full location", _full, lambda program: program.add(), _small_queue),
    Scene("an add that exceeds the byte budget", _full, lambda program: program.add(), _small_byte_budget),
    Scene("add_spans_nowait", _two, lambda program: program.add_many(3)),
    Scene("add_spans_nowait to a new location", _nothing, lambda program: program.add_many(4)),
    Scene(
        "add_spans_nowait in place of an idle location",
        _all_idle,
        lambda program: program.add_many(3, "new"),
        _few_locations,
    ),
    Scene("add_spans_nowait to the last bytes", _nothing, lambda program: program.add_many(4), _small_byte_budget),
    Scene("add_span", _one, _add_span),
    Scene("add_span to a full location", _full, _add_span, _small_queue),
    Scene("add_span that waits for bytes", _full, _add_span, _small_byte_budget),
    Scene("add_spans", _one, _add_spans),
    Scene("flush", _several, _flush),
    Scene("flush of a location", _several, _flush_one),
    Scene("flush while a batch is in flight", _in_flight, _flush),
    Scene("statistics", _several, lambda program: program.statistics()),
)


# -- runs ----------------------------------------------------------------------------------------------------------


async def _count(program: Program) -> None:  # noqa: ASYNC124  # a scene's act may be async
    program.statistics()


async def _add_again(program: Program) -> None:
    await _tried(program.add)


async def _add_elsewhere(program: Program) -> None:
    await _tried(lambda: program.add("z"))


async def _add_some(program: Program) -> None:
    await _tried(lambda: program.add_many(2))


async def _let_the_driver(program: Program) -> None:
    await trio.sleep(0.5)


async def _tried(act: Callable[[], None]) -> None:
    try:
        act()
    except (trio.WouldBlock, trio_spanbatch.TooManyLocationsError):
        await trio.lowlevel.checkpoint()


# What happens first after the interruption.
FOLLOW_UPS = (_count, _add_again, _add_elsewhere, _add_some, _let_the_driver)


class Run:
    """A run of a scene whose call is interrupted once.

    Attributes:
        program: The program.
        raised: The type of what the call raised.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.program = scene.program()
        self.raised: type[BaseException] | None = None
        self._in_doubt: set[int] = set()

    def interrupt(
        self, interrupted: Callable[[Scene, Program], Awaitable[object]], then: Callable[[Program], Awaitable[None]]
    ) -> None:
        """Run the scene, with the call made by ``interrupted``, then ``then``, and check all counts."""
        trio.run(self._main, interrupted, then, clock=MockClock(autojump_threshold=0))

    async def _main(
        self, interrupted: Callable[[Scene, Program], Awaitable[object]], then: Callable[[Program], Awaitable[None]]
    ) -> None:
        program, batcher = self.program, self.program.batcher
        async with batcher:
            await self._scene.prepare(program)
            try:
                await interrupted(self._scene, program)
            except (RecursionError, Interrupted, trio.WouldBlock) as exc:
                self.raised = type(exc)
            self._in_doubt = set(program.tried)
            await then(program)
            self.check_now()
            accepted = batcher.statistics().accepted
            assert len(program.added) <= accepted <= len(program.added) + len(program.tried)
            # The program continues.
            await program.add_span("a")
            await program.add_span("y")
            self.check_now()
            with trio.fail_after(1000):
                report = await batcher.flush()
            assert report.rejected == report.undelivered == 0
            assert program.added <= set(program.exporter.ids)
            statistics = batcher.statistics()
            assert statistics.queued == statistics.in_flight == statistics.pending_bytes == 0
            assert statistics.accepted == statistics.delivered == len(program.exporter.ids)
            await trio.sleep(1)
        self.check_end()

    def check_now(self) -> None:
        """Check that the counts are conserved, and agree with the queues."""
        batcher = self.program.batcher
        assert_conserved(batcher.statistics())
        for location in batcher._live.values():
            account = location.account
            assert location.queue_out.statistics().current_buffer_used == account.queued
            opened = (
                0 if not location.has_queued or location.open.full_at == 0 else account.accepted - location.open.first
            )
            assert account.queued == sum(batch.end - batch.first for batch in location.full) + opened
        total = batcher.statistics()
        for name in ("accepted", "queued", "in_flight", "delivered", "pending_bytes"):
            assert getattr(total, name) == sum(getattr(one, name) for one in total.locations.values())

    def check_end(self) -> None:
        """Check that each accepted span was delivered once, and no other span."""
        program = self.program
        times = Counter(program.exporter.ids)
        assert set(times.values()) <= {1}, "a span was delivered twice"
        assert program.added <= set(times), "a span was lost"
        assert set(times) <= program.added | program.tried
        if not self._scene.is_async and "add_spans_nowait" in self._scene.name:
            in_doubt = [number in times for number in self._in_doubt]
            assert all(in_doubt) or not any(in_doubt), "a part of the spans was accepted"
        statistics = program.batcher.statistics()
        assert_conserved(statistics)
        assert statistics.accepted == statistics.delivered == len(times)
        assert statistics.pending_bytes == 0
        scheduler = program.batcher._scheduler
        assert scheduler.slots.free == scheduler.limits.max_exports
        assert not scheduler.locations
        gc.collect()  # the traceback of what was raised
        assert not program.batcher._runtime.flushes
        assert not program.batcher._runtime.adders


async def called(scene: Scene, program: Program) -> None:
    """Make the call of a scene."""
    result = scene.act(program)
    if scene.is_async:
        await result


def sweep(attempt: Callable[[int], bool], *, most: int = 5000) -> int:
    """Call ``attempt`` with 1, 2 and so on until it returns False. Return the number of calls that returned True."""
    for number in range(1, most):
        try:
            if not attempt(number):
                return number - 1
        except BaseException as error:
            error.add_note(f"at place {number}")
            raise
    raise AssertionError(f"there are more than {most} places")
