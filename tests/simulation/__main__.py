"""``python -m tests.simulation``: run seeds on all cores, or replay one seed with a trace of its events.

Each of n worker processes runs every n-th seed and writes a line for each. If a worker dies, the first seed that it did
not report is the cause.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from queue import Queue

import attrs

from .run import Outcome, run_seed

# The number of events before a failure to show; replaying the seed shows all of them.
_LAST_EVENTS = 40
_PROGRESS_EVERY = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that the command line selects. Return the exit code: 1 if a seed failed."""
    options = _parser().parse_args(arguments)
    if options.seed is not None:
        return _replay(options.seed)
    first = secrets.randbits(40) if options.first is None else options.first
    seeds = range(first, first + options.seeds)
    if options.worker is not None:
        return _work(seeds[options.worker :: options.jobs])
    return _simulate(seeds, options.jobs, _command_to_replay(), quiet=options.quiet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--seeds", type=int, default=2000, help="the number of seeds to run (%(default)s)")
    parser.add_argument("--first", type=int, help="the first seed; a fresh one by default")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="the number of processes (one for each core)"
    )
    parser.add_argument("--seed", type=int, help="replay this seed and print every event")
    parser.add_argument("--quiet", action="store_true", help="do not print progress")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _command_to_replay() -> str:
    return "make simulate SEED={seed}"


def _replay(seed: int) -> int:
    outcome = run_seed(seed, print)
    print(f"seed {seed}: {outcome.steps:,} steps, {outcome.spans} spans, digest {outcome.digest:x}")
    print(f"FAILED\n{outcome.failure}" if outcome.failure else "passed")
    return 1 if outcome.failure else 0


# -- workers -------------------------------------------------------------------------------------------------------


def _work(seeds: range) -> int:
    """Run ``seeds`` and write a line of JSON for each."""
    for seed in seeds:
        print(json.dumps(attrs.asdict(run_seed(seed))), flush=True)
    return 0


def _simulate(seeds: range, jobs: int, replay: str, *, quiet: bool) -> int:
    """Run ``seeds`` in ``jobs`` processes until all are done or one has failed."""
    print(f"seeds {seeds.start} to {seeds.stop - 1}, in {jobs} processes", flush=True)
    totals = Totals()
    workers = [_start_worker(seeds, jobs, number) for number in range(jobs)]
    try:
        for outcome in _outcomes(workers, seeds, jobs):
            totals.add(outcome)
            if outcome.failure:
                _report_failure(outcome, replay)
                return 1
            if not quiet and totals.progress_is_due():
                print(totals.line(len(seeds)), file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
    print(totals.summary())
    return 0


def _start_worker(seeds: range, jobs: int, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.simulation", "--first", str(seeds.start), "--seeds", str(len(seeds))]
    return subprocess.Popen(
        [*command, "--jobs", str(jobs), "--worker", str(number)],
        stdout=subprocess.PIPE,
        text=True,
    )


def _outcomes(workers: Sequence[subprocess.Popen[str]], seeds: range, jobs: int) -> Iterator[Outcome]:
    """Yield outcomes as they arrive. For a worker that died, yield a failure of the seed that it did not report."""
    queue: Queue[Outcome | None] = Queue()

    def read(worker: subprocess.Popen[str], own: range) -> None:
        done = 0
        assert worker.stdout is not None
        for line in worker.stdout:
            queue.put(Outcome(**json.loads(line)))
            done += 1
        if done < len(own):
            queue.put(Outcome(own[done], f"its process ended with {worker.wait()}", 0, 0, 0, {}, 0, 0.0))
        queue.put(None)

    for number, worker in enumerate(workers):
        threading.Thread(target=read, args=(worker, seeds[number::jobs]), daemon=True).start()
    running = len(workers)
    while running:
        outcome = queue.get()
        if outcome is None:
            running -= 1
        else:
            yield outcome


def _report_failure(outcome: Outcome, replay: str) -> None:
    events: list[str] = []
    again = run_seed(outcome.seed, events.append)
    print(*events[-_LAST_EVENTS:], sep="\n")
    print(f"seed {outcome.seed} FAILED after {outcome.steps:,} steps\n{outcome.failure}")
    if again.digest != outcome.digest:
        print("a second run of this seed took a different course, so something does not depend on the seed alone")
    print(f"replay it with: {replay.format(seed=outcome.seed)}", flush=True)


class Totals:
    """The sums over all seeds so far."""

    def __init__(self) -> None:
        self._began = self._last_progress = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._seconds = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        self._counts.update(seeds=1, steps=outcome.steps, spans=outcome.spans, requests=outcome.requests)
        self._faults.update(outcome.faults)
        self._seconds += outcome.seconds

    def progress_is_due(self) -> bool:
        """Return whether to print the progress now."""
        now = time.monotonic()
        if now - self._last_progress < _PROGRESS_EVERY:
            return False
        self._last_progress = now
        return True

    def line(self, of: int) -> str:
        """Return the progress in one line."""
        seeds = self._counts["seeds"]
        rate = seeds / (time.monotonic() - self._began)
        return f"{seeds:,} of {of:,} seeds, {rate:.0f} a second, {(of - seeds) / rate:.0f} s left"

    def summary(self) -> str:
        """Return all figures."""
        took = time.monotonic() - self._began
        counts = self._counts
        faults = ", ".join(f"{name} {count:,}" for name, count in self._faults.most_common())
        return (
            f"{counts['seeds']:,} seeds passed in {took:,.0f} s ({counts['seeds'] / took:.0f} a second): "
            f"{counts['steps']:,} steps, {counts['spans']:,} spans, {counts['requests']:,} requests, "
            f"{self._faults.total():,} faults, {self._seconds / 3600:,.1f} hours of the mock clock\n"
            f"faults: {faults}"
        )


if __name__ == "__main__":
    sys.exit(main())
