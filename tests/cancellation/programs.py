"""Programs with healthy servers: the cancels hit the batcher itself and the tasks around it."""

from __future__ import annotations

import trio

from tests.cancellation.support import World

__all__ = [
    "a_long_list",
    "drain_in_progress",
    "ending_by_idleness",
    "entering",
    "flush_in_progress",
    "full_queues",
    "many_locations",
    "quiet",
    "waiting_for_bytes",
    "waiting_for_the_queue",
]


async def entering(world: World) -> None:
    """Enter and leave."""


async def quiet(world: World) -> None:
    """Add a span now and then; each is sent when it is due."""
    first, second, third = world.spans(3)
    world.oracle.add_nowait("a", [first])
    await world.add_as_victim("b", [second])
    await trio.sleep(7)
    await world.add("a", [third])
    await world.flush_as_victim()


async def full_queues(world: World) -> None:
    """Add more than the server takes: spans that do not fit are not accepted, and one adder waits."""
    lists, singles, mine = [world.spans(3) for _ in range(6)], world.spans(14), world.spans(2)
    for some in lists[:2]:
        world.oracle.add_nowait("a", some)
        world.oracle.add_nowait("b", [singles.pop()])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.flush_as_victim, "b")
        for some in lists[2:]:
            world.oracle.add_nowait("a", some)
            for _ in range(3):
                world.oracle.add_nowait("b", [singles.pop()])
            await trio.sleep(0.75)


async def waiting_for_the_queue(world: World) -> None:
    """Adders wait for two full queues."""
    mine, others, more, single = world.spans(3), world.spans(4), world.spans(3), world.spans(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add, "a", others)
        nursery.start_soon(world.add_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "b", more)
        await trio.sleep(0.5)
        nursery.start_soon(world.add, "a", single)
        nursery.start_soon(world.flush_as_victim, "a")


async def waiting_for_bytes(world: World) -> None:
    """Adders of three locations wait for a budget that idle locations hold."""
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
    """Add a list that is too long for the queue, and so long that other tasks run in between."""
    mine, others = world.spans(70), world.spans(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_list_as_victim, "a", mine)
        nursery.start_soon(world.add_each, "a", others)
        nursery.start_soon(world.flush_as_victim)


async def flush_in_progress(world: World) -> None:
    """Flush one location and all of them, while more spans are added."""
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
    """The body ends at once; the drain sends everything, with adders and flushers from outside."""
    for location in "abc":
        world.oracle.add_nowait(location, world.spans(5))
    mine, others = world.spans(4), world.spans(3)
    world.outside.start_soon(world.flush_as_victim)
    world.outside.start_soon(world.add_as_victim, "a", mine)
    world.outside.start_soon(world.add, "b", others)
    await trio.lowlevel.checkpoint()


async def ending_by_idleness(world: World) -> None:
    """Locations end because they are idle, one of them at the moment at which a span is added."""
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
    """Use more locations than may be live at once, one after the other, and then the first ones again."""
    spans = world.spans(8)
    for location, span in zip("abcdef", spans, strict=False):
        world.oracle.add_nowait(location, [span])
        await world.flush(location)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.add_as_victim, "a", [spans[6]])
        nursery.start_soon(world.flush_as_victim)
        await world.add("f", [spans[7]])
