"""``python -m tests.spool.on_the_clock``: run the tests of admission and of a spool in memory, without pytest.

The last line of the output is JSON: the number of tests that were run and the failure, if there is one.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio
from trio.testing import MockClock

from tests.scheduler import test_admission
from tests.spool import test_commits, test_full, test_leaving, test_paging, test_recovery

# Seconds of CPU time after which a test counts as one that does not end.
_MAX_SECONDS = 10


def tests() -> Iterator[tuple[str, Callable[[MockClock], Any]]]:
    for module in (test_admission, test_commits, test_full, test_leaving, test_paging, test_recovery):
        for name, function in vars(module).items():
            if name.startswith("test_") and list(inspect.signature(function).parameters) == ["autojump_clock"]:
                yield name, function


def _end(name: str, runs: int, _signum: int, _frame: object) -> None:
    """End the process. An exception might be taken for an error of the disk, or leave another loop that never ends."""
    _tell(f"{name} does not end", runs)
    os._exit(1)


def _tell(failure: str, runs: int) -> None:
    print(json.dumps({"runs": runs, "failure": failure}), flush=True)


def main() -> int:
    logging.disable(logging.CRITICAL)
    runs, failure = 0, ""
    for name, test in tests():
        runs += 1
        clock = MockClock(autojump_threshold=0)
        signal.signal(signal.SIGVTALRM, partial(_end, name, runs))
        signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS)
        try:
            trio.run(partial(test, clock), clock=clock)
        except BaseException:  # noqa: ASYNC103, ASYNC104  # nothing here runs in trio
            failure = f"{traceback.format_exc()}\n{name}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if failure:
            break
    _tell(failure, runs)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
