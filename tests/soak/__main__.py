"""The soak: a program on the real clock, over real sockets, against a server that fails in every way, for minutes.

Run it with ``make soak MINUTES=10``. It follows every span by id (``oracle.py``), and measures and prints the resource
usage of the process every few seconds. At the end it checks that each figure is flat (``figures.py`` has the rule). The
exit code is 1 if one is not, or if the oracle has found a violation. Ctrl-C ends it early, with the figures.
"""

from __future__ import annotations

import argparse
import gc
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import attrs
import trio

from tests.soak.child import running_server
from tests.soak.figures import AT_REST, SHORTEST, UNDER_WAY, Sample, Verdict, judge, measure
from tests.soak.oracle import ForgettingOracle
from tests.soak.program import Load, MakeExporter, Program, send_over_http
from tests.soak.watch import Watch

__all__ = ["Plan", "Report", "soak"]

Say = Callable[[str], object]

# The number of generations of the batcher in a run without rests in between.
GENERATIONS = 15


@attrs.frozen(kw_only=True)
class Plan:
    """The settings of a soak.

    Attributes:
        seconds: The duration, if ``spans`` does not end it earlier.
        spans: The number of accepted spans after which it ends, or None.
        rests: The number of rests that there must be before ``spans`` ends it.
        warm_up: The share of the time that is not judged.
        every: Seconds between two measurements.
        patience: Seconds after which the oracle forgets a span that is accounted for.
        seed: The seed of the program's and the server's random numbers. The order of events still depends on the clock
            and the kernel.
        load: The load.
    """

    seconds: float = 600.0
    spans: int | None = None
    rests: int = 0
    warm_up: float = 0.3
    every: float = 5.0
    patience: float = 15.0
    seed: int = 0
    load: Load = attrs.Factory(Load)


@attrs.frozen(kw_only=True)
class Report:
    """The results of a soak.

    Attributes:
        samples: The measurements.
        verdicts: Whether each figure is flat; empty if the soak was too short.
        violations: The violations that the oracle found, and resources that were left after the end.
        faults: Faults injected, by kind.
        counts: Other figures.
    """

    samples: Sequence[Sample]
    verdicts: Sequence[Verdict]
    violations: Sequence[str]
    faults: Mapping[str, int]
    counts: Mapping[str, int]

    @property
    def failures(self) -> list[str]:
        """All failures, as sentences."""
        return [
            f"{verdict.gauge.label} is not flat: {verdict.first:,.0f} in the first half, {verdict.second:,.0f} in the "
            f"second, where at most {verdict.gauge.most(verdict.first):,.0f} is allowed"
            for verdict in self.verdicts
            if not verdict.is_flat
        ] + list(self.violations)


async def soak(plan: Plan, *, say: Say, make_exporter: MakeExporter = send_over_http) -> Report:
    """Run a soak and return its results. SIGINT ends it early.

    Args:
        plan: The settings.
        say: Called with each line of the table.
        make_exporter: Makes the exporter of each batcher, from the server's URL and a random number generator.
    """
    rng = random.Random(plan.seed)
    oracle = ForgettingOracle(patience=plan.patience)
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with running_server(rng.getrandbits(32), oracle) as server:
            watch = Watch(oracle, server, say)
            program = Program(
                plan.load, oracle, rng, partial(make_exporter, server.url), server.drop_connections, watch.note_rest
            )
            before = measure(0.0, server.process.pid, {})
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, interrupts, stop)
                nursery.start_soon(_stop_in_time, watch, program, oracle, plan, stop)
                await program.run(stop)
                nursery.cancel_scope.cancel()
            after = measure(0.0, server.process.pid, {})
            _compare_ends(before, after, oracle)
    oracle.finish()
    warm_up = watch.seconds * plan.warm_up
    return Report(
        samples=watch.samples,
        verdicts=[*judge(watch.samples, warm_up, UNDER_WAY), *judge(watch.rests, warm_up, AT_REST)],
        violations=oracle.violations,
        faults=dict(server.faults),
        counts=program.counts | Counter(_counts(program, oracle)),
    )


async def _stop_on_signal(interrupts: AsyncIterator[int], stop: trio.Event) -> None:
    async for _ in interrupts:
        stop.set()


