"""After a cancel at any step, every span is accounted for and no task, connection or channel is left.

The machine runs in child processes, without coverage.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.planted_faults.support import plant
from tests.support.long_tests import run_long
from tests.support.processes import run_to_end

MACHINE = ("-m", "tests.cancellation")


def start(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_to_end([sys.executable, *MACHINE, *arguments], environ=environ)


def rows(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["scenario"], row["scope"]): row for row in report["rows"]}


@pytest.mark.long
def test_a_cancel_after_any_step_of_any_scenario_loses_nothing_and_leaves_nothing() -> None:
    by_scope = rows(json.loads(run_long(*MACHINE, "--json", "--jobs", 1)))
    scenarios = {scenario: row["steps"] for (scenario, _), row in by_scope.items()}
    assert len(scenarios) >= 20
    assert max(scenarios.values()) <= 300
    for scenario, steps in scenarios.items():
        # One more for the cancel before the first step, where a Ctrl-C has nothing to interrupt.
        assert {by_scope[scenario, scope]["runs"] for scope in ("everything", "body", "error")} == {steps + 1}
        assert by_scope[scenario, "ctrl-c"]["runs"] == steps
        if scenario != "entering":
            assert {by_scope[scenario, scope]["runs"] for scope in ("adder", "flusher")} == {steps + 1}
    twice = [row for (_, scope), row in by_scope.items() if ", then " in scope]
    assert {row["scope"] for row in twice} == {"body, then everything", "body, then ctrl-c"}
    assert all(row["runs"] > 5 * row["steps"] for row in twice)


@pytest.mark.long
def test_a_cancel_after_any_step_is_survived_by_the_whole_http_path_too() -> None:
    ended = start("--http", "--json", "--scenario", "closing_hangs", "--scope", "everything", "--scope", "body")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    # They include the client's and the server's steps.
    assert [row["runs"] > 50 for row in report["rows"]] == [True, True]


@pytest.mark.long
def test_a_cancel_after_any_step_is_survived_with_a_spool_too() -> None:
    report = json.loads(run_long(*MACHINE, "--spool", "--quick", "--json", "--jobs", 1))
    assert len({row["scenario"] for row in report["rows"]}) >= 20


@pytest.mark.long
def test_a_failure_is_shown_with_the_command_that_repeats_it(tmp_path: Path) -> None:
    environ = plant(
        tmp_path,
        "_runtime/supervisor.py",
        "            raise failure\n        await trio.lowlevel.checkpoint_if_cancelled()\n",
        "            raise failure\n",
    )
    failed = start("--scenario", "quiet", "--scope", "everything", environ=environ)
    assert failed.returncode == 1
    assert "cancelled, and the batcher raised None" in failed.stderr
    command = failed.stderr.splitlines()[-1].partition("repeat it with: python -m tests.cancellation ")[2]
    again = start(*command.split(), environ=environ)
    assert again.returncode == 1
    assert "cancelled, and the batcher raised None" in again.stderr
    assert "cancel: everything" in again.stdout
    assert start(*command.split()).returncode == 0


def test_a_failure_without_a_cancel_is_shown_with_its_command_too(tmp_path: Path) -> None:
    environ = plant(
        tmp_path,
        "_scheduler/scheduler.py",
        "        location.queue_in.close()\n        location.queue_out.close()\n",
        "",
    )
    failed = start("--json", "--scenario", "quiet", environ=environ)
    assert failed.returncode == 1
    report = json.loads(failed.stdout)
    assert "a channel is left" in report["failure"]
    assert report["replay"] == "python -m tests.cancellation --scenario quiet --trace"
    again = start("--scenario", "quiet", "--trace", environ=environ)
    assert again.returncode == 1
    assert "a channel is left" in again.stderr


def test_one_run_repeats_step_by_step() -> None:
    arguments = (
        "--scenario",
        "quiet",
        "--scope",
        "body",
        "--step",
        "7",
        "--then",
        "9",
        "--second",
        "everything",
        "--trace",
    )
    first, second = start(*arguments), start(*arguments)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["1", "2", "3", "4", "5", "6"]
    assert lines[7].split() == ["cancel:", "body"]
    assert lines[10].split() == ["cancel:", "everything"]
    assert second.stdout == first.stdout


def test_a_single_run_needs_exactly_one_scenario() -> None:
    ended = start("--trace")
    assert ended.returncode == 2
    assert "--step and --trace need exactly one --scenario" in ended.stderr
