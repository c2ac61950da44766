"""The three machines that look for faults, each run in a child process against any copy of the package.

- the simulation: fresh seeds, until one fails;
- cancelling everywhere: the same runs each time, with a cancel after each step, until one fails;
- the state machine: fresh sequences of rules, until one fails.

A child that crashes, or does not end in time, has found something as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import attrs

from tests.planted_faults.faults import Machine
from tests.support.processes import run_to_end

__all__ = ["MACHINES", "Search"]

# Runs `state_machine` until it fails. Tells how many sequences there were, and how it failed.
_STATE_MACHINE = """
import json, sys, traceback
from unittest import mock
from tests.state_machine import machine as state_machine

ran = 0

class Counted(state_machine.SpanBatcherMachine):
    def __init__(self) -> None:
        global ran
        ran += 1
        super().__init__()

failure = None
with mock.patch.object(state_machine, "SpanBatcherMachine", Counted):
    try:
        state_machine.run_state_machine(examples=int(sys.argv[1]), shrink=False)
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        failure = "".join(traceback.format_exception(error, chain=False))
print(json.dumps({"runs": ran, "failure": failure}))
"""


@attrs.frozen
class Search:
    """What a machine found.

    Attributes:
        runs: How many seeds, cancels or sequences of rules there were, the failing one included.
        failure: The first line of what it says; None if it found nothing.
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
    return _read(_run(["-c", _STATE_MACHINE, str(examples)], environ))


# Each is given the environment that has the copy, a bound of runs, and a scenario if it is about one.
MACHINES: dict[Machine, Callable[[Mapping[str, str], int, str | None], Search]] = {
    "simulation": simulate,
    "state machine": drive_state_machine,
    "cancel everywhere": cancel_everywhere,
}


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
    """Return the line that tells most of what went wrong: of a traceback its end, else the first one."""
    lines = [stripped for line in text.splitlines() if (stripped := line.strip(" |+-^~"))]
    if not lines:
        return "it died without a word"
    ends = [
        number
        for number, line in enumerate(lines)
        if re.match(r"([\w.]+\.)?[A-Z]\w+(Error|Cancelled|Definition|Stuck)\b", line)
    ]
    if not lines[0].startswith(("Traceback", "Exception Group")) or not ends:
        return lines[0]
    end = ends[0]
    # A bare assertion, as Python says it without pytest's help: its source tells what was to hold.
    is_bare = ": " not in lines[end] or len(lines[end]) < len("AssertionError: ") + 4
    return f"{lines[end - 1]}" if is_bare else lines[end]
