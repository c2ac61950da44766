"""The export slots."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.parts import make_location
from trio_spanbatch._scheduler.slots import Slots, kept_free

TABLE = [
    # slots, live, exporting, draining, kept free
    (4, 1, 1, False, 0),
    (4, 2, 1, False, 1),
    (4, 3, 1, False, 2),
    (4, 9, 1, False, 2),
    (4, 2, 2, False, 2),
    (4, 9, 3, False, 2),
    (5, 9, 2, False, 2),
    (1, 9, 1, False, 0),
    (4, 2, 2, True, 0),
    (4, 3, 2, True, 1),
    (4, 9, 2, True, 2),
    (4, 0, 0, True, 0),
]


@pytest.mark.parametrize(("slots", "live", "exporting", "draining", "kept"), TABLE)
def test_slots_are_kept_for_locations_that_do_not_export(
    slots: int, live: int, exporting: int, draining: bool, kept: int
) -> None:
    assert kept_free(slots, live, exporting, draining=draining) == kept


def test_never_more_than_half_of_the_slots_are_kept() -> None:
    for slots in range(1, 9):
        for live in range(12):
            for exporting in range(min(live, slots) + 1):
                for draining in (False, True):
                    assert 0 <= kept_free(slots, live, exporting, draining=draining) <= slots // 2


def test_a_location_counts_as_exporting_until_its_last_export_ends() -> None:
    slots, location = Slots(4), make_location("a")
    slots.take(location)
    slots.take(location)
    assert (slots.free, slots.exporting, location.pace.active) == (2, 1, 2)
    slots.give_back(location)
    assert (slots.free, slots.exporting) == (3, 1)
    slots.give_back(location)
    assert (slots.free, slots.exporting) == (4, 0)


def test_a_location_that_takes_a_slot_leaves_the_queue() -> None:
    slots, first, second = Slots(1), make_location("a"), make_location("b")
    slots.queue.update({first: None, second: None})
    slots.take(first)
    assert list(slots.queue) == [second]


def test_forgetting_a_location_removes_it_from_both_queues() -> None:
    slots, location = Slots(1), make_location("a")
    slots.queue[location] = slots.spare_queue[location] = None
    slots.forget(location)
    assert not slots.queue
    assert not slots.spare_queue


def test_a_slot_can_be_spared_only_beyond_those_that_are_kept() -> None:
    slots, location = Slots(4), make_location("a")
    slots.take(location)
    assert slots.can_spare(3, draining=False)
    slots.take(location)
    assert not slots.can_spare(3, draining=False)
    assert slots.can_spare(2, draining=False)
