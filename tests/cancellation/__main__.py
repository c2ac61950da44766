"""Cancel at every step: run each scenario once for every scheduling step, with a cancel after that step.

    python -m tests.cancellation                  # with an exporter in memory
    python -m tests.cancellation --http           # through the whole HTTP path, without sockets
    python -m tests.cancellation --spool          # with a spool in memory
    python -m tests.cancellation --scenario backoff --scope body --step 57 --trace

``run.py`` has the scopes to cancel, ``scenarios.py`` the programs. Some small scenarios also get a second cancel: the
body is cancelled after each step, then everything, or a Ctrl-C is sent, after each later step.

It stops at the first failure, prints the command that repeats it, and exits with 1.
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
    """The runs so far."""

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
        """Print the number of runs, with a line for each scenario and a column for each scope."""
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
    """Return the command that repeats ``plan``."""
    words = [
        "python",
        "-m",
        "tests.cancellation",
        *["--http"] * plan.http,
        *["--spool"] * plan.spool,
        "--scenario",
        plan.scenario,
    ]
    if plan.step is not None:
        words += ["--scope", plan.scope, "--step", str(plan.step)]
    if plan.then is not None:
        words += ["--then", str(plan.then), "--second", plan.second]
    return " ".join([*words, "--trace"])


def units(options: argparse.Namespace, report: Report) -> list[Unit]:
    """Return all units, and add a row for each of their scopes to the report."""
    found: list[Unit] = []
    for scenario in options.scenario or SCENARIOS:
        model = model_of(Plan(scenario, options.http, spool=options.spool), report)
        if model is None:
            return []
        steps = range(model.steps + 1)
        for scope in model.scopes:
            # Before the first step, a Ctrl-C has nothing to interrupt.
            found += _units_of(
                Unit(scenario, options.http, scope, steps[scope == "ctrl-c" :], spool=options.spool), options
            )
        if scenario in TWICE and not options.quick:
            found += _units_of(Unit(scenario, options.http, "body", steps, TWICE[scenario], options.spool), options)
        for unit in found:
            report.rows.setdefault(unit.row, Row(*unit.row, model.steps))
    return found


def model_of(plan: Plan, report: Report) -> Model | None:
    """Run a scenario without a cancel. Return its record, or None if it fails."""
    model = None
    try:
        model = run_in_time(plan)
        assert plan.http or plan.spool or model.steps <= MAX_STEPS, f"{plan.scenario} has {model.steps} steps"
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
    """Run the selected scenarios in several processes, until the first failure."""
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
        run_in_time(Plan(scenario, options.http, spool=options.spool), tell=tell)
    else:
        scope = (options.scope or ["everything"])[0]
        plan = Plan(scenario, options.http, scope, options.step, options.then, options.second, options.spool)
        run_in_time(plan, run_in_time(Plan(scenario, options.http, spool=options.spool)), tell=tell)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Cancel at every scheduling step of every scenario.")
    parser.add_argument("--http", action="store_true", help="use the whole HTTP path, not an exporter in memory")
    parser.add_argument("--spool", action="store_true", help="with a spool in memory")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="run only this scenario (repeatable)")
    parser.add_argument("--scope", action="append", choices=COLUMNS, help="cancel only this scope (repeatable)")
    parser.add_argument("--quick", action="store_true", help="no second cancels")
    parser.add_argument("--step", type=int, help="do one run, with a cancel after this step")
    parser.add_argument("--then", type=int, help="cancel once more after this step")
    parser.add_argument(
        "--second", choices=SCOPES, default="everything", help="the scope of the second cancel (%(default)s)"
    )
    parser.add_argument("--trace", action="store_true", help="do one run and print a line for each step")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="the number of processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def main() -> int:
    options = parser().parse_args()
    prepare()
    if options.trace or options.step is not None:
        if len(options.scenario or []) != 1:
            parser().error("--step and --trace need exactly one --scenario")
        return run_once(options)
    report = run_everything(options)
    if options.json:
        print(report.as_json())
    else:
        report.print_table()
    if report.failure:
        print(f"\n{report.failure}", file=sys.stderr)
        if report.failed is not None:
            print(f"repeat it with: {command(report.failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
