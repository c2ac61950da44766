"""The order in which locations in line for an export slot get one."""

from __future__ import annotations

import math

from tests.unit.scheduler.support import World, WorldConfig
from trio_spanbatch import BatchPolicy, Limits


def _add(world: World, names: str) -> None:
    for name in names:
        world.do(("add", name, 50))
        world.step()


def _deliver(world: World, names: str) -> None:
    """End an export of each location, without a step of the scheduler in between."""
    for name in names:
        number = next(i for i, one in enumerate(world.deliveries) if one.part.location.name == name)
        world.do(("delivered", number, 0))


def test_the_first_location_in_line_gets_a_second_slot_only_after_the_next_one_got_its_first() -> None:
    limits = Limits(max_queued_spans=6, max_locations=4, max_exports=3, max_exports_per_location=3)
    policy = BatchPolicy(max_spans=1, max_delay=math.inf)
    world = World(WorldConfig(locations=tuple("abcd"), sizes=(50,), limits=limits, policy=policy))
    # After a success, a location may have two exports.
    for name in "ad":
        _add(world, name)
        _deliver(world, name)
        world.step()
    _add(world, "ddcaab")
    assert not world.scheduler.slots.free
    assert [location.name for location in world.scheduler.slots.queue] == ["a", "b"]
    _deliver(world, "ddc")
    # The world checks the order in which the slots are given.
    world.step()
    assert [delivery.part.location.name for delivery in world.deliveries] == ["a", "b"]
