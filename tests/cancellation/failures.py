"""Programs with failing servers, and the scripts of these servers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio

from tests.cancellation.support import Step, World
from trio_spanbatch import Delivered, Loss, Refused, TryLater
from trio_spanbatch.testing import Hang

__all__ = [
    "a_is_forbidden",
    "a_refuses_everything",
    "adding_again",
    "backoff",
    "breaks_first",
    "broken_connections",
    "closing_hangs",
    "every_fourth_is_bad",
    "fails_later",
    "fails_twice",
    "hanging",
    "hangs_first",
    "isolation",
    "leaves_out_the_last",
    "no_time_at_all",
    "one_hangs",
    "one_raises",
    "one_slot",
    "outage",
    "overload",
    "partial_success_of_batches",
    "raising",
    "refusing_everything",
    "repeated_in_turns",
    "refuses_connections_first",
    "retry_after",
    "says_503_first",
    "says_when",
    "takes_two_at_once",
    "timing_out",
    "too_large",
    "two_fail_first",
]


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


async def outage(world: World) -> None:
    """Nothing reaches the server, so one location at a time tries; it recovers, and exports begin one by one."""
    await _use_in_outage(world)


async def overload(world: World) -> None:
    """The same with a server that answers, and is overloaded."""
    await _use_in_outage(world)


async def _use_in_outage(world: World) -> None:
    first, mine = world.spans(5), world.spans(2)
    for location, span in zip("abcde", first, strict=True):
        world.oracle.add_nowait(location, [span])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.flush_as_victim)
        nursery.start_soon(world.add_as_victim, "a", mine)


def refuses_connections_first(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("connection refused", endpoint=True) if before < 1 else Delivered()


def says_503_first(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("overloaded", status_code=503) if before < 1 else Delivered()


async def retry_after(world: World) -> None:
    """The server names a time for the next attempt, for one location after the end of the drain."""
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
    """Every span of a location is refused: from then on, only a single span is tried there."""
    first, second, mine, others = world.spans(3), world.spans(3), world.spans(1), world.spans(2)
    world.oracle.add_nowait("a", first)
    world.oracle.add_nowait("b", others)
    await world.flush_as_victim()
    world.oracle.add_nowait("a", second)
    await world.add_as_victim("b", mine)


def a_refuses_everything(location: str, ids: Sequence[int], before: int) -> Step:
    return Refused("400: no", status_code=400, isolate=True) if location == "a" else Delivered()


async def too_large(world: World) -> None:
    """Requests are too large, and the next batch is split before it is sent."""
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
    """One location never answers; the drain gives up on it, and the others are delivered."""
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
    """Four locations, two of which back off, wait for the only slot, most of them in the drain."""
    spans = {location: world.spans(2) for location in "abcd"}
    mine = world.spans(1)
    for location, some in spans.items():
        world.oracle.add_nowait(location, some)
    world.outside.start_soon(world.flush_as_victim)
    world.outside.start_soon(world.add_as_victim, "a", mine)
    with trio.move_on_after(3):
        await world.flush("d")


def two_fail_first(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("busy", status_code=503) if location in "ab" and before < 2 else Delivered()


async def repeated_in_turns(world: World) -> None:
    """Three exports of one location fail together; they are retried one after the other, while the drain begins."""
    spans, mine = world.spans(5), world.spans(1)
    for span in spans[:2]:
        world.oracle.add_nowait("a", [span])
        await world.flush("a")
    for span in spans[2:]:
        world.oracle.add_nowait("a", [span])
    await world.add_as_victim("a", mine)
    with trio.move_on_after(1.5):
        await world.flush_as_victim()


def fails_later(location: str, ids: Sequence[int], before: int) -> Step:
    return TryLater("busy", after=1) if 2 <= before < 6 else Delivered()


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


async def adding_again(world: World) -> None:
    """on_loss adds a span for another location for each lost batch, also while the drain begins."""
    first, mine, spare = world.spans(3), world.spans(2), world.spans(5)

    def add_another(loss: Loss) -> None:
        with suppress(trio.ClosedResourceError):
            world.oracle.add_nowait("b", [spare.pop()])

    world.when_lost = add_another
    world.oracle.add_nowait("a", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.flush_as_victim, "a")


def a_is_forbidden(location: str, ids: Sequence[int], before: int) -> Step:
    return Refused("403: not yours", status_code=403) if location == "a" else Delivered()


async def closing_hangs(world: World) -> None:
    """Closing the exporter takes all of the remaining time."""
    spans = world.spans(2)
    world.oracle.add_nowait("a", [spans[0]])
    await world.add_as_victim("a", [spans[1]])
    await world.flush_as_victim()


async def no_time_at_all(world: World) -> None:
    """The drain has half a second, and the server is slow."""
    spans = world.spans(4)
    world.oracle.add_nowait("a", spans[:2])
    await world.add_as_victim("b", [spans[2]])
    with trio.move_on_after(0.5):
        await world.flush_as_victim()
    world.oracle.add_nowait("a", spans[3:])
