"""``python -m tests.state_machine``: fresh sequences of rules, or those of a seed again.

It stops at the first failure, prints the shortest sequence found that leads to it and the command that repeats the run,
and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
import traceback
from collections.abc import Sequence

from tests.state_machine.machine import SpanBatcherMachine, run_state_machine


class _Counted(SpanBatcherMachine):
    """Counts the sequences that began."""

    began = 0

    def __init__(self) -> None:
        _Counted.began += 1
        super().__init__()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sequences that the command line asks for. Return the exit code: 1 if one failed."""
    options = _parser().parse_args(arguments)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    if not options.json:
        print(f"{options.sequences:,} sequences, seed {seed}", flush=True)
    started = time.monotonic()
    failure: BaseException | None = None
    try:
        run_state_machine(options.sequences, steps=options.steps, seed=seed, shrink=options.shrink, machine=_Counted)
    except BaseException as exc:  # noqa: ASYNC103  # nothing here runs in trio
        failure = exc
    if options.json:
        print(json.dumps({"runs": _Counted.began, "failure": failure and _innermost(failure)}))
    elif failure is None:
        print(f"{_Counted.began:,} sequences passed in {time.monotonic() - started:.0f} s")
    else:
        traceback.print_exception(failure, file=sys.stdout)
        print(f"FAILED; repeat it with: {_command(options, seed)}")
    return 0 if failure is None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.state_machine", description="Drive batchers through random sequences of rules."
    )
    parser.add_argument("--sequences", type=int, default=200, help="how many to run (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="the most rules in one (%(default)s)")
    parser.add_argument("--seed", type=int, help="the seed of the sequences; a fresh one by default")
    parser.add_argument(
        "--no-shrink", dest="shrink", action="store_false", help="do not look for a shorter sequence that fails"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _command(options: argparse.Namespace, seed: int) -> str:
    return f"python -m tests.state_machine --sequences {options.sequences} --steps {options.steps} --seed {seed}"


def _innermost(failure: BaseException) -> str:
    """Return the traceback of ``failure``; of a group, that of its first exception that is none."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return "".join(traceback.format_exception(failure, chain=False))


if __name__ == "__main__":
    sys.exit(main())
