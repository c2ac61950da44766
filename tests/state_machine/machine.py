"""A state machine that drives a batcher through everything that users, servers and the clock can do to it.

Hypothesis picks small limits and then a sequence of rules. After each step of each task, `Model` checks that what the
batcher shows is possible; whenever the run comes to rest, `RestCheck` checks that nothing was left undone. A rule does
one thing and then lets the run continue: until it is blocked, or only for a few steps, so that the next rule falls in
the middle of something.

The sizes and the limits are chosen so that sums of sizes often meet a limit exactly, or miss it by one.
"""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as set_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.state_machine.driver import Driver
from tests.state_machine.location import Settings, request_size
from trio_spanbatch import BatchPolicy, Delivered, EncodedSpan, Limits, Refused, RetryPolicy, TryLater
from trio_spanbatch._spans.batch import SpanHeaders

__all__ = ["SpanBatcherMachine", "run_state_machine"]

LOCATIONS = ("a", "b", "c", "d")

# Resources and scopes: a batch may hold spans of several, and its exact size depends on them.
HEADERS = (
    SpanHeaders(),
    SpanHeaders(b"\x0a\x00", b"\x0a\x00"),
    SpanHeaders(b"\x0a\x00", b"\x0a\x03\x0a\x01x"),
    SpanHeaders(b"\x0a\x02\x10\x01", b"\x0a\x00"),
)


def make_spans(sizes: list[int], made: Counter[int] | None = None) -> list[EncodedSpan]:
    """Make spans. ``made`` counts those of each size that there are already: no two of them have the same bytes."""
    made = Counter() if made is None else made
    spans: list[EncodedSpan] = []
    for size in sizes:
        number = made[size].to_bytes(2, "big")[-size:]
        spans.append(EncodedSpan(number + b"x" * (size - len(number)), HEADERS[size % len(HEADERS)]))
        made[size] += 1
    return spans


SIZES = st.sampled_from([50, 25, 24, 51, 1, 100, 140])

POLICIES = st.builds(
    BatchPolicy,
    max_spans=st.sampled_from([3, 2, 4, 1]),
    max_bytes=st.sampled_from(
        [5000, request_size(make_spans([50, 50])), request_size(make_spans([50, 25])) - 1, 120, 1]
    ),
    max_delay=st.sampled_from([math.inf, 4.0, 1.0]),
)

LIMITS = st.builds(
    Limits,
    max_queued_spans=st.sampled_from([4, 3, 6, 2, 1]),
    max_pending_bytes=st.sampled_from([150, 200, 300, 5000]),
    max_pending_bytes_per_location=st.sampled_from([5000, 150, 200]),
    max_locations=st.sampled_from([4, 4, 3, 2, 1]),
    max_exports=st.sampled_from([2, 1, 4, 3, 6]),
    max_exports_per_location=st.sampled_from([3, 2, 1]),
    location_idle_timeout=st.sampled_from([math.inf, math.inf, 8.0, 1.0]),
)

RETRIES = st.builds(
    RetryPolicy,
    initial=st.sampled_from([2.0, 0.5]),
    maximum=st.sampled_from([8.0, 2.0]),
    multiplier=st.sampled_from([2.0, 1.0]),
    max_elapsed=st.sampled_from([math.inf, 20.0, 3.0]),
    attempt_timeout=st.sampled_from([math.inf, 10.0, 2.0]),
)

SETTINGS = st.builds(
    Settings,
    limits=LIMITS,
    retry=RETRIES,
    policies=st.tuples(POLICIES, POLICIES).map(lambda two: dict(zip(LOCATIONS, two * 2, strict=True))),
    jitter=st.sampled_from([1.0, 0.5]),
    shutdown_timeout=st.sampled_from([4.0, 30.0, 0.5, 0.0]),
)

ANSWERS = st.sampled_from(
    [
        *[Delivered()] * 5,
        Delivered(rejected=1),
        Delivered(rejected=3),
        TryLater("busy"),
        TryLater("broken", ambiguous=True),
        TryLater("overloaded", after=1.5),
        TryLater("overloaded", after=6.0),
        Refused("no"),
        Refused("bad spans", status_code=400, isolate=True),
        Refused("too large", status_code=413, isolate=True),
        RuntimeError("a bug"),
        "no result",
    ]
)

# The number of steps for which a rule lets the run continue; None is until it is blocked.
STEPS = st.sampled_from([None, None, None, None, 0, 1, 2])

WHICH = st.integers(0, 5)
WHERE = st.integers(0, 11)


