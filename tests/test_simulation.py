"""The seeded simulation of the whole system: thousands of fresh seeds, and that a seed repeats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from background import Command
from planting import plant
from process_support import untraced_environment
from simulation.run import run_seed

TESTS = Path(__file__).parent
SEEDS = 2000


def simulate(*arguments: object, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulation", *map(str, arguments)],
        cwd=TESTS,
        env={**untraced_environment(), **(environ or {})},
        capture_output=True,
        text=True,
    )


@pytest.mark.background("-m", "simulation", "--seeds", SEEDS, "--quiet")
def test_thousands_of_fresh_seeds_pass(background: Command, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, said = background.wait()
    with capsys.disabled():
        print(f"\nsimulation: {said.strip()}")
    assert exit_code == 0, said
    assert f"{SEEDS:,} seeds passed" in said


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_repeats_step_by_step(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first == second
    assert first.failure is None


def test_a_seed_repeats_in_another_process_whose_hashes_differ() -> None:
    said = {simulate("--seed", 7, environ={"PYTHONHASHSEED": hashes}).stdout for hashes in ("1", "2")}
    assert len(said) == 1
    assert f"digest {run_seed(7).digest:x}" in said.pop()


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
