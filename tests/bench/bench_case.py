"""A case whose sides record their rounds, or fail. Tests copy this file into the cases of a benchmark."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NoReturn

from bench.harness import Case, Figures, Round, Setup
from bench.ids import check_ids

# In the folder where the sides run: a line for each round, with the side and its process.
ROUNDS = Path("rounds")
CRASHED = 3
# The process of the side that another side kills between its rounds.
VICTIM = Path("victim")


def _steady(side: str) -> Callable[[Setup], Round]:
    def make_ready(setup: Setup) -> Round:
        numbers = count(1)

        def run_round() -> Figures:
            with ROUNDS.open("a") as rounds:
                rounds.write(f"{side} {os.getpid()}\n")
            return {"number": next(numbers), "port": setup.receiver.port, "quick": setup.quick}

        return run_round

    return make_ready


def _prints(setup: Setup) -> Round:
    def run_round() -> Figures:
        print("a library says hello")
        return {"number": 1}

    print("a library says hello")
    return run_round


def _lose_spans(setup: Setup) -> NoReturn:
    setup.receiver.forget()
    check_ids(setup.receiver.ids(), 3)
    raise AssertionError("nothing was sent, and nobody missed it")


def _crash(_: Setup) -> NoReturn:
    os._exit(CRASHED)


def _is_killed(_: Setup) -> Round:
    # The lock is released when the process ends.
    lock = VICTIM.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()))
    lock.flush()
    return lambda: {"number": 1 if lock.closed else 0}


def _kills(_: Setup) -> Round:
    def run_round() -> Figures:
        with VICTIM.open() as lock:
            os.kill(int(lock.read()), signal.SIGKILL)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return {"number": 1}

    return run_round


def _in_a_round(fail: Callable[[Setup], NoReturn]) -> Callable[[Setup], Round]:
    return lambda setup: lambda: fail(setup)


CASE = Case(
    name="bench_case",
    title="In turns",
    about="Two sides that only count.",
    sides={
        "A": _steady("A"),
        "B": _steady("B"),
        "prints": _prints,
        "loses spans": _in_a_round(_lose_spans),
        "crashes": _in_a_round(_crash),
        "loses spans before it is ready": _lose_spans,
        "crashes before it is ready": _crash,
        "is killed between rounds": _is_killed,
        "kills": _kills,
    },
    rows=(),
    rounds=2,
)
