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
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator

import attrs

from tests.cancellation.run import SCOPES, Model, Plan
from tests.cancellation.scenarios import MAX_STEPS, SCENARIOS, TWICE
from tests.cancellation.workers import Done, Unit, prepare, run_in_time, work

_STEPS_A_UNIT = 20
_SECONDS_BETWEEN_REPORTS = 2.0
COLUMNS = (*SCOPES, *(f"body, then {second}" for second in sorted(set(TWICE.values()))))


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
