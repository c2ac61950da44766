"""A file of tests that ``test_orphans.py`` has pytest run and kills: its one test starts children in various ways."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio

from tests.cli.support import run_command
from tests.support.processes import child, run_to_end


async def test_that_does_not_end() -> None:
    folder = Path(os.environ["FOLDER"])
    arguments = [str(Path(__file__).with_name("stays.py")), str(folder), "new"]
    program = [sys.executable, *arguments]
    async with child(*arguments), trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_command, program=program))
        nursery.start_soon(partial(trio.to_thread.run_sync, run_to_end, program))
        with subprocess.Popen(program, start_new_session=True):  # noqa: ASYNC220  # it takes a moment
            (folder / f"pytest {os.getpid()}").touch()
            await trio.sleep_forever()
