"""Every order of events in small worlds: to a small depth, and in the long test to the full depth."""

from __future__ import annotations

import pytest

from tests.small_worlds.explore import BadWorldError, explore
from tests.small_worlds.worlds import WORLDS
from tests.support.long_tests import run_long
from trio_spanbatch._scheduler.slots import Slots


@pytest.mark.parametrize("name", WORLDS)
def test_every_order_of_a_few_events_keeps_all_rules(name: str) -> None:
    world = WORLDS[name]
    assert explore(world.config, world.quick_depth).states == world.quick_states


@pytest.mark.long
def test_every_order_of_many_events_keeps_all_rules() -> None:
    run_long("-m", "tests.small_worlds")


def test_an_order_of_events_that_breaks_a_rule_is_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "give_back", lambda slots, location: None)
    with pytest.raises(BadWorldError, match="after add a 10, drain, step, stop"):
        explore(WORLDS["one slot"].config, 5)
