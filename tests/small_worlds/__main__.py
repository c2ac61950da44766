"""``python -m tests.small_worlds``: explore every order of events in each small world, to its full depth.

It prints the number of distinct states, and exits with 1 if that is not the expected one, or if a rule was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.small_worlds.compare import rate_of_batcher, rate_of_scheduler
from tests.small_worlds.explore import Explored, explore
from tests.small_worlds.worlds import WORLDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore the worlds. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.small_worlds", description="Drive the scheduler through every order of events."
    )
    parser.add_argument("--quick", action="store_true", help="only to the depth of the tests that are not marked long")
    parser.add_argument(
        "--compare", action="store_true", help="also measure the steps per second of the state machines"
    )
    options = parser.parse_args(arguments)
    depths = {name: world.quick_depth if options.quick else world.depth for name, world in WORLDS.items()}
    failed = False
    with ProcessPoolExecutor(min(len(WORLDS), os.cpu_count() or 1)) as pool:
        runs = {name: pool.submit(explore, WORLDS[name].config, depth) for name, depth in depths.items()}
        for name, run in runs.items():
            found = run.result()
            expected = WORLDS[name].quick_states if options.quick else WORLDS[name].states
            print(_describe(name, depths[name], found), flush=True)
            if found.states != expected:
                print(f"FAILED: {name}: {expected:,} states were expected")
                failed = True
    if options.compare:
        batcher, scheduler = rate_of_batcher(), rate_of_scheduler()
        print(f"the state machine of the batcher: {batcher:,.0f} rules a second of CPU time")
        print(f"the state machine of the scheduler: {scheduler:,.0f} events a second, {scheduler / batcher:.1f} times")
        results = [run.result() for run in runs.values()]
        seconds = sum(found.seconds for found in results)
        checked = sum(found.events for found in results) / seconds
        covered = sum(found.order_steps for found in results) / seconds
        print(
            f"the small worlds: {checked:,.0f} events a second after which the state was checked, "
            f"{checked / batcher:.1f} times; {covered:,.0f} events a second if each order of events that leads to the "
            f"same state counts, {covered / batcher:.0f} times"
        )
    return int(failed)


def _describe(name: str, depth: int, found: Explored) -> str:
    ran, seconds = found.events + found.repeated, found.seconds
    return (
        f"{name}: {found.states:,} distinct states to depth {depth}, {found.orders:,} orders of events, "
        f"in {seconds:.0f} s of CPU time: {found.events / seconds:,.0f} events checked a second, "
        f"{ran / seconds:,.0f} carried out, {found.order_steps / seconds:,.0f} covered"
    )


if __name__ == "__main__":
    sys.exit(main())
