"""``python -m tests.spool.on_the_clock``: run the tests of batchers with a spool in memory, without pytest.

The last line of the output is JSON: the number of tests that were run and the failure, if there is one.
"""

from __future__ import annotations

import inspect
import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio
from trio.testing import MockClock

from tests.spool import test_commits, test_full, test_leaving, test_paging, test_recovery

# Seconds of CPU time after which a test counts as one that does not end.
_MAX_SECONDS = 30


def tests() -> Iterator[tuple[str, Callable[[MockClock], Any]]]:
    for module in (test_commits, test_full, test_leaving, test_paging, test_recovery):
        for name, function in vars(module).items():
            if name.startswith("test_") and list(inspect.signature(function).parameters) == ["autojump_clock"]:
                yield name, function


class DoesNotEnd(BaseException):
    """Not an `Exception`: a `TimeoutError`, for instance, would be taken for an error of the disk."""


def _ends(_signum: int, _frame: object) -> None:
    raise DoesNotEnd


def main() -> int:
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGVTALRM, _ends)
    runs, failure = 0, ""
    for name, test in tests():
        runs += 1
        clock = MockClock(autojump_threshold=0)
        signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS)
        try:
            trio.run(partial(test, clock), clock=clock)
        except BaseException:  # noqa: ASYNC103, ASYNC104  # nothing here runs in trio
            failure = f"{traceback.format_exc()}\n{name}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if failure:
            break
    print(json.dumps({"runs": runs, "failure": failure}))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
