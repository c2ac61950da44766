"""A Hypothesis state machine over the scheduler alone.

Choosing a rule takes Hypothesis longer than an event takes the scheduler. So a rule carries out many events from a
single
draw: each number selects one of the events that may come next.
"""

from __future__ import annotations

import math

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as set_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.unit.scheduler.support import Event, World, WorldConfig
from trio_spanbatch import BatchPolicy, Limits, RetryPolicy

__all__ = ["SchedulerMachine", "run_machine"]

ANSWERS = ("delivered", "later", "refused", "partly", "asked", "too large", "cancelled")
OUTAGE = ("unreached", "overloaded", "throttled")

CONFIGS = st.builds(
    WorldConfig,
    locations=st.sampled_from([("a", "b", "c"), ("a", "b"), ("a", "b", "c", "d"), ("a",)]),
    sizes=st.sampled_from([(10, 25, 50), (50,), (1, 99)]),
    spans=st.just(60),
    adders=st.just(12),
    flushes=st.just(6),
    answers=st.sampled_from(
        [
            (*["delivered"] * 5, *ANSWERS, *OUTAGE),
            (*ANSWERS, *OUTAGE),
            (*OUTAGE, "delivered"),
            (*OUTAGE * 3, "delivered"),
        ]
    ),
    begins_later=st.booleans(),
    pauses=st.just((0.5, 3.0)),
    limits=st.builds(
        Limits,
        max_queued_spans=st.sampled_from([2, 4, 1, 3, 6]),
        max_pending_bytes=st.sampled_from([150, 120, 200, 300, 5000]),
        max_pending_bytes_per_location=st.sampled_from([5000, 110, 150]),
        max_locations=st.sampled_from([4, 3, 2, 1]),
        max_exports=st.sampled_from([4, 2, 1, 3]),
        max_exports_per_location=st.sampled_from([3, 2, 1]),
        location_idle_timeout=st.sampled_from([math.inf, 8.0, 1.0]),
    ),
    retry=st.builds(RetryPolicy, initial=st.sampled_from([2.0, 0.5]), maximum=st.sampled_from([8.0, 2.0])),
    policy=st.builds(
        BatchPolicy,
        max_spans=st.sampled_from([2, 3, 4, 1]),
        max_bytes=st.sampled_from([5000, 120, 1]),
        max_delay=st.sampled_from([4.0, math.inf, 1.0]),
    ),
)

CHOICES = st.binary(min_size=1, max_size=48)

PROGRAM = {"add", "withdraw", "flush", "forget", "step"}
LAST = {"drain", "stop"}
FAILING = {"add", "begin", "go on", "time", "unreached", "overloaded"}


class SchedulerMachine(RuleBasedStateMachine):
    """Rules that each carry out a series of events of one kind."""

    events = 0
    world: World

    @initialize(config=CONFIGS)
    def begin(self, config: WorldConfig) -> None:
        self.world = World(config)

    def _do(self, events: list[Event], choice: int) -> None:
        if events:
            self.world.do(events[choice % len(events)])
            self.world.check()
            SchedulerMachine.events += 1

    @rule(choices=CHOICES)
    def all_kinds(self, choices: bytes) -> None:
        for choice in choices:
            self._do([event for event in self.world.enabled() if event[0] not in LAST], choice)

    @rule(choices=CHOICES)
    def busy_program(self, choices: bytes) -> None:
        for choice in choices:
            self._do([event for event in self.world.enabled() if event[0] in PROGRAM], choice)

    @rule(choices=CHOICES)
    def busy_servers(self, choices: bytes) -> None:
        for choice in choices:
            self._do([event for event in self.world.enabled() if event[0] not in PROGRAM | LAST], choice)
            self._do([event for event in self.world.enabled() if event[0] == "step"], choice)

    @rule(choices=CHOICES)
    def failing_server(self, choices: bytes) -> None:
        for choice in choices:
            self._do([event for event in self.world.enabled() if event[0] in FAILING], choice)
            self._do([event for event in self.world.enabled() if event[0] == "step"], choice)

    @precondition(lambda self: self.world.added > 0 and not self.world.ended)
    @rule(choices=CHOICES)
    def leaving(self, choices: bytes) -> None:
        self._do([event for event in self.world.enabled() if event[0] in LAST], 0)
        for choice in choices:
            self._do([event for event in self.world.enabled() if event[0] not in LAST], choice)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def run_machine(
    examples: int,
    *,
    seed: int,
    steps: int = 12,
    shrink: bool = True,
    machine: type[SchedulerMachine] = SchedulerMachine,
) -> None:
    """Run sequences of passages; raise the first failure. Its message has the rules that lead to it."""
    phases = set(Phase) - {Phase.explain} - (set() if shrink else {Phase.shrink, Phase.reuse})
    run_state_machine_as_test(
        set_seed(seed)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=tuple(phases),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