async def _stop_in_time(watch: Watch, program: Program, oracle: ForgettingOracle, plan: Plan, stop: trio.Event) -> None:
    while not _is_over(watch, oracle, plan):
        await trio.sleep(plan.every)
        watch.look(program)
    stop.set()


def _is_over(watch: Watch, oracle: ForgettingOracle, plan: Plan) -> bool:
    if plan.spans is not None and oracle.accepted >= plan.spans and len(watch.rests) >= plan.rests:
        return True
    return watch.seconds >= plan.seconds


def _counts(program: Program, oracle: ForgettingOracle) -> dict[str, int]:
    totals = ("requests", "retries", "splits", "ambiguous")
    return {
        "names of locations": program.names,
        "spans accepted": oracle.accepted,
        **{f"spans {outcome}": count for outcome, count in oracle.outcomes.items()},
        **oracle.counts,
        **{name: program.total(name) for name in totals},
    }


def _compare_ends(before: Sample, after: Sample, oracle: ForgettingOracle) -> None:
    """Report a violation if there are other numbers of tasks, sockets or locations than before the first batcher."""
    for name in ("tasks", "sockets", "locations"):
        if getattr(after, name) != getattr(before, name):
            oracle.report(f"{name} after the end: {getattr(after, name)}; before: {getattr(before, name)}")


# -- the tables ------------------------------------------------------------------------------------------------


def _summary(report: Report) -> Iterator[str]:
    yield ""
    yield from (f"{count:12,d} {name}" for name, count in sorted(report.counts.items()))
    yield ""
    yield f"faults: {sum(report.faults.values()):,d}"
    yield from (f"{count:12,d} {kind}" for kind, count in sorted(report.faults.items()))
    yield ""
    if report.verdicts:
        yield "median after the warm-up:       first half   second half       at most"
    else:
        yield f"too short to judge the figures: that takes {SHORTEST:.0f} s after the warm-up"
    for verdict in report.verdicts:
        most = verdict.gauge.most(verdict.first)
        word = "flat" if verdict.is_flat else "NOT FLAT"
        yield f"{verdict.gauge.label:>26s}{verdict.first:16,.0f}{verdict.second:14,.0f}{most:14,.0f}  {word}"
    yield ""
    yield from (f"FAILED: {failure}" for failure in report.failures)
    if not report.failures:
        yield "passed: every span is accounted for" + (", and every figure is flat" if report.verdicts else "")


# -- the command -----------------------------------------------------------------------------------------------


def _plan(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(description="Run batchers for minutes against a server that fails in every way.")
    parser.add_argument("--minutes", type=float, default=10.0, help="the duration (default: %(default)s)")
    parser.add_argument("--spans", type=int, help="end after this number of spans, if that is earlier")
    parser.add_argument("--rate", type=float, default=300.0, help="spans a second (default: %(default)s)")
    parser.add_argument("--locations", type=int, default=200, help="locations at a time (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between measurements (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the seed of the random numbers (default: a new one)")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    return Plan(
        seconds=seconds,
        spans=options.spans,
        every=options.every,
        seed=random.SystemRandom().getrandbits(32) if options.seed is None else options.seed,
        load=Load(
            spans_per_second=options.rate,
            locations=options.locations,
            generation=max(seconds / GENERATIONS, 1.0),
        ),
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _leaks_noted() -> Iterator[list[str]]:
    """Record resources that are left to the garbage collector: a socket, a file, an async generator."""
    left_behind: list[str] = []
    with warnings.catch_warnings():
        # The collector cannot raise exceptions: a warning that is an error goes to this hook.
        warnings.simplefilter("error")
        hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: left_behind.append(str(unraisable.exc_value))
        try:
            yield left_behind
            gc.collect()
        finally:
            sys.unraisablehook = hook


def main(arguments: Sequence[str]) -> int:
    """Run the soak that the command line describes. Return the exit code."""
    plan = _plan(arguments)
    _say(f"soak: {plan.seconds / 60:g} minutes, {plan.load.spans_per_second:g} spans a second, seed {plan.seed}")
    with _leaks_noted() as left_behind:
        report = trio.run(partial(soak, plan, say=_say))
    report = attrs.evolve(report, violations=[*report.violations, *left_behind])
    for line in _summary(report):
        _say(line)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
