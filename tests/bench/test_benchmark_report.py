"""The benchmark's results: ratios and goals, the table on the terminal, the page in the documentation."""

from __future__ import annotations

import platform
import re
import sys
import zlib
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attrs
import pytest
from rich.console import Console

from bench.harness import Case, Figures, Limit, Plot, Result, Row, Setup, Spread, figures_of, watch
from bench.machine import machine
from bench.numbers import number
from bench.receiver import Receiver
from bench.report import CaseReport, table, write_page

OURS, PEER = "trio-spanbatch", "OpenTelemetry"


# Figures


def row(beside: str | Limit | None = PEER, *, goal: float | None = None, at_least: bool = False) -> Row:
    return Row("CPU per span", "cpu", "µs", beside, goal, at_least)


def rounds_of(ours: list[float], peers: list[float]) -> dict[str, list[Figures]]:
    return {OURS: [{"cpu": value} for value in ours], PEER: [{"cpu": value} for value in peers]}


def test_a_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, lowest=1.0, highest=5.0)
    assert Spread.of([4.0, 1.0, 2.0, 10.0]) == Spread(3.0, lowest=1.0, highest=10.0)


def test_ratios_are_computed_within_rounds_and_not_from_medians() -> None:
    result = Result.of(row(), rounds_of([1.0, 2.0, 9.0], [1.0, 4.0, 3.0]))
    assert result.figure == Spread(2.0, 1.0, 9.0)
    assert result.beside == Spread(3.0, 1.0, 4.0)
    assert result.ratio == Spread(1.0, 0.5, 3.0)


def test_sides_with_unequal_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        Result.of(row(), rounds_of([1.0, 2.0], [1.0]))


def test_a_figure_is_found_by_its_side_and_name() -> None:
    rounds: dict[str, list[Figures]] = {OURS: [{"cpu": 6.0, "encoder: cpu": 2.0}], PEER: [{"cpu": 12.0, "wall": 24.0}]}
    assert figures_of(f"{PEER}: wall", rounds) == [24.0]
    assert figures_of(f"{OURS}: encoder: cpu", rounds) == [2.0]
    for beside, value in ((PEER, 12.0), (f"{PEER}: wall", 24.0), (f"{OURS}: encoder: cpu", 2.0)):
        result = Result.of(row(beside), rounds)
        assert result.beside == Spread(value, value, value)
        assert result.ratio == Spread(6 / value, 6 / value, 6 / value)


def test_a_row_may_show_the_figure_of_another_side() -> None:
    result = Result.of(attrs.evolve(row(OURS), side=PEER), rounds_of([2.0], [8.0]))
    assert (result.figure.median, result.ratio) == (8.0, Spread(4.0, 4.0, 4.0))


def test_a_limit_is_the_same_in_each_round() -> None:
    result = Result.of(row(Limit(2.0)), rounds_of([1.0, 4.0, 3.0], []))
    assert (result.beside, result.ratio) == (Spread(2.0, 2.0, 2.0), Spread(1.5, 0.5, 2.0))


def test_a_figure_without_a_comparison_has_no_ratio_and_no_verdict() -> None:
    result = Result.of(row(None, goal=1.0), rounds_of([1.0, 3.0], []))
    assert result.figure == Spread(2.0, 1.0, 3.0)
    assert (result.beside, result.ratio, result.missed_by, result.is_met) == (None, None, None, None)


def test_without_a_goal_nothing_is_met_or_missed() -> None:
    result = Result.of(row(), rounds_of([1.0], [2.0]))
    assert (result.ratio, result.missed_by, result.is_met) == (Spread(0.5, 0.5, 0.5), None, None)


@pytest.mark.parametrize(
    ("ratio", "goal", "at_least", "missed_by", "is_met"),
    [
        (0.25, 0.5, False, -0.5, True),
        (0.5, 0.5, False, 0.0, True),
        (0.75, 0.5, False, 0.5, False),
        (0.75, 0.5, True, -0.5, True),
        (0.5, 0.5, True, 0.0, True),
        (0.25, 0.5, True, 0.5, False),
    ],
)
def test_a_goal_is_missed_by_a_fraction_of_it(
    ratio: float, goal: float, at_least: bool, missed_by: float, is_met: bool
) -> None:
    # The rounds around the median do not matter.
    result = Result.of(row(goal=goal, at_least=at_least), rounds_of([ratio, 0.01, 99.0], [1.0, 1.0, 1.0]))
    assert (result.missed_by, result.is_met) == (missed_by, is_met)


def test_watching_measures_cpu_time_and_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = iter([100.0, 107.0]), iter([1.0, 3.0])
    clocks = SimpleNamespace(perf_counter=lambda: next(wall), process_time=lambda: next(cpu))
    monkeypatch.setattr("bench.harness.time", clocks)
    with watch() as seen:
        pass
    assert (seen.cpu, seen.wall) == (2.0, 7.0)


def test_a_case_is_smaller_when_it_is_quick() -> None:
    assert Setup(Receiver(1), quick=False).size(4096, 512) == 4096
    assert Setup(Receiver(1), quick=True).size(4096, 512) == 512


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.123, "0.12"), (9.87, "9.87"), (-3.0, "-3.00"), (12.34, "12.3"), (100.0, "100"), (1234567.8, "1,234,568")],
)
def test_a_number_is_written_with_three_significant_digits(value: float, written: str) -> None:
    assert number(value) == written


# The table and the page

