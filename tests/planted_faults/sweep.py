"""``python -m tests.planted_faults.sweep``: an exception of a signal handler at each line of the batcher's calls.

It is a program of its own, since pytest puts the project's directory before a copy of the package with a planted fault.
It stops at the first failure, and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

from tests.runtime.test_signal_handlers import raise_interrupted, run_interrupted
from tests.support.interruptions import SCENES, AtLine, Scene


def main(arguments: Sequence[str] | None = None) -> int:
    """Interrupt the calls that the command line names. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted_faults.sweep", description="Interrupt calls of a batcher at each of their lines."
    )
    parser.add_argument("--scene", help="the name of the only scene to run; by default all")
    options = parser.parse_args(arguments)
    scenes = [scene for scene in SCENES if options.scene in (None, scene.name)]
    if not scenes:
        parser.error(f"no scene is named {options.scene!r}; there are {', '.join(scene.name for scene in SCENES)}")
    runs, failure = 0, None
    try:
        for scene in scenes:
            number = 0
            while _has_place(scene, number := number + 1):
                runs += 1
    except BaseException:  # noqa: ASYNC103  # nothing here runs in trio
        runs += 1
        failure = traceback.format_exc()
    print(json.dumps({"runs": runs, "failure": failure}))
    return 0 if failure is None else 1


def _has_place(scene: Scene, number: int) -> bool:
    return run_interrupted(scene, number, lambda there: AtLine(number, there), raise_interrupted)


if __name__ == "__main__":
    sys.exit(main())
