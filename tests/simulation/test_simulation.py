"""The seeded simulation of the whole system: thousands of fresh seeds pass, and a seed repeats exactly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.planted_faults.support import plant
from tests.simulation.run import run_seed
from tests.support.long_tests import SAID, run_long
from tests.support.processes import run_to_end, untraced_environment

SEEDS = 2000


def simulate(*arguments: object, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return run_to_end(command, environ={**untraced_environment(), **(environ or {})})


@pytest.mark.long
def test_thousands_of_fresh_seeds_pass(record_property: Callable[[str, object], None]) -> None:
    said = run_long("-m", "tests.simulation", "--seeds", SEEDS, "--jobs", 1, "--quiet")
    assert f"{SEEDS:,} seeds passed" in said
    record_property(SAID, said)


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_repeats_step_by_step(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first == second
    assert first.failure is None


def test_a_seed_repeats_in_another_process_with_other_hashes() -> None:
    said = {simulate("--seed", 7, environ={"PYTHONHASHSEED": hashes}).stdout for hashes in ("1", "2")}
    assert len(said) == 1
    assert f"digest {run_seed(7).digest:x}" in said.pop()


@pytest.mark.long
def test_a_failing_seed_is_shown_with_its_last_events_and_the_command_that_replays_it(
    tmp_path: Path,
) -> None:
    environ = plant(
        tmp_path, "_scheduler/ledger.py", "columns.rejected += settlement.rejected", "columns.rejected += 0"
    )
    ended = simulate("--seeds", 200, "--first", 0, "--quiet", environ=environ)
    assert ended.returncode == 1
    assert " FAILED after " in ended.stdout
    seed = ended.stdout.rpartition("make simulate SEED=")[2].strip()
    again = simulate("--seed", seed, environ=environ)
    assert again.returncode == 1
    assert "FAILED" in again.stdout
    assert "\n".join(ended.stdout.splitlines()[1:10]) in again.stdout