class SpanBatcherMachine(RuleBasedStateMachine):
    """Actions of programs, servers and the clock."""

    driver: Driver | None = None

    @initialize(
        options=SETTINGS,
        places=st.sampled_from([2, 3, 4, 1]),
        leave_after=st.sampled_from([400, 200, 100, 0]),
        last_answer=st.sampled_from([Delivered(), None]),
    )
    def enter(self, options: Settings, places: int, leave_after: int, last_answer: object) -> None:
        self.places = places
        self.made: Counter[int] = Counter()
        self.leave_after = leave_after
        self.last_answer = last_answer
        self.driver = Driver(options)
        with self.driver.acting(None):
            pass

    @initialize(_=st.random_module())
    def seed_the_scheduler(self, _: object) -> None:
        """Have Hypothesis seed the random number generator that trio uses."""

    @property
    def batcher(self) -> Driver:
        assert self.driver is not None
        return self.driver

    def _spans(self, sizes: list[int]) -> list[EncodedSpan]:
        return make_spans(sizes, self.made)

    def _place(self, where: int) -> str:
        return LOCATIONS[where % self.places]

    # -- programs ----------------------------------------------------------------------------------------------

    @rule(where=WHERE, sizes=st.lists(SIZES, min_size=1, max_size=4), steps=STEPS)
    def add_nowait(self, where: int, sizes: list[int], steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.add_nowait(self._place(where), self._spans(sizes))

    @rule(where=WHERE, size=SIZES, steps=STEPS)
    def fill(self, where: int, size: int, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.fill(self._place(where), self._spans([size] * 6))

    @precondition(lambda self: len(self.batcher.adders) < 6)
    @rule(where=WHERE, sizes=st.lists(SIZES, min_size=1, max_size=3), steps=STEPS)
    def start_adder(self, where: int, sizes: list[int], steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.start_adder(self._place(where), self._spans(sizes))

    @precondition(lambda self: len(self.batcher.adders) < 4)
    @rule(where=WHERE, sizes=st.lists(SIZES, min_size=2, max_size=4), steps=STEPS)
    def start_adders(self, where: int, sizes: list[int], steps: int | None) -> None:
        """Start an adder for each of several locations."""
        with self.batcher.acting(steps):
            for number, size in enumerate(sizes):
                self.batcher.start_adder(self._place(where + number), self._spans([size]))

    @precondition(lambda self: self.batcher.adders)
    @rule(which=WHICH, steps=STEPS)
    def cancel_adder(self, which: int, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.cancel_adder(which)

    @precondition(lambda self: len(self.batcher.flushers) < 3)
    @rule(where=st.none() | WHERE, steps=STEPS)
    def start_flush(self, where: int | None, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.start_flush(None if where is None else self._place(where))

    @precondition(lambda self: self.batcher.flushers)
    @rule(which=WHICH, steps=STEPS)
    def cancel_flush(self, which: int, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.cancel_flush(which)

    @precondition(lambda self: self.leave_after <= self.batcher.model.step and not self.batcher.model.draining)
    @rule(how=st.sampled_from(["return", "raise", "cancel"]), steps=STEPS)
    def leave_body(self, how: str, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.leave_body(how)

    # -- servers and time --------------------------------------------------------------------------------------

    @precondition(lambda self: self.batcher.unanswered())
    @rule(which=WHICH, answer=ANSWERS, steps=STEPS)
    def answer(self, which: int, answer: object, steps: int | None) -> None:
        with self.batcher.acting(steps):
            exports = self.batcher.unanswered()
            self.batcher.answer(exports[which % len(exports)], answer)

    @precondition(lambda self: len(self.batcher.unanswered()) > 1)
    @rule(answer=ANSWERS, steps=STEPS)
    def answer_all(self, answer: object, steps: int | None) -> None:
        with self.batcher.acting(steps):
            for export in self.batcher.unanswered():
                self.batcher.answer(export, answer)

    @rule(where=WHERE, size=SIZES, rounds=st.integers(1, 3))
    def all_is_well_for_a_while(self, where: int, size: int, rounds: int) -> None:
        """Let a location reach several concurrent exports."""
        for _ in range(rounds):
            with self.batcher.acting(None):
                self.batcher.fill(self._place(where), self._spans([size] * 6))
            with self.batcher.acting(None):
                for export in self.batcher.unanswered():
                    self.batcher.answer(export, Delivered())
        with self.batcher.acting(None):
            self.batcher.fill(self._place(where), self._spans([size] * 6))

    @precondition(lambda self: self.batcher.seconds_to_next_time() < math.inf)
    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.5, 8.0]), steps=STEPS)
    def let_time_pass(self, seconds: float, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.let_time_pass(seconds)

    @precondition(lambda self: 0 < self.batcher.seconds_to_next_time() < math.inf)
    @rule(steps=STEPS)
    def wait_for_what_comes_next(self, steps: int | None) -> None:
        with self.batcher.acting(steps):
            self.batcher.let_time_pass(self.batcher.seconds_to_next_time())

    # -- the end -----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """End the run: properly, or by force if a check has failed."""
        if self.driver is None:
            return
        try:
            if not self.driver.broken:
                self.driver.end(self.last_answer)
        finally:
            self.driver.abandon()


def run_state_machine(
    examples: int,
    *,
    seed: int,
    steps: int = 40,
    shrink: bool = True,
    machine: type[SpanBatcherMachine] = SpanBatcherMachine,
) -> None:
    """Drive batchers through random sequences of rules; raise the first failure.

    Its message has the rules that lead to it.

    Args:
        examples: The number of sequences.
        seed: The seed of the sequences: they are the same as long as the code is the same.
        steps: The most rules in a sequence.
        shrink: Look for a shorter sequence that fails.
        machine: The class that has the rules.
    """
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
