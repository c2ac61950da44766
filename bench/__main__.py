"""The command: `python -m bench [--quick] [CASE ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from bench.cases import CASES, load_case
from bench.harness import in_turns
from bench.receiver import running_receiver
from bench.report import CaseReport, table, write_page

__all__: list[str] = []


def _main() -> int:
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    reports: list[CaseReport] = []
    with running_receiver() as receiver:
        for name in arguments.cases or CASES:
            case = load_case(name)
            console.print(f"{name} ...", style="dim", end=" ")
            reports.append(CaseReport(case, in_turns(case, receiver, quick=arguments.quick)))
            console.print("every span arrived", style="dim")
    console.print(table(reports, with_goals=not arguments.quick))
    if arguments.quick:
        console.print("One quick round with few spans: it only shows that none is lost.")
    elif any(result.is_met is False for report in reports for result in report.results):
        console.print("What limits these figures: docs/performance.md")
    if arguments.docs is not None:
        write_page(reports, arguments.docs)
        console.print(f"written: {arguments.docs / 'benchmarks.md'}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare this library with its peers.")
    parser.add_argument(
        "cases",
        nargs="*",
        type=lambda name: name.replace("-", "_"),
        metavar="CASE",
        help=f"which to run; by default all: {', '.join(CASES)}",
    )
    parser.add_argument("--quick", action="store_true", help="once, with few spans: fails only if spans are lost")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write benchmarks.md and its plots there")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if arguments.docs is not None and (arguments.cases or arguments.quick):
        parser.error("the page shows all cases, measured in full: --docs goes with neither CASE nor --quick")
    return arguments


if __name__ == "__main__":
    sys.exit(_main())
