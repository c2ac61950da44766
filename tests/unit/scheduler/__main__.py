"""``python -m tests.unit.scheduler``: fresh sequences of events of the scheduler alone, until one fails.

It prints how many began and the traceback of the failure as JSON, and exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import traceback
from collections.abc import Sequence

from tests.unit.scheduler.machine import SchedulerMachine, run_machine


class _Counted(SchedulerMachine):
    """Counts the sequences that began."""

    began = 0

    def __init__(self) -> None:
        _Counted.began += 1
        super().__init__()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sequences that the command line asks for. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.unit.scheduler", description="Drive the scheduler through random sequences of events."
    )
    parser.add_argument("--sequences", type=int, default=200, help="how many to run (%(default)s)")
    parser.add_argument("--seed", type=int, help="the seed of the sequences; a fresh one by default")
    options = parser.parse_args(arguments)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    failure = None
    try:
        run_machine(options.sequences, seed=seed, shrink=False, machine=_Counted)
    except Exception as exc:
        while isinstance(exc, ExceptionGroup):
            exc = exc.exceptions[0]
        failure = "".join(traceback.format_exception(exc, chain=False))
    print(json.dumps({"runs": _Counted.began, "seed": seed, "failure": failure}))
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
