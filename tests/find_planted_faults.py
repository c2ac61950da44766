"""``python find_planted_faults.py``: plants each fault into a copy of the package, and has one of the machines find it.

Prints the list and what found each, and exits with 1 if something was not found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
from machines import MACHINES, Search
from planted_faults import FAULTS, Machine, PlantedFault
from planting import plant

# How many runs a machine gets for a fault. None needs more than a fiftieth of this on the average, with the machine
# that it names; so a fault that is there and not found is one run in e**50.
BOUNDS: dict[Machine, int] = {"simulation": 2500, "state machine": 2500, "cancel everywhere": 0}
# How many an unharmed copy has to pass.
SOUND: dict[Machine, int] = {"simulation": 100, "state machine": 100, "cancel everywhere": 0}


@attrs.frozen
class Found:
    """A fault, and which machine found it."""

    fault: PlantedFault
    machine: Machine
    search: Search
    seconds: float

    def __str__(self) -> str:
        by = f"{self.machine}, run {self.search.runs:,}"
        return f"{self.fault.name}\n    {by} ({self.seconds:.1f} s): {(self.search.failure or 'NOT FOUND')[:160]}"


def find(folder: Path, fault: PlantedFault) -> Found:
    """Plant a fault, and ask one machine after the other."""
    folder.mkdir()
    environ = plant(folder, fault.module, fault.right, fault.wrong)
    began = time.monotonic()
    for machine in sorted(MACHINES, key=lambda machine: machine != fault.first):
        scenario = fault.scenario if machine == fault.first else None
        search = MACHINES[machine](environ, BOUNDS[machine], scenario)
        if search.failure is not None:
            break
    return Found(fault, machine, search, time.monotonic() - began)


def main() -> int:
    """Find all planted faults. Return the exit code."""
    parser = argparse.ArgumentParser(description="Plant faults, and have them found.")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (%(default)s)")
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        folders = [Path(folder) / str(number) for number in range(len(FAULTS))]
        found = list(pool.map(find, folders, FAULTS))
    missed = [one for one in found if one.search.failure is None]
    print(f"{len(found) - len(missed)} of {len(FAULTS)} planted faults were found:", *found, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
