"""The command: `python -m bench [--quick] [CASE ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from bench.cases import CASES, load_case
from bench.harness import Case, Result, in_turns
from bench.receiver import running_receiver
from bench.report import table

__all__: list[str] = []


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this library beside its peers.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which to run; by default all: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="once, with few spans: fails only if spans are lost")
    parser.add_argument("--docs", type=Path, help="the folder to write benchmarks.md and its plots into")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    results: list[tuple[Case, list[Result]]] = []
    with running_receiver() as receiver:
        for name in arguments.cases or CASES:
            case = load_case(name)
            console.print(f"{name} ...", style="dim", end=" ")
            rounds = in_turns(case, receiver, quick=arguments.quick)
            results.append((case, [Result.of(row, rounds) for row in case.rows]))
            console.print("every span arrived", style="dim")
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
