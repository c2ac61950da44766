"""The seeded simulation of the whole system: thousands of fresh seeds, and that a seed repeats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from long_tests import SAID, run_long
from planting import plant
from process_support import run_to_end, untraced_environment
from simulation.run import run_seed

TESTS = Path(__file__).parent
SEEDS = 2000


def simulate(*arguments: object, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulation", *arguments]
    return run_to_end(command, folder=TESTS, environ={**untraced_environment(), **(environ or {})})


@pytest.mark.long
def test_thousands_of_fresh_seeds_pass(record_property: Callable[[str, object], None]) -> None:
    said = run_long("-m", "simulation", "--seeds", SEEDS, "--jobs", 1, "--quiet")
    assert f"{SEEDS:,} seeds passed" in said
    record_property(SAID, said)


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_repeats_step_by_step(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first == second
    assert first.failure is None


def test_a_seed_repeats_in_another_process_whose_hashes_differ() -> None:
    said = {simulate("--seed", 7, environ={"PYTHONHASHSEED": hashes}).stdout for hashes in ("1", "2")}
    assert len(said) == 1
    assert f"digest {run_seed(7).digest:x}" in said.pop()


@pytest.mark.long
def test_a_failing_seed_is_shown_with_its_last_events_and_the_command_that_replays_it(
    tmp_path: Path,
) -> None:
    environ = plant(tmp_path, "_ledger.py", "account.rejected += settlement.rejected", "account.rejected += 0")
    ended = simulate("--seeds", 200, "--first", 0, "--quiet", environ=environ)
    assert ended.returncode == 1
    assert " FAILED after " in ended.stdout
    seed = ended.stdout.rpartition("make simulate SEED=")[2].strip()
    again = simulate("--seed", seed, environ=environ)
    assert again.returncode == 1
    assert "FAILED" in again.stdout
    assert "\n".join(ended.stdout.splitlines()[1:10]) in again.stdout
