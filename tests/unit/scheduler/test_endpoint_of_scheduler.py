"""What the scheduler does at an endpoint that is down: the events of a world, one by one."""

from __future__ import annotations

import math

from tests.unit.scheduler.support import World, WorldConfig
from trio_spanbatch import BatchPolicy, Limits

# A batch is due once it has two spans.
POLICY = BatchPolicy(max_spans=2, max_delay=math.inf)


def fail_once(world: World, name: str, answer: str) -> None:
    """Add two spans, which are a batch, and answer its attempt."""
    world.add(name, 10)
    world.add(name, 10)
    world.step()
    world.do((answer, 0, 0))
    world.step()


def fail_again(world: World, answer: str) -> None:
    """Wait for the next attempt, and answer it."""
    world.do(("time", 0, 0))
    world.step()
    world.do((answer, 0, 0))
    world.step()


def test_adders_that_wait_for_bytes_in_an_outage_do_not_keep_the_driver_busy() -> None:
    limits = Limits(max_pending_bytes=35, max_exports=2)
    world = World(WorldConfig(spans=9, limits=limits, policy=POLICY))
    fail_once(world, "a", "unreached")
    fail_again(world, "unreached")
    fail_again(world, "unreached")
    assert not world.is_endpoint_up
    world.add("b", 10)
    world.add("b", 10)
    # A step that does not end fails.
    world.step()
    world.check()
    assert world.scheduler.get("b") is not None
    assert len(world.waiters) == 1
    world.finish()


def test_the_next_location_in_the_endpoints_queue_is_looked_at_if_the_first_one_fails_and_may_go_on_at_once() -> None:
    locations = ("busy", "healthy", "1", "2", "3", "4")
    limits, policy = Limits(max_exports=4, max_exports_per_location=2), BatchPolicy(max_spans=1)
    world = World(WorldConfig(locations=locations, spans=9, limits=limits, policy=policy, pauses=(1.0,)))
    world.add("busy", 10)
    world.step()
    # With this success it may run two exports, of which the first is answered in the outage.
    world.do(("delivered", 0, 0))
    for name in ("busy", "1", "2", "3"):
        world.add(name, 10)
    world.step()
    for number in (1, 2, 3):
        world.do(("overloaded", number, 0))
    world.step()
    assert not world.is_endpoint_up
    # The probe of a location that had not failed, and fails, makes the wait for the next one longer than a backoff.
    world.add("4", 10)
    world.step()
    world.do(("time", 0, 0))
    world.step()
    world.do(("overloaded", 4, 0))
    world.step()
    world.add("busy", 10)
    world.step()
    world.add("healthy", 10)
    world.step()
    # Its backoff is over when the next step is made.
    world.do(("overloaded", 0, 0))
    world.do(("pause", 0, 0))
    world.step()
    world.do(("time", 0, 0))
    world.step()
    assert [one.part.location.name for one in world.deliveries if one.state == "running"] == ["healthy"]
    world.finish()


def test_no_location_is_ranked_by_its_bytes_while_another_one_waits_for_the_endpoint() -> None:
    limits = Limits(max_pending_bytes=55, max_exports=2)
    world = World(WorldConfig(locations=("a", "b", "c"), spans=9, limits=limits, policy=POLICY))
    fail_once(world, "a", "unreached")
    fail_again(world, "unreached")
    fail_again(world, "unreached")
    for name in ("b", "b", "c"):
        world.add(name, 10)
    world.step()
    world.add("a", 10)
    world.step()
    assert len(world.waiters) == 1
    location = world.scheduler.get("c")
    assert location is not None
    assert not location.is_ranked
    world.finish()


def test_a_location_that_ends_and_comes_back_is_the_same_location_for_its_endpoint() -> None:
    limits = Limits(max_exports=1, location_idle_timeout=1)
    world = World(WorldConfig(spans=20, limits=limits))
    for _ in range(4):
        fail_once(world, "a", "overloaded")
        world.give_up(world.deliveries[0])
        # Its idle timeout, and its backoff.
        world.now += 9
        world.step()
        assert not world.scheduler.locations
    assert world.is_endpoint_up
    # `World` has counted the failures, too.
    fail_once(world, "b", "overloaded")
    assert world.is_endpoint_up