MISSED, MET, LIMITED, SHOWN = (
    Row("Encoding: CPU per span", "cpu", "µs", PEER, goal=0.2),
    Row("Throughput", "rate", "spans/s", f"{OURS}: encoder's", goal=0.5, at_least=True),
    Row("Longest stall", "stall", "ms", Limit(3.0), goal=1.0),
    Row("Memory per location", "location", "bytes"),
)
COUNTED = Case(
    name="counted",
    title="What was counted",
    about="Nothing was measured.",
    sides={},
    rows=(MISSED, MET, LIMITED, SHOWN),
)
COUNTS: dict[str, list[Figures]] = {
    OURS: [
        {"cpu": 2.0, "rate": 30_000.0, "encoder's": 50_000.0, "stall": 1.5, "location": 2345.0},
        {"cpu": 3.0, "rate": 40_000.0, "encoder's": 50_000.0, "stall": 0.3, "location": 2345.0},
        {"cpu": 2.5, "rate": 20_000.0, "encoder's": 50_000.0, "stall": 0.6, "location": 2345.0},
    ],
    PEER: [{"cpu": 10.0}, {"cpu": 10.0}, {"cpu": 10.0}],
}
CELLS = [
    ["Encoding: CPU per span", "2.50 µs", "10.0 µs (OpenTelemetry)", "0.25 (0.20 to 0.30)", "≤ 0.20", "missed by 25%"],
    ["Throughput", "30,000 spans/s", "50,000 spans/s (encoder's)", "0.60 (0.40 to 0.80)", "≥ 0.50", "met"],
    ["Longest stall", "0.60 ms", "3.00 ms (limit)", "0.20 (0.10 to 0.50)", "≤ 1.00", "met"],
    ["Memory per location", "2,345 bytes", "", "", "", ""],
]


def with_plain_spaces(text: str) -> str:
    """Return ``text`` with spaces instead of no-break spaces."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def shown_cells(*, with_goals: bool) -> list[list[str]]:
    """Return the cells of the table on the terminal, row by row, the headings first."""
    console = Console(file=StringIO(), width=200)
    with console.capture() as said:
        console.print(table([CaseReport(COUNTED, COUNTS)], with_goals=with_goals))
    lines = [re.split("[│┃]", line)[1:-1] for line in with_plain_spaces(said.get()).splitlines()]
    return [[cell.strip() for cell in line] for line in lines if line]


def page_of(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[tuple[Plot, Path]]]:
    """Write the page; return its text, and each plot with its file."""
    drawn: list[tuple[Plot, Path]] = []
    plots = ModuleType("bench.plots")
    # The real one needs matplotlib, and the versions need MLflow: only `make bench` installs them.
    vars(plots)["draw"] = lambda plot, rounds, file: drawn.append((plot, file))
    monkeypatch.setitem(sys.modules, "bench.plots", plots)
    monkeypatch.setattr("bench.machine.version", lambda package: f"version of {package}")
    cases = [case, attrs.evolve(case, name="next", title="The next")]
    write_page([CaseReport(case, COUNTS) for case in cases], folder)
    return with_plain_spaces((folder / "benchmarks.md").read_text(encoding="utf-8")), drawn


def test_the_table_shows_figures_comparisons_ratios_and_verdicts() -> None:
    headings = ["what", "here", "compared with", "ratio (range)", "goal", ""]
    assert shown_cells(with_goals=True) == [headings, *CELLS]


def test_without_goals_the_table_ends_with_the_ratio() -> None:
    headings = ["what", "here", "compared with", "ratio (range)"]
    assert shown_cells(with_goals=False) == [headings, *(cells[:4] for cells in CELLS)]


def test_the_page_has_a_section_per_case_with_a_line_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, _ = page_of(COUNTED, tmp_path, monkeypatch)
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in page.splitlines() if "|" in line]
    headings = [["what", "here", "compared with", "ratio (range)", "goal"], ["|---|--:|--:|--:|--:|"]]
    assert rows == [*headings, *(cells[:5] for cells in CELLS)] * 2
    assert re.findall("^## .*", page, re.MULTILINE) == ["## What was counted", "## The next"]
    assert page.count("\nNothing was measured.\n") == 2


def test_the_page_has_the_machine_the_versions_and_the_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [datetime.now(UTC)]
    page, _ = page_of(COUNTED, tmp_path, monkeypatch)
    days.append(datetime.now(UTC))
    assert any(f"\nMeasured on {day.day} {day:%B %Y}: {machine()}. \n" in page for day in days)
    assert re.search(r", \d+ cores, ", machine())
    assert platform.release() in machine()
    assert (
        f"\n{platform.python_implementation()} {platform.python_version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}, " in page
    )
    for package in ("trio-spanbatch", "trio", "opentelemetry-sdk", "mlflow-skinny"):
        assert f", {package} version of {package}" in page


def test_the_page_shows_the_plots_that_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Plot("Time", "µs", ()), Plot("Space", "bytes", ())
    page, drawn = page_of(attrs.evolve(COUNTED, plots=(first, second)), tmp_path, monkeypatch)
    files = {"counted-1.svg": first, "counted-2.svg": second, "next-1.svg": first, "next-2.svg": second}
    plots = tmp_path / "_static" / "benchmarks"
    assert drawn == [(plot, plots / name) for name, plot in files.items()]
    assert plots.is_dir()
    shown = [f"![{plot.title}](_static/benchmarks/{name})" for name, plot in files.items()]
    assert re.findall(r"^!.*", page, re.MULTILINE) == shown


def test_a_plot_that_is_the_only_one_of_its_case_has_the_cases_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = Plot("Time", "µs", ())
    _, drawn = page_of(attrs.evolve(COUNTED, plots=(plot,)), tmp_path, monkeypatch)
    assert [file.name for _, file in drawn] == ["counted.svg", "next.svg"]
