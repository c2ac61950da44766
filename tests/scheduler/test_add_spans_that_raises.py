"""Each exception that leaves ``add_spans`` has the number of spans accepted before."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_span, make_spans
from tests.support.seeded_trio import run_seeded
from trio_spanbatch import (
    BatchPolicy,
    InvalidLocationError,
    InvalidSpanError,
    Limits,
    Span,
    SpanBatcher,
    TooManyLocationsError,
)
from trio_spanbatch._errors import tell_accepted
from trio_spanbatch._scheduler.admission import Admission
from trio_spanbatch.testing import InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)


def spans_and_then(count: int, error: BaseException) -> Iterator[Span]:
    yield from make_spans(count)
    raise error


class OwnMeaning(Exception):
    """Has an attribute ``accepted`` with another meaning."""

    def __init__(self) -> None:
        super().__init__("negotiation failed")
        self.accepted = 406


class NoSetter(Exception):
    @property
    def accepted(self) -> int:
        return 406


class RaisesWhenAsked(Exception):
    @property
    def accepted(self) -> int:
        raise LookupError


class ForgetsAttributes(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        """Forget it."""


class TakesNothing(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def add_note(self, note: str, /) -> None:
        raise TypeError(note)


class NotesOfItsOwn(TakesNothing):
    __notes__ = ("of another kind",)  # type: ignore[assignment]  # that is the point


@attrs.frozen
class Frozen(Exception):
    why: str = "frozen"


@dataclasses.dataclass(frozen=True)
class FrozenDataclass(Exception):
    why: str = "frozen"


@pytest.mark.parametrize(
    "error",
    [
        KeyError("of the iterator"),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        MemoryError(),
        trio.WouldBlock(),
        ExceptionGroup("several", [KeyError(), ValueError()]),
        InvalidLocationError("of a call inside of the iterator"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("count", [0, 3, 70])
async def test_an_exception_from_the_callers_iterator_says_how_many_were_accepted(error: Any, count: int) -> None:
    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        with pytest.raises(type(error)) as caught:
            await batcher.add_spans("a", spans_and_then(count, error))
        assert caught.value is error
        assert error.accepted == batcher.statistics().accepted == count


async def test_the_error_for_a_non_iterable_says_that_no_span_was_accepted() -> None:
    not_iterable: Any = None
    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        with pytest.raises(TypeError) as caught:
            await batcher.add_spans("a", not_iterable)
    assert getattr(caught.value, "accepted", None) == 0


async def test_a_stop_iteration_that_python_turns_into_a_runtime_error_says_how_many_were_accepted() -> None:
    class StopsAtOnce:
        def __iter__(self) -> Iterator[Span]:
            raise StopIteration

    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        with pytest.raises(RuntimeError) as caught:
            await batcher.add_spans("a", StopsAtOnce())
    assert getattr(caught.value, "accepted", None) == 0


async def test_a_bad_span_says_how_many_were_accepted_before_it() -> None:
    bad: Any = object()
    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        with pytest.raises(InvalidSpanError) as caught:
            await batcher.add_spans("a", [*make_spans(2), bad])
        assert caught.value.accepted == 2
        with pytest.raises(InvalidSpanError) as caught:
            await batcher.add_span("a", bad)
        assert caught.value.accepted == 0


async def test_an_exception_from_the_policy_function_says_that_no_span_was_accepted() -> None:
    def policy(location: str) -> BatchPolicy:
        raise LookupError(location)

    async with SpanBatcher(InMemoryExporter(), batch=policy) as batcher:
        with pytest.raises(LookupError) as caught:
            await batcher.add_spans("a", make_spans(2))
        assert getattr(caught.value, "accepted", None) == batcher.statistics().accepted == 0


@pytest.mark.parametrize("count", [0, 2])
async def test_the_error_for_a_location_that_the_exporter_rejects_says_that_no_span_was_accepted(count: int) -> None:
    class Choosy(InMemoryExporter):
        def check_location(self, location: str) -> None:
            raise InvalidLocationError("not here")

    async with SpanBatcher(Choosy(), batch=NEVER) as batcher:
        with pytest.raises(InvalidLocationError) as caught:
            await batcher.add_spans("a", make_spans(count))
    assert caught.value.accepted == 0


async def test_the_error_for_too_many_locations_says_that_no_span_was_accepted() -> None:
    async with SpanBatcher(InMemoryExporter(), batch=NEVER, limits=Limits(max_locations=1)) as batcher:
        batcher.add_span_nowait("b", make_span())
        with pytest.raises(TooManyLocationsError) as caught:
            await batcher.add_spans("a", make_spans(2))
    assert caught.value.accepted == 0


async def add_until_the_place_is_lost() -> tuple[int, int] | None:
    """Return the reported and the real number of accepted spans if another location replaced this one."""

    def accepted() -> int:
        counts = batcher.statistics().locations.get("a")
        return 0 if counts is None else counts.accepted

    async def take_the_place() -> None:
        while True:
            with suppress(TooManyLocationsError, trio.WouldBlock):
                batcher.add_span_nowait("b", make_span())
            await trio.lowlevel.checkpoint()

    reported: tuple[int, int] | None = None
    batch = BatchPolicy(max_spans=1)
    limits = Limits(max_locations=1, max_queued_spans=1)
    async with SpanBatcher(InMemoryExporter(), batch=batch, limits=limits) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(take_the_place)
        try:
            await batcher.add_spans("a", make_spans(200))
        except TooManyLocationsError as error:
            reported = error.accepted, accepted()
        finally:
            nursery.cancel_scope.cancel()
    return reported


def test_a_location_keeps_its_place_between_two_spans_of_add_spans() -> None:
    reported = [run_seeded(seed, add_until_the_place_is_lost) for seed in range(20)]
    assert all(pair is None or pair == (0, 0) for pair in reported)


async def test_a_batcher_that_is_closed_meanwhile_says_how_many_were_accepted() -> None:
    limits = Limits(max_queued_spans=2)
    reported: list[object] = []

    async def add() -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await batcher.add_spans("a", make_spans(5))
        reported.append(getattr(caught.value, "accepted", None))

    async with trio.open_nursery() as nursery:
        exporter = InMemoryExporter(delay=math.inf)
        async with SpanBatcher(exporter, batch=NEVER, limits=limits, shutdown_timeout=0) as batcher:
            nursery.start_soon(add)
            await trio.testing.wait_all_tasks_blocked()
    assert reported == [batcher.statistics().accepted]
    assert reported[0] != 0


@pytest.mark.parametrize("count", [0, 1, 64])
async def test_a_cancelled_add_spans_says_how_many_were_accepted(count: int, autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=math.inf)
    batch = BatchPolicy(max_spans=1)
    limits = Limits(max_queued_spans=64)
    async with SpanBatcher(exporter, batch=batch, limits=limits, shutdown_timeout=1) as batcher:
        batcher.add_spans_nowait("a", make_spans(64 - count))
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + 1 if count else -math.inf
            try:
                await batcher.add_spans("a", make_spans(200))
            except trio.Cancelled as cancelled:
                assert getattr(cancelled, "accepted", None) == batcher.statistics().accepted - (64 - count)
                raise
        assert scope.cancelled_caught


async def test_the_error_for_add_spans_outside_of_the_batcher_says_that_no_span_was_accepted() -> None:
    with pytest.raises(RuntimeError) as caught:
        await SpanBatcher(InMemoryExporter()).add_spans("a", make_spans(2))
    assert getattr(caught.value, "accepted", None) == 0


@pytest.mark.parametrize("place", ["the beginning", "the end"])
def test_a_ctrl_c_while_a_span_is_accepted_counts_that_span(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Admission._store
    calls = 0

    def store_and_press(self: Admission, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 and place == "the beginning":
            signal.raise_signal(signal.SIGINT)
        store(self, *args)
        if calls == 3 and place == "the end":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Admission, "_store", store_and_press)
    reported: list[tuple[object, int]] = []

    async def main() -> None:
        async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
            try:
                await batcher.add_spans("a", make_spans(200))
            except KeyboardInterrupt as interrupt:
                reported.append((getattr(interrupt, "accepted", None), batcher.statistics().accepted))
        assert_conserved(batcher.statistics())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(reported) == 1
    assert reported[0][0] == reported[0][1] >= 3


# -- exceptions that do not take an attribute -----------------------------------------------------------------------


async def raised_after(count: int, error: Exception) -> Exception:
    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        with pytest.raises(type(error)) as caught:
            await batcher.add_spans("a", spans_and_then(count, error))
    return caught.value


@pytest.mark.parametrize("kind", [OwnMeaning, NoSetter, RaisesWhenAsked, ForgetsAttributes])
@pytest.mark.parametrize(("count", "said"), [(0, "0 spans were"), (1, "1 span was"), (3, "3 spans were")])
async def test_an_exception_that_takes_no_attribute_gets_a_note(
    kind: Callable[[], Exception], count: int, said: str
) -> None:
    error = kind()
    before = dict(vars(error))
    assert await raised_after(count, error) is error
    assert {name: value for name, value in vars(error).items() if name != "__notes__"} == before
    assert error.__notes__ == [f"SpanBatcher.add_spans: {said} accepted before"]


@pytest.mark.parametrize("kind", [TakesNothing, Frozen, FrozenDataclass])
async def test_an_exception_that_refuses_attributes_has_a_note_all_the_same(kind: Callable[[], Exception]) -> None:
    error = kind()
    for count in (3, 1):
        assert await raised_after(count, error) is error
    assert not hasattr(error, "accepted")
    assert error.__notes__ == ["SpanBatcher.add_spans: 1 span was accepted before"]


async def test_an_exception_that_accepts_neither_propagates_unchanged() -> None:
    error = NotesOfItsOwn()
    assert await raised_after(3, error) is error
    assert not hasattr(error, "accepted")
    assert vars(error) == {}


@pytest.mark.parametrize("kind", [KeyError, OwnMeaning])
async def test_an_exception_that_is_raised_again_has_the_number_of_the_last_call(
    kind: Callable[[], Exception],
) -> None:
    error = kind()
    error.add_note("of the program itself")
    await raised_after(3, error)
    await raised_after(5, error)
    if isinstance(error, KeyError):
        assert getattr(error, "accepted", None) == 5
        assert error.__notes__ == ["of the program itself"]
    else:
        assert error.__notes__ == ["of the program itself", "SpanBatcher.add_spans: 5 spans were accepted before"]


def test_an_exception_with_a_number_can_be_copied_and_pickled() -> None:
    for error in (KeyError("x"), InvalidSpanError("x"), NoSetter("x")):
        tell_accepted(error, 3)
        for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert getattr(again, "accepted", None) == getattr(error, "accepted", None)
            tell_accepted(again, 5)
            assert getattr(again, "accepted", None) == (406 if isinstance(error, NoSetter) else 5)
