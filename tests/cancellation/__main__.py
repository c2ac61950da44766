"""Cancel at every step: each scenario is run again and again, each time with a cancel after another scheduling step.

    python -m tests.cancellation                  # with an exporter in memory
    python -m tests.cancellation --http           # through the whole HTTP path, without sockets
    python -m tests.cancellation --scenario backoff --scope body --step 57 --trace

What is cancelled is in `cancel_run`, in what in `cancel_scenarios`. For some small scenarios there are second cancels
too: of the body after each step, and then of everything, or by a Ctrl-C, after each step that follows.

It stops at the first failure, says how to run that once more, and exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import attrs

from tests.cancellation.run import SCOPES, Model, Plan, run
from tests.cancellation.scenarios import MAX_STEPS, SCENARIOS, TWICE

# A run takes some hundredths of a second. Seconds of CPU time, so that a busy machine changes nothing.
_STUCK_AFTER = 5.0
_STEPS_A_UNIT = 20
_SECONDS_BETWEEN_REPORTS = 2.0
COLUMNS = (*SCOPES, *(f"body, then {second}" for second in sorted(set(TWICE.values()))))


@attrs.frozen
class Unit:
    """Work for one process: one scenario, one scope, some of the steps.

    Attributes:
        steps: After which to cancel.
        second: What to cancel as well, after each of the steps that come then; nothing if it is empty.
    """

    scenario: str
    http: bool
    scope: str
    steps: range
    second: str = ""

    @property
    def row(self) -> tuple[str, str]:
        return self.scenario, f"{self.scope}, then {self.second}" if self.second else self.scope

    def plans(self, model: Model) -> Iterator[Plan]:
        for step in self.steps:
            plan = Plan(self.scenario, self.http, self.scope, step)
            if not self.second:
                yield plan
                continue
            length = run_in_time(plan, model).steps
            for then in range(step + 1, length + 1):
                yield attrs.evolve(plan, then=then, second=self.second)


@attrs.frozen
class Done:
    """What came of a unit.

    Attributes:
        runs: How many there were.
        failed: The run that failed.
        failure: Its traceback.
    """

    unit: Unit
    runs: int
    failed: Plan | None = None
    failure: str = ""


class Stuck(BaseException):
    """A run does not come to its end."""


# -- in each process -----------------------------------------------------------------------------------------------


def prepare() -> None:
    """Make runs the same wherever they take place, and end one that hangs."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    signal.signal(signal.SIGPROF, _complain)
    # A shell has what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What there is by now is not looked at again for each run.
    gc.collect()
    gc.freeze()


def _complain(signum: int, frame: FrameType | None) -> None:
    raise Stuck(f"still running after {_STUCK_AFTER:g} s of CPU time")


def work(unit: Unit) -> Done:
    runs = 0
    failure = ""
    plan = Plan(unit.scenario, unit.http)
    try:
        model = run_in_time(plan)
        for plan in unit.plans(model):
            run_in_time(plan, model)
            runs += 1
    except BaseException:  # noqa: ASYNC103  # nothing here runs in trio
        failure = traceback.format_exc()
    return Done(unit, runs, plan if failure else None, failure)


def run_in_time(plan: Plan, model: Model | None = None, *, tell: Callable[[str], None] | None = None) -> Model:
    """Run ``plan``, and end it if it hangs."""
    # Again and again, should the exception be caught where it comes up.
    signal.setitimer(signal.ITIMER_PROF, _STUCK_AFTER, 1.0)
    try:
        return run(plan, model, tell=tell)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


# -- in the first process ------------------------------------------------------------------------------------------


@attrs.define
class Row:
    scenario: str
    scope: str
    steps: int
    runs: int = 0
    failures: int = 0

    @property
    def text(self) -> str:
        return f"{self.runs:,} FAILED" if self.failures else f"{self.runs:,}"


@attrs.define
class Report:
    """What was run so far."""

    http: bool
    rows: dict[tuple[str, str], Row] = attrs.Factory(dict)
    failed: Plan | None = None
    failure: str = ""
    began_at: float = attrs.Factory(time.monotonic)

    @property
    def runs(self) -> int:
        return sum(row.runs for row in self.rows.values())

    def take(self, done: Done) -> None:
        row = self.rows[done.unit.row]
        row.runs += done.runs + (done.failed is not None)
        if done.failed is not None:
            row.failures += 1
            self.failed, self.failure = done.failed, done.failure

    def as_json(self) -> str:
        return json.dumps(
            {
                "http": self.http,
                "rows": [attrs.asdict(row) for row in self.rows.values()],
                "runs": self.runs,
                "seconds": round(time.monotonic() - self.began_at, 1),
                "failure": self.failure,
                "replay": "" if self.failed is None else command(self.failed),
            }
        )

    def print_table(self) -> None:
        """Print how many runs there were, a line for each scenario and a column for each scope."""
        print(f"{'':28}{'steps':>7}" + "".join(f"{scope.replace('body, ', ''):>17}" for scope in COLUMNS))
        for scenario, row in {row.scenario: row for row in self.rows.values()}.items():
            cells = [self.rows.get((scenario, scope)) for scope in COLUMNS]
            print(
                f"{scenario:28}{row.steps:7,}" + "".join(f"{'' if cell is None else cell.text:>12}" for cell in cells)
            )
        where = "through the whole HTTP path" if self.http else "with an exporter in memory"
        seconds = time.monotonic() - self.began_at
        print(f"{self.runs:,} runs {where}, in {seconds:.0f} s")


