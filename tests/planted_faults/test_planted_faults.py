"""Does the machinery see? Faults are planted into copies of the package, and each has to be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted_faults.faults import FAULTS, Machine, PlantedFault
from tests.planted_faults.machines import MACHINES, Search, first_line
from tests.planted_faults.support import PACKAGE, copy_of_package, plant

# How many runs a machine gets for a fault. None needs more than a fiftieth of this on the average, with the machine
# that it names; so a fault that is there and not found is one run in e**50.
BOUNDS: dict[Machine, int] = {"simulation": 2500, "state machine": 2500, "cancel everywhere": 0}
# How many an unharmed copy has to pass.
SOUND: dict[Machine, int] = {"simulation": 100, "state machine": 100, "cancel everywhere": 0}


def find(environ: dict[str, str], fault: PlantedFault) -> list[Search]:
    """Ask one machine after the other. Return what they found, up to the first failure."""
    searches: list[Search] = []
    for machine in sorted(MACHINES, key=lambda machine: machine != fault.first):
        scenario = fault.scenario if machine == fault.first else None
        searches.append(MACHINES[machine](environ, BOUNDS[machine], scenario))
        if searches[-1].failure is not None:
            break
    return searches


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(tmp_path: Path, fault: PlantedFault) -> None:
    searches = find(plant(tmp_path, fault.module, fault.right, fault.wrong), fault)
    assert searches[-1].failure is not None, searches


def test_each_fault_has_its_place() -> None:
    places = {fault.name: (PACKAGE / fault.module).read_text().count(fault.right) for fault in FAULTS}
    assert {name: count for name, count in places.items() if count != 1} == {}


@pytest.mark.long
@pytest.mark.parametrize("machine", MACHINES)
def test_a_copy_without_a_fault_passes(tmp_path: Path, machine: Machine) -> None:
    environ = copy_of_package(tmp_path)
    scenarios = sorted({fault.scenario for fault in FAULTS if fault.scenario is not None})
    for scenario in scenarios if machine == "cancel everywhere" else [None]:
        search = MACHINES[machine](environ, SOUND[machine], scenario)
        assert search.failure is None


def test_a_fault_whose_place_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"location\.py has this 0 times, not once: 'no such code'"):
        plant(tmp_path, "_scheduler/location.py", "no such code", "")


def test_of_a_failure_that_line_is_shown_which_says_most() -> None:
    group = (
        '  + Exception Group Traceback (most recent call last):\n  |   File "x.py"\n  | ValueError: 3 is odd\n  +----'
    )
    bare = 'Traceback (most recent call last):\n  File "x.py"\n    assert 2 > 3\n           ^^^^^\nAssertionError\n'
    assert first_line("at rest: a lane sleeps\nmore\n") == "at rest: a lane sleeps"
    assert first_line(group) == "ValueError: 3 is odd"
    assert first_line(bare) == "assert 2 > 3"
    assert first_line(" \n") == "it died without a word"
