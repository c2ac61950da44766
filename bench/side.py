"""One side of a case, in its own process: `python -m bench.side CASE SIDE PORT [--quick]`.

For each line on standard input it runs a round, and writes the figures as a line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys

from bench.cases import load_case
from bench.harness import Setup
from bench.receiver import Receiver

__all__: list[str] = []


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.side")
    parser.add_argument("case")
    parser.add_argument("side")
    parser.add_argument("port", type=int)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    # Output of libraries must not mix with the figures.
    answers, sys.stdout = sys.stdout, sys.stderr
    run_round = load_case(arguments.case).sides[arguments.side](Setup(Receiver(arguments.port), arguments.quick))
    for _ in sys.stdin:
        gc.collect()
        print(json.dumps(run_round()), file=answers, flush=True)


if __name__ == "__main__":
    _main()
