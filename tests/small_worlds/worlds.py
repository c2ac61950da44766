"""The small worlds: two locations, three spans, one waiting adder, one flush; or an endpoint that is down."""

from __future__ import annotations

import attrs

from tests.unit.scheduler.support import WorldConfig
from trio_spanbatch import BatchPolicy, Limits

__all__ = ["WORLDS", "SmallWorld"]


@attrs.frozen
class SmallWorld:
    """A world, and the numbers of its distinct states down to two depths.

    Attributes:
        config: Its contents.
        depth: The depth to which it is explored.
        states: The number of distinct states down to that depth.
        quick_depth: The depth for the tests that are not marked long.
        quick_states: The number of distinct states down to that depth.
    """

    config: WorldConfig
    depth: int
    states: int
    quick_depth: int
    quick_states: int


WORLDS = {
    "one slot": SmallWorld(WorldConfig(), 9, 49_714, 5, 1_022),
    "bytes for two spans": SmallWorld(
        WorldConfig(limits=Limits(max_queued_spans=2, max_pending_bytes=20, max_exports=2, max_exports_per_location=2)),
        9,
        139_080,
        5,
        1_080,
    ),
    "one location at a time": SmallWorld(
        WorldConfig(
            limits=Limits(max_queued_spans=1, max_locations=1, max_exports=2, location_idle_timeout=2.0),
            policy=BatchPolicy(max_spans=1),
        ),
        10,
        29_118,
        5,
        698,
    ),
    "an outage": SmallWorld(
        WorldConfig(
            locations=("a", "b", "c"),
            spans=4,
            adders=0,
            flushes=0,
            answers=("delivered", "unreached", "overloaded"),
            limits=Limits(max_exports=3, max_exports_per_location=2),
            policy=BatchPolicy(max_spans=1),
            before=(
                *(("add", name, 10) for name in ("a", "b", "c")),
                ("step", 0, 0),
                *(("overloaded", number, 0) for number in range(3)),
            ),
        ),
        9,
        35_304,
        5,
        2_057,
    ),
}
