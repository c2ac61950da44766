"""The soak: a program on the real clock, over real sockets, against a server that fails in every way, for minutes.

It is run by ``make soak MINUTES=10``. Every span is followed by identity (``soak_oracle.py``); what the process uses is
measured every few seconds, printed, and judged at the end (``soak_figures.py`` has the rule). Exit code 1 if a figure
is not flat or the oracle objects. Ctrl-C ends it early, with the figures.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from soak_figures import MIB, SHORTEST, Sample, Verdict, judge, measure
from soak_oracle import ForgettingOracle
from soak_program import Load, MakeExporter, Program, send_over_http
from soak_wire import FAULT, PORT, STORED

__all__ = ["Plan", "Report", "soak"]

Say = Callable[[str], object]

_SERVER = Path(__file__).with_name("soak_server.py")
_ROWS_A_HEADING = 20


@attrs.frozen(kw_only=True)
class Plan:
    """How a soak is run.

    Attributes:
        seconds: How long, if it is not ended by ``spans``.
        spans: After how many accepted spans it ends, None for no number.
        warm_up: The share of the time that is not judged.
        every: Seconds between two measurements.
        seed: Of the program's and the server's dice. The order of events is the clock's and the kernel's all the same.
        load: How much is going on.
    """

    seconds: float = 600.0
    spans: int | None = None
    warm_up: float = 0.3
    every: float = 5.0
    seed: int = 0
    load: Load = attrs.Factory(Load)


@attrs.frozen(kw_only=True)
class Report:
    """What a soak found.

    Attributes:
        samples: What was measured.
        verdicts: Which figures are flat; none if it was too short to tell.
        objections: What the oracle says, and what was left of the batchers after their end.
        faults: Faults injected, by kind.
        counts: Other figures.
    """

    samples: Sequence[Sample]
    verdicts: Sequence[Verdict]
    objections: Sequence[str]
    faults: Mapping[str, int]
    counts: Mapping[str, int]

    @property
    def failures(self) -> list[str]:
        """What does not hold, in sentences."""
        return [
            f"{verdict.gauge.name} is not flat: {verdict.first:,.0f} in the first half, {verdict.second:,.0f} in the "
            f"second; at most {verdict.gauge.most(verdict.first):,.0f} would be"
            for verdict in self.verdicts
            if not verdict.is_flat
        ] + list(self.objections)


class _Server:
    """The server's process, and what it told."""

    def __init__(self, process: trio.Process, oracle: ForgettingOracle) -> None:
        self.faults: Counter[str] = Counter()
        self.port = 0
        self.is_ready = trio.Event()
        self.has_ended = trio.Event()
        self.process = process
        self._oracle = oracle

    async def listen(self) -> None:
        """Read what it tells until it ends."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._heard(line.decode().split())
        self.has_ended.set()
        self.is_ready.set()

    def _heard(self, words: Sequence[str]) -> None:
        match words:
            case [str(word), location, *ids] if word == STORED:
                self._oracle.stored(location, map(int, ids))
            case [str(word), kind] if word == FAULT:
                self.faults[kind] += 1
            case [str(word), port] if word == PORT:
                self.port = int(port)
                self.is_ready.set()
            case _:
                self._oracle.object(f"the server says {words}")


@asynccontextmanager
async def _running_server(seed: int, oracle: ForgettingOracle) -> AsyncIterator[_Server]:
    # In a session of its own: a Ctrl-C at the terminal is not for it.
    process = await trio.lowlevel.open_process(
        [sys.executable, str(_SERVER), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    server = _Server(process, oracle)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listen)
            await server.is_ready.wait()
            if not server.port:
                raise RuntimeError("the soak's server ended before it listened")
            yield server
            assert process.stdin is not None
            await process.stdin.aclose()
            await server.has_ended.wait()
            if await process.wait():
                oracle.object(f"the server ended with code {process.returncode}")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def soak(plan: Plan, *, say: Say, make_exporter: MakeExporter = send_over_http) -> Report:
    """Run a soak and return what it found. SIGINT ends it early.

    Args:
        plan: How it is run.
        say: Takes lines of the table as they come.
        make_exporter: Makes the exporter of each batcher, given the server's URL and dice.
    """
    rng = random.Random(plan.seed)
    oracle = ForgettingOracle()
    samples: list[Sample] = []
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with _running_server(rng.getrandbits(32), oracle) as server:
            url = f"http://127.0.0.1:{server.port}/v1/traces"
            program = Program(plan.load, oracle, url, rng, make_exporter)
            before = measure(0.0, server.process.pid, {})
            stop, started = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, interrupts, stop)
                nursery.start_soon(_watch, plan, program, oracle, server, samples, say, started, stop)
                await program.run(stop, started)
                counts = _counts(program, oracle, server)
                nursery.cancel_scope.cancel()
            after = measure(0.0, server.process.pid, {})
            _compare_ends(before, after, oracle)
    oracle.finish()
    counts |= {"sent twice and stored twice": oracle.counts["stored again"]}
    verdicts = judge(samples, samples[-1].at * plan.warm_up) if samples else []
    return Report(
        samples=samples,
        verdicts=verdicts,
        objections=oracle.objections,
        faults=dict(server.faults),
        counts=program.counts | Counter(counts),
    )


async def _stop_on_signal(interrupts: AsyncIterator[int], stop: trio.Event) -> None:
    async for _ in interrupts:
        stop.set()


async def _watch(
    plan: Plan,
    program: Program,
    oracle: ForgettingOracle,
    server: _Server,
    samples: list[Sample],
    say: Say,
    started: trio.Event,
    stop: trio.Event,
) -> None:
    """Measure until it is time to stop."""
    await started.wait()
    began = trio.current_time()
    last = Sample(at=0.0, memory=0, server_memory=0, objects=0, blocks=0, tasks=0, sockets=0, lanes=0)
    for row in itertools.count():
        await trio.sleep(plan.every)
        if stop.is_set():
            return
        program.compare()
        oracle.sweep()
        at = trio.current_time() - began
        sample = measure(at, server.process.pid, _growing(program, oracle, server))
        samples.append(sample)
        if row % _ROWS_A_HEADING == 0:
            say(_HEADING)
        say(_row(sample, last))
        last = sample
        if at >= plan.seconds or (plan.spans is not None and oracle.accepted >= plan.spans):
            stop.set()


def _growing(program: Program, oracle: ForgettingOracle, server: _Server) -> dict[str, int]:
    return {
        "remembered": len(oracle),
        "names": program.names,
        "accepted": oracle.accepted,
        "requests": program.total("requests"),
        "retries": program.total("retries"),
        "faults": sum(server.faults.values()),
    }


def _counts(program: Program, oracle: ForgettingOracle, server: _Server) -> dict[str, int]:
    totals = ("requests", "retries", "splits", "ambiguous")
    return {
        "names of locations": program.names,
        "spans accepted": oracle.accepted,
        **{f"spans {outcome}": count for outcome, count in oracle.outcomes.items()},
        "good spans rejected": oracle.counts["good spans rejected"],
        **{name: program.total(name) for name in totals},
    }


def _compare_ends(before: Sample, after: Sample, oracle: ForgettingOracle) -> None:
    """Object if something is left that was not there before the first batcher."""
    for name in ("tasks", "sockets", "lanes"):
        if getattr(after, name) != getattr(before, name):
            oracle.object(f"{name} after the end: {getattr(after, name)}; before: {getattr(before, name)}")


# -- the tables ------------------------------------------------------------------------------------------------

_HEADING = (
    "   time  memory  server  objects   blocks  tasks  sockets  lanes  names  remembered  spans/s"
    "  requests  retries  faults"
)


def _row(sample: Sample, last: Sample) -> str:
    minutes, seconds = divmod(int(sample.at), 60)
    rate = (sample.accepted - last.accepted) / (sample.at - last.at)
    return (
        f"{minutes:4d}:{seconds:02d}{sample.memory / MIB:8.1f}{sample.server_memory / MIB:8.1f}{sample.objects:9d}"
        f"{sample.blocks:9d}{sample.tasks:7d}{sample.sockets:9d}{sample.lanes:7d}{sample.names:7d}"
        f"{sample.remembered:12d}{rate:9.0f}{sample.requests:10d}{sample.retries:9d}{sample.faults:8d}"
    )


def _summary(report: Report) -> Iterator[str]:
    yield ""
    yield from (f"{count:12,d} {name}" for name, count in sorted(report.counts.items()))
    yield ""
    yield f"faults: {sum(report.faults.values()):,d}"
    yield from (f"{count:12,d} {kind}" for kind, count in sorted(report.faults.items()))
    yield ""
    if report.verdicts:
        yield "median after the warm-up:     first half   second half       at most"
    else:
        yield f"too short to judge what is flat: it takes {SHORTEST:.0f} s after the warm-up"
    for verdict in report.verdicts:
        most = verdict.gauge.most(verdict.first)
        word = "flat" if verdict.is_flat else "NOT FLAT"
        yield f"{verdict.gauge.name:>24s}{verdict.first:16,.0f}{verdict.second:14,.0f}{most:14,.0f}  {word}"
    yield ""
    yield from (f"FAILED: {failure}" for failure in report.failures)
    if not report.failures:
        yield "passed: every span is accounted for" + (", and every figure is flat" if report.verdicts else "")


# -- the command -----------------------------------------------------------------------------------------------


def _plan(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(description="Run batchers for minutes against a server that fails in every way.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: %(default)s)")
    parser.add_argument("--spans", type=int, help="end after so many spans, if that is earlier")
    parser.add_argument("--rate", type=float, default=300.0, help="spans a second (default: %(default)s)")
    parser.add_argument("--locations", type=int, default=200, help="locations at a time (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between measurements (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the dice (default: a new one)")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    return Plan(
        seconds=seconds,
        spans=options.spans,
        every=options.every,
        seed=random.SystemRandom().getrandbits(32) if options.seed is None else options.seed,
        load=Load(spans_per_second=options.rate, locations=options.locations, generation=max(seconds / 10, 1.0)),
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _leaks_noted() -> Iterator[list[str]]:
    """Note what is left to the garbage collector: a socket, a file, an async generator."""
    left_behind: list[str] = []
    with warnings.catch_warnings():
        # Where the collector works nothing can be raised: a warning that is an error goes to this hook.
        warnings.simplefilter("error")
        hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: left_behind.append(str(unraisable.exc_value))
        try:
            yield left_behind
            gc.collect()
        finally:
            sys.unraisablehook = hook


def main(arguments: Sequence[str]) -> int:
    """Run a soak as the command line says. Return the exit code."""
    plan = _plan(arguments)
    _say(f"soak: {plan.seconds / 60:g} minutes, {plan.load.spans_per_second:g} spans a second, seed {plan.seed}")
    with _leaks_noted() as left_behind:
        report = trio.run(partial(soak, plan, say=_say))
    report = attrs.evolve(report, objections=[*report.objections, *left_behind])
    for line in _summary(report):
        _say(line)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
