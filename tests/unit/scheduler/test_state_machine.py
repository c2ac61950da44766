"""The scheduler alone, in any order of events."""

from __future__ import annotations

import pytest

from tests.small_worlds.compare import rate_of_batcher, rate_of_scheduler
from tests.unit.scheduler.machine import run_machine


def test_the_scheduler_keeps_its_rules_in_any_order_of_events() -> None:
    run_machine(60, seed=0)


@pytest.mark.long
def test_the_scheduler_keeps_its_rules_in_many_orders_of_events() -> None:
    run_machine(3000, seed=1)


# Both rates are measured in CPU time of the same process; more than the asserted factor is usual.
@pytest.mark.long
def test_without_trio_the_state_machine_makes_several_times_the_steps() -> None:
    assert rate_of_scheduler() > 3 * rate_of_batcher()
