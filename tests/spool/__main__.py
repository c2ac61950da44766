"""``python -m tests.spool``: look for a fault of the stores, without pytest.

Processes share a spool and are killed; then each operation on a file fails or is the last one, files are damaged, and
the other tests of stores run that need nothing but a directory. The last line of the output is JSON: the number of runs
and the failure, if there is one.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.spool import lives, test_damage, test_disk, test_faults, test_files, test_stores
from tests.spool.support import DiskPlace
from trio_spanbatch._spool import files

LIVES = 40
# Every fifth operation, of each fault another one.
STEP = 5


def runs() -> Iterator[Callable[[Path, pytest.MonkeyPatch], Any]]:
    """Yield functions of an empty directory and a monkey patch that raise if there is a fault."""
    for first, fault in enumerate(test_faults.FAULTS, start=1):
        yield partial(_every_operation, fault, first)
    for module in (test_damage, test_stores, test_disk, test_files):
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.iscoroutinefunction(function) and _arguments(function) <= _KNOWN:
                yield partial(_test, function)


_KNOWN = {"disk", "place", "monkeypatch", "watched", "hang"}


def _arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _every_operation(fault: test_faults.Fault, first: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    trio.run(test_faults.every_operation, DiskPlace(folder / "spool"), fault, patch, first, STEP)


def _test(function: Callable[..., Any], folder: Path, patch: pytest.MonkeyPatch) -> None:
    place = DiskPlace(folder / "spool")
    hang = test_disk.Hang(os.pwrite)
    given = {"disk": place, "place": place, "monkeypatch": patch, "hang": hang}
    if "watched" in _arguments(function):
        given["watched"] = watched = test_disk.WatchedOS()
        patch.setattr(files, "os", watched)
    try:
        trio.run(partial(function, **{name: given[name] for name in _arguments(function)}))
    finally:
        hang.release()


def main() -> None:
    """Run everything until something fails."""
    count, failure = LIVES, None
    try:
        # First, as they are forked: threads do not survive that.
        lives.main(LIVES, 4, 1)
        for run in runs():
            count += 1
            with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
                run(Path(folder), patch)
    except BaseException:  # noqa: ASYNC103  # it is told as the result
        failure = traceback.format_exc()
    print(json.dumps({"runs": count, "failure": failure}), flush=True)


if __name__ == "__main__":
    main()
