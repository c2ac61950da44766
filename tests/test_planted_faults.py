"""Does the machinery see? Faults are planted into copies of the package, and each has to be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from find_planted_faults import SOUND
from long_tests import SAID, run_long
from machines import MACHINES, first_line
from planted_faults import FAULTS, Machine
from planting import copy_of_package, plant


@pytest.mark.long
def test_every_planted_fault_is_found(record_property: Callable[[str, object], None]) -> None:
    assert len(FAULTS) >= 20
    said = run_long("find_planted_faults.py", "--jobs", 1)
    assert f"{len(FAULTS)} of {len(FAULTS)} planted faults were found" in said
    record_property(SAID, said)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_copy_without_a_fault_passes(tmp_path: Path, machine: Machine) -> None:
    environ = copy_of_package(tmp_path)
    scenarios = sorted({fault.scenario for fault in FAULTS if fault.scenario is not None})
    for scenario in scenarios if machine == "cancel everywhere" else [None]:
        search = MACHINES[machine](environ, SOUND[machine], scenario)
        assert search.failure is None


def test_a_fault_whose_place_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"_lane\.py has this 0 times, not once: 'no such code'"):
        plant(tmp_path, "_lane.py", "no such code", "")


def test_of_a_failure_that_line_is_shown_which_says_most() -> None:
    group = (
        '  + Exception Group Traceback (most recent call last):\n  |   File "x.py"\n  | ValueError: 3 is odd\n  +----'
    )
    bare = 'Traceback (most recent call last):\n  File "x.py"\n    assert 2 > 3\n           ^^^^^\nAssertionError\n'
    assert first_line("at rest: a lane sleeps\nmore\n") == "at rest: a lane sleeps"
    assert first_line(group) == "ValueError: 3 is odd"
    assert first_line(bare) == "assert 2 > 3"
    assert first_line(" \n") == "it died without a word"
