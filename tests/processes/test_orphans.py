"""No child of a test outlives the process that runs the tests, even if that is killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.paths import TESTS
from tests.support.processes import DEADLINE, child, run_to_end, wait_until

pytestmark = pytest.mark.long

STAYS = TESTS / "processes" / "stays.py"
STARTS_CHILDREN = TESTS / "processes" / "starts_children.py"

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="orphans are found with Linux's /proc")


def noted(folder: Path) -> list[int]:
    """Return the ids of the processes that have written their files."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def workers(folder: Path) -> list[int]:
    return [int(path.name.split()[1]) for path in folder.glob("pytest *")]


def is_running(process: int) -> bool:
    # A zombie has ended, although nothing has waited for it.
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return status.stdout.strip()[:1] not in ("", "Z")


def wait_until_gone(folder: Path) -> None:
    # A killed process disappears a little later.
    give_up_at = time.monotonic() + DEADLINE
    # Nothing reports the end of a process that is not a child of this one.
    while any(map(is_running, noted(folder))):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@needs_proc
@pytest.mark.parametrize("killed", ["worker", "whole run"])
async def test_when_a_process_of_the_tests_is_killed_its_children_and_theirs_end(tmp_path: Path, killed: str) -> None:
    options = ("-p", "no:cacheprovider", "--numprocesses", 1, "--max-worker-restart", 0)
    async with child("-m", "pytest", *options, STARTS_CHILDREN, environ={"FOLDER": str(tmp_path)}) as run:
        # Four children, each with a child.
        await wait_until(lambda: len(noted(tmp_path)) == 8)
        (worker,) = workers(tmp_path)
        assert all(map(is_running, noted(tmp_path)))
        if killed == "worker":
            os.kill(worker, signal.SIGKILL)
        else:
            await run.kill()
        await wait_until(lambda: not any(map(is_running, [worker, *noted(tmp_path)])))


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    timeout = 0.25
    while len(noted(tmp_path)) < 2:
        timeout *= 2
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(subprocess.TimeoutExpired):
            run_to_end([sys.executable, STAYS, tmp_path, "own"], timeout=timeout)
    wait_until_gone(tmp_path)


def test_a_command_whose_caller_is_interrupted_is_killed_with_its_children(tmp_path: Path) -> None:
    def interrupt() -> None:
        # Nothing reports that the processes have written their files.
        while len(noted(tmp_path)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, STAYS, tmp_path, "own"])
    thread.join()
    wait_until_gone(tmp_path)
