"""``python -m tests.planted_faults [NAME]``: list the faults, or plant one and see which machine finds it.

The fault is planted in a temporary copy of the package. The exit code is 1 if no machine finds it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.planted_faults.faults import FAULTS, PlantedFault
from tests.planted_faults.machines import find
from tests.planted_faults.support import plant


def main(arguments: Sequence[str] | None = None) -> int:
    """List the faults or plant one, as the command line asks. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted_faults",
        description="List the faults, or plant one and see which machine finds it.",
    )
    parser.add_argument("name", nargs="?", help="the fault's name, or a part of it that is unique")
    options = parser.parse_args(arguments)
    if options.name is None:
        for fault in FAULTS:
            print(f"{fault.name}  [{fault.module}; {fault.first}]")
        return 0
    matches = [fault for fault in FAULTS if fault.name == options.name] or [
        fault for fault in FAULTS if options.name in fault.name
    ]
    if not matches:
        parser.error(f"no fault is named {options.name!r}; without a name, all are listed")
    if len(matches) > 1:
        parser.error(f"{options.name!r} is ambiguous: {', '.join(fault.name for fault in matches)}")
    return _plant(matches[0])


def _plant(fault: PlantedFault) -> int:
    print(f"{fault.module}: {fault.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        searches = find(plant(Path(folder), fault.module, fault.right, fault.wrong), fault)
    for machine, search in searches.items():
        if search.failure is not None:
            print(f"found by the {machine} after {search.runs:,} runs: {search.failure}")
            return 0
        print(f"not found by the {machine} in {search.runs:,} runs", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
