"""The scenarios that run with a cancel after each of their steps: small programs and their settings.

Each program is written once, for every `World`. A script's answers depend on the location and its spans, not on the
order of requests of several locations, so that cancelling one adder or flusher changes nothing for the others; the
exceptions are not `Scenario.steady`. Programs make their spans first, so that ids are the same in every run. With an
exporter in memory, a scenario has at most `MAX_STEPS` scheduling steps.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from tests.cancellation import failures as failures
from tests.cancellation import programs as programs
from tests.cancellation.support import Script, Settings, World, everything_is_delivered
from trio_spanbatch import BatchPolicy, Limits, RetryPolicy

__all__ = ["MAX_STEPS", "SCENARIOS", "TWICE", "Scenario"]

MAX_STEPS = 300

NEVER = BatchPolicy(max_spans=100, max_delay=1e6)
ONE = BatchPolicy(max_spans=1)
TWO = BatchPolicy(max_spans=2, max_delay=1)
QUICK_RETRY = RetryPolicy(initial=0.5, maximum=1)


@attrs.frozen
class Scenario:
    """A program and its server.

    Attributes:
        program: The body of the batcher's ``async with``.
        settings: The settings of its world.
        steady: Whether spans keep their outcome when another adder or flusher is cancelled.
        tracebacks: Parts of log messages that are expected to have a traceback.
        forgets_locations: Whether there are more locations than the statistics keep.
    """

    program: Callable[[World], Awaitable[None]]
    settings: Settings = attrs.field(factory=Settings)
    steady: bool = True
    tracebacks: Sequence[str] = ()
    forgets_locations: bool = False

    @property
    def name(self) -> str:
        return self.program.__name__


def given(script: Script = everything_is_delivered, *, delay: float = 0.0, **options: Any) -> Settings:
    """Return settings; ``options`` are other fields of `Settings` and arguments of the batcher."""
    own = {name: options.pop(name) for name in ("closing_hangs", "refused", "shutdown_timeout") if name in options}
    return Settings(script, delay, batcher=options, **own)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(programs.entering),
        Scenario(programs.quiet),
        Scenario(
            programs.full_queues,
            given(delay=1.0, batch=TWO, limits=Limits(max_queued_spans=4, max_exports=1)),
            # Which spans are accepted depends on how full the queues are.
            steady=False,
        ),
        Scenario(
            programs.waiting_for_the_queue,
            given(delay=0.25, batch=TWO, limits=Limits(max_queued_spans=2)),
        ),
        Scenario(
            programs.waiting_for_bytes,
            given(delay=0.25, batch=NEVER, limits=Limits(max_pending_bytes=600, max_exports=2)),
        ),
        Scenario(
            programs.a_long_list,
            given(
                delay=0.25,
                batch=BatchPolicy(max_spans=64),
                limits=Limits(max_queued_spans=66),
            ),
        ),
        Scenario(programs.flush_in_progress, given(delay=1.0, batch=ONE)),
        Scenario(
            programs.drain_in_progress,
            given(delay=1.0, batch=TWO, limits=Limits(max_queued_spans=6, max_exports=2)),
            # Adders from outside race with the drain.
            steady=False,
        ),
        Scenario(programs.ending_by_idleness, given(batch=ONE, limits=Limits(location_idle_timeout=3))),
        Scenario(
            programs.many_locations,
            given(batch=ONE, limits=Limits(max_locations=3)),
            forgets_locations=True,
        ),
        Scenario(
            failures.backoff,
            given(
                failures.fails_twice,
                delay=0.25,
                batch=TWO,
                limits=Limits(max_queued_spans=3),
                retry=QUICK_RETRY,
            ),
        ),
        Scenario(failures.retry_after, given(failures.says_when, batch=TWO)),
        *(
            Scenario(
                program,
                given(script, delay=0.25, refused=refused, batch=ONE, limits=Limits(max_exports=3), retry=QUICK_RETRY),
            )
            for program, script, refused in (
                (failures.outage, failures.refuses_connections_first, 5),
                (failures.overload, failures.says_503_first, 0),
            )
        ),
        Scenario(failures.broken_connections, given(failures.breaks_first, batch=TWO, retry=QUICK_RETRY)),
        Scenario(failures.isolation, given(failures.every_fourth_is_bad, delay=0.25, batch=NEVER)),
        Scenario(failures.refusing_everything, given(failures.a_refuses_everything, delay=0.25, batch=NEVER)),
        Scenario(failures.too_large, given(failures.takes_two_at_once, delay=0.25, batch=NEVER)),
        Scenario(
            failures.hanging,
            given(failures.one_hangs, batch=TWO, retry=RetryPolicy(attempt_timeout=math.inf)),
        ),
        Scenario(
            failures.timing_out,
            given(
                failures.hangs_first,
                delay=0.25,
                batch=TWO,
                limits=Limits(max_exports=1),
                retry=RetryPolicy(initial=0.5, maximum=1, attempt_timeout=2),
            ),
        ),
        Scenario(
            failures.one_slot,
            given(
                failures.two_fail_first,
                delay=1.0,
                batch=TWO,
                limits=Limits(max_exports=1),
                retry=QUICK_RETRY,
            ),
        ),
        Scenario(failures.repeated_in_turns, given(failures.fails_later, delay=0.25, batch=ONE)),
        Scenario(
            failures.partial_success_of_batches,
            given(failures.leaves_out_the_last, delay=0.25, batch=NEVER),
            # Which span is the last depends on the others in the batch.
            steady=False,
        ),
        Scenario(failures.raising, given(failures.one_raises, delay=0.25, batch=TWO), tracebacks=["exporter raised"]),
        Scenario(
            failures.adding_again,
            given(failures.a_is_forbidden, delay=0.25, batch=TWO),
            # Which spans are added depends on how many batches are lost.
            steady=False,
        ),
        Scenario(failures.closing_hangs, given(delay=0.25, closing_hangs=True, batch=ONE)),
        Scenario(
            failures.no_time_at_all,
            given(delay=0.4, shutdown_timeout=0.5, batch=TWO),
            steady=False,
        ),
    )
}

# Small scenarios whose drain has work to do: they run with two cancels, first of the body and then of this scope.
TWICE = {
    "retry_after": "everything",
    "closing_hangs": "everything",
    "hanging": "ctrl-c",
    "no_time_at_all": "ctrl-c",
}
