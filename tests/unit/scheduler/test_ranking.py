"""The locations by their queued bytes."""

from __future__ import annotations

import math

import pytest

from tests.unit.scheduler.parts import make_location
from tests.unit.scheduler.support import World, WorldConfig
from trio_spanbatch import BatchPolicy, Limits
from trio_spanbatch._scheduler.location import Location
from trio_spanbatch._scheduler.ranking import Ranking


def _ranked(ranking: Ranking, **sizes: int) -> list[Location]:
    locations = []
    for name, size in sizes.items():
        location = make_location(name)
        location.account.queued, location.account.pending_bytes = 1, size
        ranking.put(location, len(sizes), 0)
        locations.append(location)
    return locations


def test_the_fullest_locations_are_taken_first() -> None:
    ranking = Ranking()
    a, b, c = _ranked(ranking, a=10, b=30, c=20)
    assert ranking.take(2, lambda _: True) == [b, c]
    assert ranking.take(2, lambda _: True) == [a]


def test_only_queued_bytes_count() -> None:
    ranking = Ranking()
    a = make_location("a")
    a.account.queued, a.account.pending_bytes, a.leased_bytes = 1, 100, 95
    ranking.put(a, 2, 0)
    (b,) = _ranked(ranking, b=10)
    assert ranking.take(2, lambda _: True) == [b, a]


def test_only_the_last_entry_of_a_location_counts() -> None:
    ranking = Ranking()
    a, b = _ranked(ranking, a=30, b=20)
    a.account.pending_bytes = 10
    ranking.put(a, 2, 0)
    assert ranking.take(1, lambda _: True) == [b]
    assert ranking.take(2, lambda _: True) == [a]


def test_a_location_stays_ranked_until_it_has_grown_by_a_quarter() -> None:
    location = make_location("a")
    assert location.ranked_up_to == 0
    location.account.queued, location.account.pending_bytes, location.leased_bytes = 1, 1000, 600
    Ranking().put(location, 1, 0)
    assert location.ranked_up_to == 1100


def test_a_location_with_little_stays_ranked_until_it_has_grown_by_a_quarter_of_the_average() -> None:
    location = make_location("a")
    location.account.queued, location.account.pending_bytes = 1, 100
    Ranking().put(location, live=10, all_queued_bytes=8000)
    assert location.ranked_up_to == 300


# The first number of bytes is admitted by the short way, which only large spans take, the second by the long way.
@pytest.mark.parametrize("size", [200, 100])
def test_a_location_that_grows_by_more_than_a_quarter_has_to_be_ranked_again(size: int) -> None:
    policy = BatchPolicy(max_spans=100)
    world = World(WorldConfig(limits=Limits(max_queued_spans=100), spans=100, policy=policy))
    for _ in range(9):
        world.add("a", size)
    location = world.scheduler.locations["a"]
    world.scheduler.admission.unranked.clear()
    Ranking().put(location, 1, 0)
    ranked = []
    for _ in range(3):
        world.add("a", size)
        ranked.append(location.is_ranked)
    assert ranked == [True, True, False]
    assert list(world.scheduler.admission.unranked) == [location]


def test_fuller_locations_that_are_not_ready_are_removed_from_the_ranking() -> None:
    ranking = Ranking()
    a, b = _ranked(ranking, a=30, b=20)
    assert ranking.take(1, lambda location: location is b) == [b]
    assert ranking.take(1, lambda _: True) == []
    ranking.put(a, 2, 0)
    assert ranking.take(1, lambda _: True) == [a]


def test_a_location_that_has_ended_is_not_taken() -> None:
    ranking = Ranking()
    (a,) = _ranked(ranking, a=30)
    a.has_ended = True
    assert ranking.take(1, lambda _: True) == []


def test_a_location_without_queued_spans_gets_no_entry() -> None:
    ranking = Ranking()
    ranking.put(make_location("a"), 1, 0)
    assert ranking.take(1, lambda _: True) == []


def test_the_number_of_outdated_entries_is_bounded() -> None:
    ranking = Ranking()
    (a,) = _ranked(ranking, a=1)
    for size in range(1000):
        a.account.pending_bytes = size
        ranking.put(a, 1, 0)
        assert len(ranking._entries) <= 70
    assert ranking.take(5, lambda _: True) == [a]


def test_the_fullest_location_is_made_due_once_a_slot_can_be_spared_for_its_second_export() -> None:
    limits = Limits(max_exports=4, max_exports_per_location=2, max_pending_bytes=1000)
    policy = BatchPolicy(max_spans=2, max_delay=math.inf)
    world = World(WorldConfig(locations=("a", "b", "c"), spans=9, limits=limits, policy=policy))

    def export(name: str) -> None:
        for _ in range(2):
            world.add(name, 10)
        world.step()

    export("a")
    world.do(("delivered", 0, 0))
    export("a")
    # One export of two that it may have now. When it was looked at, a slot could be spared.
    world.add("a", 800)
    world.step()
    export("b")
    world.add("c", 500)
    world.step()
    assert len(world.waiters) == 1
    world.do(("delivered", 1, 0))
    world.step()
    assert not world.scheduler.locations["a"].account.queued, "its second export has begun"
    world.finish()
