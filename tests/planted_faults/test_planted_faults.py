"""Plant each fault in a copy of the package and check that a machine finds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.planted_faults.__main__ import main
from tests.planted_faults.faults import FAULTS, Machine, PlantedFault
from tests.planted_faults.machines import MACHINES, find, first_line
from tests.planted_faults.support import PACKAGE, copy_of_package, plant

# The number of runs that a copy without a fault must pass.
SOUND: dict[Machine, int] = {
    "simulation": 100,
    "state machine": 100,
    "scheduler": 100,
    "cancel everywhere": 0,
    "interruption sweep": 0,
    "spool": 0,
    "stores": 0,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_place_in_the_package(fault: PlantedFault) -> None:
    assert (PACKAGE / fault.module).read_text().count(fault.right) == 1


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(
    tmp_path: Path, fault: PlantedFault, record_property: Callable[[str, object], None]
) -> None:
    searches = find(plant(tmp_path, fault.module, fault.right, fault.wrong), fault)
    record_property("runs", {machine: search.runs for machine, search in searches.items()})
    assert [search for search in searches.values() if search.failure is not None], searches


@pytest.mark.long
@pytest.mark.parametrize("machine", MACHINES)
def test_a_copy_without_a_fault_passes(tmp_path: Path, machine: Machine) -> None:
    environ = copy_of_package(tmp_path)
    scenarios = sorted({fault.scenario for fault in FAULTS if fault.first == machine and fault.scenario is not None})
    for scenario in (*scenarios,) or (None,):
        search = MACHINES[machine](environ, SOUND[machine], scenario)
        assert search.failure is None


@pytest.mark.parametrize("machine", MACHINES)
def test_each_machine_tests_the_copy(tmp_path: Path, machine: Machine) -> None:
    environ = plant(tmp_path, "_spans/batch.py", "from __future__ import annotations", "raise RuntimeError")
    assert MACHINES[machine](environ, 1, None).failure is not None


def test_a_fault_whose_place_is_gone_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"location\.py has this 0 times, not once: 'no such code'"):
        plant(tmp_path, "_scheduler/location.py", "no such code", "")


def test_the_most_informative_line_of_a_failure_is_shown() -> None:
    group = (
        '  + Exception Group Traceback (most recent call last):\n  |   File "x.py"\n  | ValueError: 3 is odd\n  +----'
    )
    bare = 'Traceback (most recent call last):\n  File "x.py"\n    assert 2 > 3\n           ^^^^^\nAssertionError\n'
    assert first_line("at rest: the driver sleeps\nmore\n") == "at rest: the driver sleeps"
    assert first_line(group) == "ValueError: 3 is odd"
    assert first_line(bare) == "assert 2 > 3"
    assert first_line(" \n") == "it ended without any output"


def test_the_command_lists_all_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(fault.name in line and fault.first in line for line in lines) for fault in FAULTS)


def test_the_command_needs_a_name_that_selects_one_fault(capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("no such fault", "no fault is named 'no such fault'"), ("a lease", "is ambiguous")):
        with pytest.raises(SystemExit):
            main([name])
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_the_command_plants_a_fault_and_names_the_machine_that_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a batch takes one span too many"]) == 0
    assert "found by the state machine" in capsys.readouterr().out
