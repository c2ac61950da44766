"""Compare the speed of two state machines: that of the whole batcher, and that of the scheduler alone."""

from __future__ import annotations

import time

from hypothesis.stateful import invariant

from tests.state_machine.machine import SpanBatcherMachine, run_state_machine
from tests.unit.scheduler.machine import SchedulerMachine, run_machine

__all__ = ["rate_of_batcher", "rate_of_scheduler"]


class _Counted(SpanBatcherMachine):
    rules_run = 0

    @invariant()
    def count(self) -> None:
        _Counted.rules_run += 1


def rate_of_batcher(sequences: int = 40) -> float:
    """Return how many rules per second of CPU time the state machine of the whole batcher carries out."""
    began, before = time.process_time(), _Counted.rules_run
    run_state_machine(sequences, seed=1, machine=_Counted)
    return (_Counted.rules_run - before) / (time.process_time() - began)


def rate_of_scheduler(sequences: int = 100) -> float:
    """Return how many events per second of CPU time the state machine of the scheduler alone carries out."""
    began, before = time.process_time(), SchedulerMachine.events
    run_machine(sequences, seed=1)
    return (SchedulerMachine.events - before) / (time.process_time() - began)
