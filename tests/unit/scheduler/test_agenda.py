"""The agenda."""

from __future__ import annotations

import math

from tests.unit.scheduler.parts import Clock, make_location, make_scheduler, make_span
from trio_spanbatch import BatchPolicy
from trio_spanbatch._scheduler.agenda import Agenda
from trio_spanbatch._scheduler.orders import Start


def test_an_empty_agenda_has_no_next_time() -> None:
    assert Agenda().next_at == math.inf
    assert Agenda().pop(math.inf) is None


def test_the_earliest_location_is_first_and_equal_times_are_in_order_of_insertion() -> None:
    agenda, a, b, c = Agenda(), make_location("a"), make_location("b"), make_location("c")
    agenda.put(a, 2.0)
    agenda.put(b, 1.0)
    agenda.put(c, 2.0)
    assert agenda.next_at == 1.0
    assert [agenda.pop(2.0), agenda.pop(2.0), agenda.pop(2.0), agenda.pop(2.0)] == [b, a, c, None]


def test_no_location_is_returned_before_its_time() -> None:
    agenda, a = Agenda(), make_location("a")
    agenda.put(a, 2.0)
    assert agenda.pop(1.9) is None
    assert agenda.pop(2.0) is a


def test_an_earlier_time_replaces_the_time_of_a_location() -> None:
    agenda, a = Agenda(), make_location("a")
    agenda.put(a, 5.0)
    agenda.put(a, 1.0)
    assert agenda.pop(1.0) is a
    assert agenda.pop(9.0) is None, "the entry of the later time is outdated"


def test_a_later_time_changes_nothing() -> None:
    agenda, a = Agenda(), make_location("a")
    agenda.put(a, 1.0)
    agenda.put(a, 5.0)
    assert (a.next_look_at, agenda.next_at) == (1.0, 1.0)


def test_outdated_entries_do_not_become_ever_more() -> None:
    agenda, a, b = Agenda(), make_location("a"), make_location("b")
    agenda.put(b, 3000.0)
    for number in range(1000):
        agenda.put(a, number + 1000.0)
        agenda.put(a, number + 0.5)
        assert agenda.pop(number + 0.5) is a
        assert len(agenda._entries) < 100
    agenda.put(a, 4000.0)
    assert [agenda.pop(5000.0), agenda.pop(5000.0), agenda.pop(5000.0)] == [b, a, None]


def test_a_location_that_has_ended_is_not_put_on_the_agenda() -> None:
    agenda, a = Agenda(), make_location("a")
    agenda.put(a, 1.0)
    agenda.remove(a)
    agenda.put(a, 0.5)
    assert agenda.pop(9.0) is None


def test_a_location_whose_time_has_come_is_looked_at_though_others_change_all_the_time() -> None:
    clock = Clock()
    scheduler = make_scheduler(policy=BatchPolicy(max_delay=1), clock=clock)
    location, busy = scheduler.open("a"), [scheduler.open(f"busy {number}") for number in range(200)]
    scheduler.admission.try_admit(location, make_span(), clock)
    while scheduler.step(clock.now):
        pass
    clock.now = 2.0
    for one in busy:
        scheduler.admission.touch(one)
    scheduler.step(clock.now)
    assert [order.lease.location for order in scheduler.outbox if isinstance(order, Start)] == [location]
