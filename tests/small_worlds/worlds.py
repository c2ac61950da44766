"""The small worlds: two locations, three spans, one waiting adder, one flush."""

from __future__ import annotations

import attrs

from tests.unit.scheduler.support import Menu
from trio_spanbatch import BatchPolicy, Limits

__all__ = ["WORLDS", "SmallWorld"]


@attrs.frozen
class SmallWorld:
    """A world, and how many distinct states it has up to some depths.

    Attributes:
        menu: What is in it.
        depth: How deep it is explored.
        states: The number of distinct states down to there.
        quick_depth: How deep it is explored by the tests that run always.
        quick_states: The number of distinct states down to there.
    """

    menu: Menu
    depth: int
    states: int
    quick_depth: int
    quick_states: int


WORLDS = {
    "one slot": SmallWorld(Menu(), 9, 48_992, 5, 1_016),
    "bytes for two spans": SmallWorld(
        Menu(limits=Limits(max_queued_spans=2, max_pending_bytes=20, max_exports=2, max_exports_per_location=2)),
        8,
        45_378,
        5,
        1_058,
    ),
    "place for one location": SmallWorld(
        Menu(
            limits=Limits(max_queued_spans=1, max_locations=1, max_exports=2, location_idle_timeout=2.0),
            policy=BatchPolicy(max_spans=1),
        ),
        10,
        23_138,
        5,
        678,
    ),
}