def command(plan: Plan) -> str:
    """Return the command that runs ``plan`` once more."""
    words = ["python", "-m", "tests.cancellation", *["--http"] * plan.http, "--scenario", plan.scenario]
    if plan.step is not None:
        words += ["--scope", plan.scope, "--step", str(plan.step)]
    if plan.then is not None:
        words += ["--then", str(plan.then), "--second", plan.second]
    return " ".join([*words, "--trace"])


def units(options: argparse.Namespace, report: Report) -> list[Unit]:
    """Return all that is to be done, and give the report a row for each part of it."""
    found: list[Unit] = []
    for scenario in options.scenario or SCENARIOS:
        model = model_of(Plan(scenario, options.http), report)
        if model is None:
            return []
        steps = range(model.steps + 1)
        for scope in model.scopes:
            # Before the first step there is nothing that a Ctrl-C could interrupt.
            found += _units_of(Unit(scenario, options.http, scope, steps[scope == "ctrl-c" :]), options)
        if scenario in TWICE and not options.quick:
            found += _units_of(Unit(scenario, options.http, "body", steps, TWICE[scenario]), options)
        for unit in found:
            report.rows.setdefault(unit.row, Row(*unit.row, model.steps))
    return found


def model_of(plan: Plan, report: Report) -> Model | None:
    """Return what a scenario is like without a cancel, None if it fails by itself."""
    model = None
    try:
        model = run_in_time(plan)
        assert plan.http or model.steps <= MAX_STEPS, f"{plan.scenario} has {model.steps} steps"
    except BaseException:  # noqa: ASYNC103  # nothing here runs in trio
        report.failed, report.failure = plan, traceback.format_exc()
    return model


def _units_of(whole: Unit, options: argparse.Namespace) -> Iterator[Unit]:
    if options.scope and whole.row[1] not in options.scope:
        return
    size = 2 if whole.second else _STEPS_A_UNIT
    for start in range(0, len(whole.steps), size):
        yield attrs.evolve(whole, steps=whole.steps[start : start + size])


def run_everything(options: argparse.Namespace) -> Report:
    """Run what is asked for over all cores, until the first failure."""
    report = Report(options.http)
    todo = units(options, report)
    progress = Progress(len(todo))
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(options.jobs, len(todo) or 1), initializer=prepare) as pool:
        for done in pool.imap_unordered(work, todo):
            report.take(done)
            if done.failed is not None:
                break
            if not options.json:
                progress.tell(report)
    return report


@attrs.define
class Progress:
    units: int
    done: int = 0
    told_at: float = attrs.Factory(time.monotonic)

    def tell(self, report: Report) -> None:
        self.done += 1
        now = time.monotonic()
        if now > self.told_at + _SECONDS_BETWEEN_REPORTS:
            self.told_at = now
            print(f"{100 * self.done // self.units:3} %, {report.runs:,} runs", file=sys.stderr, flush=True)


def run_once(options: argparse.Namespace) -> int:
    """Run one plan in this process."""
    tell = print if options.trace else None
    scenario = options.scenario[0]
    if options.step is None:
        run_in_time(Plan(scenario, options.http), tell=tell)
    else:
        scope = (options.scope or ["everything"])[0]
        plan = Plan(scenario, options.http, scope, options.step, options.then, options.second)
        run_in_time(plan, run_in_time(Plan(scenario, options.http)), tell=tell)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Cancel at every scheduling step of every scenario.")
    parser.add_argument("--http", action="store_true", help="through the whole HTTP path, not to an exporter in memory")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be repeated")
    parser.add_argument("--scope", action="append", choices=COLUMNS, help="only this; the same")
    parser.add_argument("--quick", action="store_true", help="no second cancels")
    parser.add_argument("--step", type=int, help="one run, cancelled after this step")
    parser.add_argument("--then", type=int, help="and once more after this one")
    parser.add_argument("--second", choices=SCOPES, default="everything", help="what is cancelled then (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="one run, and a line for each of its steps")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def main() -> int:
    options = parser().parse_args()
    prepare()
    if options.trace or options.step is not None:
        if len(options.scenario or []) != 1:
            parser().error("one run is of one --scenario")
        return run_once(options)
    report = run_everything(options)
    if options.json:
        print(report.as_json())
    else:
        report.print_table()
    if report.failure:
        print(f"\n{report.failure}", file=sys.stderr)
        if report.failed is not None:
            print(f"run it once more: {command(report.failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
