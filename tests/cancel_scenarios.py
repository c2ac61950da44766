"""The scenarios that are run with a cancel after every one of their steps: small programs, and what their servers do.

Each is written once, for every `World`. What a script answers depends on the location and on its spans, not on the
order in which requests of several locations come, so that a cancel of one adder or flusher changes nothing for the
others (`Scenario.steady`; where it may, it says so). Spans are made first of all, so that their ids are the same in
every run. At most `MAX_STEPS` scheduling steps with an exporter in memory.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio
from cancel_world import Settings, Step, World

from trio_spanbatch import BatchPolicy, Delivered, Limits, Refused, RetryPolicy, TryLater
from trio_spanbatch.testing import Hang

__all__ = ["MAX_STEPS", "SCENARIOS", "TWICE", "Scenario"]

MAX_STEPS = 300

NEVER = BatchPolicy(max_spans=100, max_delay=1e6)
ONE = BatchPolicy(max_spans=1)
TWO = BatchPolicy(max_spans=2, max_delay=1)
QUICK_RETRY = RetryPolicy(initial=0.5, maximum=1)


@attrs.frozen
class Scenario:
    """A program and its server.

    Attributes:
        program: What happens in the body of the ``async with`` of the batcher.
        settings: What it happens in.
        steady: Whether spans have the same outcome when an adder or a flusher is cancelled that they are not of.
        tracebacks: Parts of log messages that come with a traceback here.
        forgets_locations: Whether there are more locations than are kept in the statistics.
    """

    program: Callable[[World], Awaitable[None]]
    settings: Settings = attrs.field(factory=Settings)
    steady: bool = True
    tracebacks: Sequence[str] = ()
    forgets_locations: bool = False

    @property
    def name(self) -> str:
        return self.program.__name__


# -- programs that end well ------------------------------------------------------------------------------------


async def entering(world: World) -> None:
    """Nothing but entering and leaving."""


async def quiet(world: World) -> None:
    """Now and then a span, sent when it is due."""
    first, second, third = world.spans(3)
    world.oracle.add_nowait("a", [first])
    await world.add_as_victim("b", [second])
    await trio.sleep(7)
    await world.add("a", [third])
    await world.flush_as_victim()


async def full_queues(world: World) -> None:
    """More comes than the server takes; nobody waits, what does not fit is not accepted."""
    spans = [world.spans(7) for _ in range(3)]
    for round_of_spans in spans:
        for location in "ab":
            for span in round_of_spans[:3]:
                world.oracle.add_nowait(location, [span])
            world.oracle.add_nowait(location, round_of_spans[3:])
            round_of_spans = world.spans(7)
        await trio.sleep(1.5)


async def waiting_for_the_queue(world: World) -> None:
    """Adders stand in the lines of two full queues."""
    mine, others, more, single = world.spans(3), world.spans(4), world.spans(3), world.spans(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add, "a", others)
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "b", more)
        await trio.sleep(0.5)
        nursery.start_soon(world.add, "a", single)
        nursery.start_soon(world.flush_as_victim, "a")


async def waiting_for_bytes(world: World) -> None:
    """Adders of three locations wait for a budget that idle lanes hold."""
    fill, mine, others, big = (
        world.spans(3, size=100),
        world.spans(2, size=300),
        world.spans(2, size=100),
        world.spans(1, size=450),
    )
    for span in fill:
        world.oracle.add_nowait("a", [span])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "b", mine)
        nursery.start_soon(world.add, "c", big)
        nursery.start_soon(world.add_each, "b", others)
        await trio.sleep(0.5)
        nursery.start_soon(world.flush_as_victim)


async def a_long_list(world: World) -> None:
    """A list so long that other tasks run in between, too long for the queue."""
    mine, others = world.spans(70), world.spans(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_list_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "a", others)
        nursery.start_soon(world.flush_as_victim)


async def flush_in_progress(world: World) -> None:
    """Several flushers, of one location and of all, while more is added."""
    spans = [world.spans(2) for _ in range(4)]
    for location, some in zip("abab", spans, strict=True):
        world.oracle.add_nowait(location, some)
    late = world.spans(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.flush, "a")
        await trio.sleep(0.5)
        await world.add_as_victim("a", late)
        nursery.start_soon(world.flush)


async def drain_in_progress(world: World) -> None:
    """The body ends at once; the drain has everything to do, with adders and flushers from outside."""
    for location in "abc":
        world.oracle.add_nowait(location, world.spans(5))
    mine, others = world.spans(4), world.spans(3)
    world.outside.start_soon(world.flush_as_victim)
    world.outside.start_soon(world.add_as_victim, "a", mine)
    world.outside.start_soon(world.add, "b", others)
    await trio.lowlevel.checkpoint()


async def ending_by_idleness(world: World) -> None:
    """Lanes end because nothing comes, also in the very moment in which something does."""
    spans = world.spans(4)
    world.oracle.add_nowait("a", [spans[0]])
    world.oracle.add_nowait("b", [spans[1]])
    await world.flush_as_victim()
    await trio.sleep(3)
    await world.add_as_victim("a", [spans[2]])
    await trio.sleep(2)
    await world.add("b", [spans[3]])
    await trio.sleep(10)


async def many_locations(world: World) -> None:
    """More locations than may be alive at once, one after the other, and the first ones again."""
    spans = world.spans(8)
    for location, span in zip("abcdef", spans, strict=False):
        world.oracle.add_nowait(location, [span])
        await world.flush(location)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", [spans[6]])
        nursery.start_soon(world.flush_as_victim)
        await world.add("f", [spans[7]])


# -- servers that fail -----------------------------------------------------------------------------------------


async def backoff(world: World) -> None:
    """The server fails for a while, and the queue grows."""
    first, mine, others = world.spans(3), world.spans(2), world.spans(2)
    world.oracle.add_nowait("a", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "b", others)


def fails_twice(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("busy", status_code=503) if before < 2 else Delivered()


async def retry_after(world: World) -> None:
    """The server says when to come again, for one location later than the drain will wait."""
    first, second, mine = world.spans(2), world.spans(2), world.spans(1)
    world.oracle.add_nowait("soon", first)
    world.oracle.add_nowait("late", second)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim, "soon")
        await trio.sleep(1)
        await world.add_as_victim("soon", mine)


def says_when(location: str, ids: Sequence[int], before: int) -> Step:
    if location == "late":
        return TryLater("busy", after=1000)
    return TryLater("busy", after=3) if before == 0 else Delivered()


async def broken_connections(world: World) -> None:
    """The outcome of the first attempts is unknown."""
    first, mine, others = world.spans(2), world.spans(2), world.spans(2)
    world.oracle.add_nowait("a", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "b", others)
        nursery.start_soon(world.flush_as_victim)


def breaks_first(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("reset", ambiguous=True) if before == 0 else Delivered()


async def isolation(world: World) -> None:
    """One bad span in each of two batches."""
    batch, mine, others = world.spans(5), world.spans(1), world.spans(3)
    world.oracle.add_nowait("a", batch)
    world.oracle.add_nowait("b", others)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.flush_as_victim)


def every_fourth_is_bad(location: str, ids: Sequence[int], before: int) -> Step:
    bad = [span_id for span_id in ids if span_id % 4 == 3]
    return Refused(f"400: {bad} are bad", status_code=400, isolate=True) if bad else Delivered()


async def refusing_everything(world: World) -> None:
    """Not one span is right: the location is asked about a single one from then on."""
    first, second, mine, others = world.spans(3), world.spans(3), world.spans(1), world.spans(2)
    world.oracle.add_nowait("a", first)
    world.oracle.add_nowait("b", others)
    await world.flush_as_victim()
    world.oracle.add_nowait("a", second)
    await world.add_as_victim("b", mine)


def a_refuses_everything(location: str, ids: Sequence[int], before: int) -> Step:
    return Refused("400: no", status_code=400, isolate=True) if location == "a" else Delivered()


async def too_large(world: World) -> None:
    """Requests are too large, and the next batch is sent in parts at once."""
    first, second, mine = world.spans(4), world.spans(3), world.spans(1)
    world.oracle.add_nowait("a", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.add_as_victim, "a", mine)
        await trio.sleep(0.5)
        await world.add("a", second)


def takes_two_at_once(location: str, ids: Sequence[int], before: int) -> Step:
    return Refused("413: too large", status_code=413, isolate=True) if len(ids) > 2 else Delivered()


async def hanging(world: World) -> None:
    """One location never answers; the drain gives it up, others are delivered."""
    stuck, mine, others = world.spans(3), world.spans(1), world.spans(2)
    world.oracle.add_nowait("hangs", stuck)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_each, "b", others)
        nursery.start_soon(world.add_as_victim, "hangs", mine)
        with trio.move_on_after(2):
            await world.flush_as_victim()


def one_hangs(location: str, ids: Sequence[int], before: int) -> Step:
    return Hang() if location == "hangs" else Delivered()


async def timing_out(world: World) -> None:
    """The first attempt takes too long, the second does not; there is one slot for all."""
    first, mine, others = world.spans(2), world.spans(1), world.spans(2)
    world.oracle.add_nowait("a", first)
    world.oracle.add_nowait("b", others)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.add_as_victim, "b", mine)


def hangs_first(location: str, ids: Sequence[int], before: int) -> Step:
    return Hang() if before == 0 else Delivered()


async def one_slot(world: World) -> None:
    """Four locations, of which two back off, stand in line for the only slot; the drain cuts the line."""
    spans = {location: world.spans(2) for location in "abcd"}
    mine = world.spans(1)
    for location, some in spans.items():
        world.oracle.add_nowait(location, some)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.add_as_victim, "a", mine)
        with trio.move_on_after(3):
            await world.flush("d")


def two_fail_first(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("busy", status_code=503) if location in "ab" and before < 2 else Delivered()


async def partial_success_of_batches(world: World) -> None:
    """The server leaves out the last span of each batch for one location."""
    first, mine, others = world.spans(3), world.spans(2), world.spans(2)
    world.oracle.add_nowait("picky", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "picky", mine)
        nursery.start_soon(world.add_each, "b", others)
        nursery.start_soon(world.flush_as_victim)


def leaves_out_the_last(location: str, ids: Sequence[int], before: int) -> Step:
    return Delivered(rejected=1, message="too old") if location == "picky" else Delivered()


async def raising(world: World) -> None:
    """The exporter has a bug, for one location."""
    first, mine, others = world.spans(2), world.spans(1), world.spans(2)
    world.oracle.add_nowait("buggy", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "buggy", mine)
        nursery.start_soon(world.add_each, "b", others)
        nursery.start_soon(world.flush_as_victim)


def one_raises(location: str, ids: Sequence[int], before: int) -> Step:
    return ValueError("a bug") if location == "buggy" else Delivered()


async def closing_hangs(world: World) -> None:
    """Closing the exporter takes all the time that there is."""
    spans = world.spans(2)
    world.oracle.add_nowait("a", [spans[0]])
    await world.add_as_victim("a", [spans[1]])
    await world.flush_as_victim()


async def no_time_at_all(world: World) -> None:
    """There is half a second for the drain, and a slow server."""
    spans = world.spans(4)
    world.oracle.add_nowait("a", spans[:2])
    await world.add_as_victim("b", [spans[2]])
    with trio.move_on_after(0.5):
        await world.flush_as_victim()
    world.oracle.add_nowait("a", spans[3:])


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(entering),
        Scenario(quiet),
        Scenario(
            full_queues,
            Settings(delay=1.0, batcher={"batch": TWO, "limits": Limits(max_queued_spans=4, max_exports=1)}),
        ),
        Scenario(
            waiting_for_the_queue,
            Settings(delay=0.25, batcher={"batch": TWO, "limits": Limits(max_queued_spans=2)}),
        ),
        Scenario(
            waiting_for_bytes,
            Settings(delay=0.25, batcher={"batch": NEVER, "limits": Limits(max_pending_bytes=600, max_exports=2)}),
        ),
        Scenario(
            a_long_list,
            Settings(
                delay=0.25,
                batcher={"batch": BatchPolicy(max_spans=64), "limits": Limits(max_queued_spans=66)},
            ),
        ),
        Scenario(flush_in_progress, Settings(delay=1.0, batcher={"batch": ONE})),
        Scenario(
            drain_in_progress,
            Settings(delay=1.0, batcher={"batch": TWO, "limits": Limits(max_queued_spans=6, max_exports=2)}),
            # Those from outside race with the drain.
            steady=False,
        ),
        Scenario(ending_by_idleness, Settings(batcher={"batch": ONE, "limits": Limits(location_idle_timeout=3)})),
        Scenario(
            many_locations,
            Settings(batcher={"batch": ONE, "limits": Limits(max_locations=3)}),
            forgets_locations=True,
        ),
        Scenario(
            backoff,
            Settings(
                fails_twice,
                delay=0.25,
                batcher={"batch": TWO, "limits": Limits(max_queued_spans=3), "retry": QUICK_RETRY},
            ),
        ),
        Scenario(retry_after, Settings(says_when, batcher={"batch": TWO})),
        Scenario(broken_connections, Settings(breaks_first, batcher={"batch": TWO, "retry": QUICK_RETRY})),
        Scenario(isolation, Settings(every_fourth_is_bad, delay=0.25, batcher={"batch": NEVER})),
        Scenario(refusing_everything, Settings(a_refuses_everything, delay=0.25, batcher={"batch": NEVER})),
        Scenario(too_large, Settings(takes_two_at_once, delay=0.25, batcher={"batch": NEVER})),
        Scenario(
            hanging,
            Settings(one_hangs, batcher={"batch": TWO, "retry": RetryPolicy(attempt_timeout=math.inf)}),
        ),
        Scenario(
            timing_out,
            Settings(
                hangs_first,
                delay=0.25,
                batcher={
                    "batch": TWO,
                    "limits": Limits(max_exports=1),
                    "retry": RetryPolicy(initial=0.5, maximum=1, attempt_timeout=2),
                },
            ),
        ),
        Scenario(
            one_slot,
            Settings(
                two_fail_first,
                delay=1.0,
                batcher={"batch": TWO, "limits": Limits(max_exports=1), "retry": QUICK_RETRY},
            ),
        ),
        Scenario(
            partial_success_of_batches,
            Settings(leaves_out_the_last, delay=0.25, batcher={"batch": NEVER}),
            # Which is the last depends on who else is in the batch.
            steady=False,
        ),
        Scenario(raising, Settings(one_raises, delay=0.25, batcher={"batch": TWO}), tracebacks=["exporter raised"]),
        Scenario(closing_hangs, Settings(delay=0.25, closing_hangs=True, batcher={"batch": ONE})),
        Scenario(
            no_time_at_all,
            Settings(delay=0.4, shutdown_timeout=0.5, batcher={"batch": TWO}),
            steady=False,
        ),
    )
}

# Small ones, in which the drain has something to do, for two cancels in one run: the pairs of steps are many.
TWICE = ("retry_after", "hanging", "closing_hangs", "no_time_at_all")
