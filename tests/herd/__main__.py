"""``python -m tests.herd``: an outage of a server of many clients and what happens after it, for each policy.

It prints a table, and the goals that this package's own rules miss. The tests assert that it misses none.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.herd.goals import missed_goals
from tests.herd.model import run
from tests.herd.picture import draw
from tests.herd.policies import OURS, POLICIES
from tests.herd.server import Figures
from tests.herd.setting import Setting

_HEAD = (
    "policy",
    "503s",
    "late",
    "99 % drained",
    "all drained",
    "wasted",
    "spans lost",
    "attempts/s in the outage",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all policies. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.herd", description="Model many clients of a server that fails and comes back."
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--locations", type=int, default=1, help="of each client")
    parser.add_argument("--rate", type=float, default=6.0, help="spans a second of each location")
    parser.add_argument("--capacities", type=float, nargs="+", default=[2.2, 1.2])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ours", action="store_true", help="leave out the policies to compare")
    parser.add_argument("--svg", type=Path, help="draw the run into this file")
    options = parser.parse_args(arguments)
    began = time.process_time()
    missed: list[str] = []
    drawn: dict[tuple[float, str], tuple[Setting, Figures]] = {}
    for capacity in options.capacities:
        setting = Setting(options.clients, capacity, locations=options.locations, rate=options.rate)
        print(
            f"{options.clients:,} clients, {capacity:g} times the capacity that they need, "
            f"an outage of {setting.outage:g} s"
        )
        print(_row(_HEAD), flush=True)
        for policy in [OURS] if options.ours else POLICIES:
            modelled = attrs.evolve(setting, clients=max(1, options.clients // policy.every))
            figures = run(modelled, policy, options.seed)
            print(_row((policy.name, *_cells(figures, modelled, policy.every))), flush=True)
            drawn[capacity, policy.name] = modelled, figures
            if policy is OURS:
                missed += missed_goals(capacity, figures)
        print()
    for policy in () if options.ours else POLICIES:
        if policy.every > 1:
            print(f"{policy.name}: one client of {policy.every} was modelled, with a server that much slower")
    print(f"{time.process_time() - began:.0f} s of CPU time")
    if options.svg:
        options.svg.write_text(draw(drawn), encoding="utf-8")
    for goal in missed:
        print(f"goal missed: {goal}")
    return 0


def _cells(figures: Figures, setting: Setting, every: int) -> tuple[str, ...]:
    return (
        f"{figures.rejected * every:,}",
        f"{figures.late * every:,}",
        _seconds(figures.drained_within(0.99)),
        _seconds(figures.drained_within(1)),
        f"{figures.wasted_part:.2%}",
        f"{figures.lost * every:,}",
        f"{figures.attempts * every / setting.outage:,.0f}",
    )


def _seconds(seconds: float) -> str:
    return "never" if seconds == math.inf else f"{seconds:.1f} s"


def _row(cells: Sequence[str]) -> str:
    widths = [max(12, len(head) + 2) for head in _HEAD[1:]]
    return f"{cells[0]:30}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
