"""The scheduler alone, with events in random orders."""

from __future__ import annotations

import pytest

from tests.small_worlds.compare import rate_of_batcher, rate_of_scheduler
from tests.unit.scheduler.machine import run_machine


def test_the_invariants_of_the_scheduler_hold_for_random_orders_of_events() -> None:
    run_machine(60, seed=0)


@pytest.mark.long
def test_the_invariants_of_the_scheduler_hold_for_many_random_orders_of_events() -> None:
    run_machine(1000, seed=1)


# Both rates are measured in CPU time of the same process. The factor is usually larger.
@pytest.mark.long
def test_the_state_machine_without_trio_runs_several_times_as_many_steps_per_second() -> None:
    assert rate_of_scheduler() > 3 * rate_of_batcher()
