"""The six machines that look for faults, each run in a child process against a copy of the package.

- the simulation: fresh seeds, until one fails;
- cancelling everywhere: the same runs each time, with a cancel after each step, until one fails;
- the state machine: fresh sequences of rules, until one fails;
- the scheduler: fresh sequences of events of the scheduler alone, until one fails;
- the interruption sweep: calls of the batcher, each with an exception of a signal handler at each line, until one
  fails;
- the spool: the tests of admission and of a batcher with a spool in memory, until one fails;
- the stores of the spool: processes that share one and are killed, files that fail and are damaged, until one fails.

A child that crashes or does not end in time counts as a failure too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import attrs

from tests.planted_faults.faults import Machine, PlantedFault
from tests.support.processes import run_to_end

__all__ = ["MACHINES", "Search", "find"]

# The maximum number of runs of a machine for a fault. A fault needs at most a fiftieth of this on average, with the
# machine that it names, so it is missed once in e**50 times.
BOUNDS: dict[Machine, int] = {
    "simulation": 2500,
    "state machine": 2500,
    "scheduler": 25_000,
    "cancel everywhere": 0,
    "interruption sweep": 0,
    "spool": 0,
    "stores": 0,
}


@attrs.frozen
class Search:
    """The result of a machine.

    Attributes:
        runs: The number of seeds, cancels, sequences or interruptions, the failing one included.
        failure: The most informative line of its output; None if it found nothing.
    """

    runs: int
    failure: str | None


def simulate(environ: Mapping[str, str], seeds: int, scenario: str | None) -> Search:
    ended = _run(["-m", "tests.simulation", "--seeds", str(seeds), "--jobs", "1", "--quiet"], environ)
    said = ended.stdout
    if ended.returncode == 0:
        return Search(seeds, None)
    failed = re.search(r"^seed (\d+) FAILED .*\n(?s:(.*?))^replay it", said, re.MULTILINE)
    first = re.match(r"seeds (\d+) to", said)
    if failed is None or first is None:
        return Search(0, first_line(said + ended.stderr))
    return Search(int(failed[1]) - int(first[1]) + 1, first_line(failed[2]))


def cancel_everywhere(environ: Mapping[str, str], _bound: int, scenario: str | None) -> Search:
    only = [] if scenario is None else ["--scenario", scenario]
    ended = _run(["-m", "tests.cancellation", "--quick", "--jobs", "1", "--json", *only], environ)
    return _read(ended)


def drive_state_machine(environ: Mapping[str, str], examples: int, _scenario: str | None) -> Search:
    return _read(_run(["-m", "tests.state_machine", "--sequences", str(examples), "--no-shrink", "--json"], environ))


def drive_scheduler(environ: Mapping[str, str], sequences: int, _scenario: str | None) -> Search:
    return _read(_run(["-m", "tests.unit.scheduler", "--sequences", str(sequences)], environ))


def sweep_interruptions(environ: Mapping[str, str], _bound: int, scenario: str | None) -> Search:
    # Not by pytest, which puts the project's directory before the copy.
    only = [] if scenario is None else ["--scene", scenario]
    return _read(_run(["-m", "tests.planted_faults.sweep", *only], environ))


def run_tests_of_spool(environ: Mapping[str, str], _bound: int, _scenario: str | None) -> Search:
    return _read(_run(["-m", "tests.spool.on_the_clock"], environ))


def exercise_stores(environ: Mapping[str, str], _bound: int, _scenario: str | None) -> Search:
    return _read(_run(["-m", "tests.spool"], environ))


# The arguments are the environment with the copy, the maximum number of runs, and the scenario to run, if only one.
MACHINES: dict[Machine, Callable[[Mapping[str, str], int, str | None], Search]] = {
    "simulation": simulate,
    "state machine": drive_state_machine,
    "scheduler": drive_scheduler,
    "cancel everywhere": cancel_everywhere,
    "interruption sweep": sweep_interruptions,
    "spool": run_tests_of_spool,
    "stores": exercise_stores,
}


def find(environ: Mapping[str, str], fault: PlantedFault) -> dict[Machine, Search]:
    """Run the machines until one fails, beginning with the one that the fault names.

    Args:
        environ: The environment that has the copy with the fault.
        fault: The fault.

    Returns:
        The result of each machine, in the order in which they ran.
    """
    searches: dict[Machine, Search] = {}
    for machine in sorted(MACHINES, key=lambda machine: machine != fault.first):
        scenario = fault.scenario if machine == fault.first else None
        searches[machine] = MACHINES[machine](environ, BOUNDS[machine], scenario)
        if searches[machine].failure is not None:
            break
    return searches


def _run(arguments: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    try:
        return run_to_end(command, environ=environ)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 1, "", f"no end within {error.timeout:g} s")


def _read(ended: subprocess.CompletedProcess[str]) -> Search:
    last = ended.stdout.strip().rpartition("\n")[2]
    if not last.startswith("{"):
        return Search(0, first_line(ended.stdout + ended.stderr))
    result = json.loads(last)
    return Search(result["runs"], first_line(result["failure"]) if result["failure"] else None)


def first_line(text: str) -> str:
    """Return the most informative line: the last one of a traceback, or else the first one."""
    lines = [stripped for line in text.splitlines() if (stripped := line.strip(" |+-^~"))]
    if not lines:
        return "it ended without any output"
    ends = [
        number
        for number, line in enumerate(lines)
        if re.match(r"([\w.]+\.)?[A-Z]\w+(Error|Cancelled|Definition|Stuck)\b", line)
    ]
    if not lines[0].startswith(("Traceback", "Exception Group")) or not ends:
        return lines[0]
    end = ends[0]
    # A bare assertion has no message outside pytest: show its source line.
    is_bare = ": " not in lines[end] or len(lines[end]) < len("AssertionError: ") + 4
    return f"{lines[end - 1]}" if is_bare else lines[end]
