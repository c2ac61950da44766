"""The output of a run: the table on the terminal, and the page in the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import attrs
from rich.table import Table

from bench.harness import Case, Figures, Limit, Plot, Result, Spread
from bench.machine import machine, versions
from bench.numbers import number

__all__ = ["CaseReport", "table", "write_page"]

_NO_BREAK = "\N{NO-BREAK SPACE}"
_HEADINGS = ("what", "here", "compared with", "ratio (range)", "goal", "")


@attrs.frozen
class CaseReport:
    """A case and its results.

    Attributes:
        case: The case.
        rounds: Each side's figures, round by round.
    """

    case: Case
    rounds: Mapping[str, list[Figures]]

    @property
    def results(self) -> list[Result]:
        """A result for each row."""
        return [Result.of(row, self.rounds) for row in self.case.rows]


def table(reports: list[CaseReport], *, with_goals: bool) -> Table:
    """Return the table for the terminal, with or without its last two columns."""
    columns = len(_HEADINGS) if with_goals else len(_HEADINGS) - 2
    shown = Table()
    shown.add_column(_HEADINGS[0], max_width=60)
    for heading in _HEADINGS[1:columns]:
        shown.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        for result in report.results:
            shown.add_row(*_cells(result)[:columns])
        shown.add_section()
    return shown


def write_page(reports: list[CaseReport], folder: Path) -> None:
    """Write ``benchmarks.md`` into ``folder``, and the plots next to it."""
    from bench.plots import draw

    plots = folder / "_static" / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    for report in reports:
        for name, plot in _plots(report.case):
            draw(plot, report.rounds, plots / name)
    page = "\n".join(_page(reports))
    (folder / "benchmarks.md").write_text(page, encoding="utf-8")


def _plots(case: Case) -> Iterator[tuple[str, Plot]]:
    for index, plot in enumerate(case.plots):
        yield f"{case.name}-{index + 1}.svg" if len(case.plots) > 1 else f"{case.name}.svg", plot


def _page(reports: list[CaseReport]) -> Iterator[str]:
    yield "<!-- Written by `make bench`. -->"
    yield "# Benchmarks"
    yield ""
    yield (
        "Each figure is the median of at least seven rounds, in which both sides run in turn on the same spans, each "
        "in a separate process. CPU time is that of the process, including all threads. The ratio is computed within "
        "each round, and its range is in parentheses. Each round ends with a check, by id, that every span arrived "
        "exactly once. [Performance](performance.md) explains the figures. `make bench` writes this page."
    )
    yield ""
    yield f"Measured on {datetime.now(UTC):%-d %B %Y}: {machine()}. "
    yield ", ".join(f"{name} {number_}" for name, number_ in versions()) + "."
    for report in reports:
        yield ""
        yield from _section(report)


def _section(report: CaseReport) -> Iterator[str]:
    yield f"## {report.case.title}"
    yield ""
    yield report.case.about
    yield ""
    # Without the verdict, the last column, which is for maintainers.
    yield f"| {' | '.join(_HEADINGS[:-1])} |"
    yield "|---|--:|--:|--:|--:|"
    for result in report.results:
        yield f"| {' | '.join(_cells(result)[:-1])} |"
    for name, plot in _plots(report.case):
        yield ""
        yield f"![{plot.title}](_static/benchmarks/{name})"


def _cells(result: Result) -> tuple[str, ...]:
    row, ratio = result.row, result.ratio
    return (
        row.what,
        _amount(result.figure, row.unit),
        _beside(result),
        "" if ratio is None else _spread(ratio),
        "" if row.goal is None else f"{'≥' if row.at_least else '≤'}{_NO_BREAK}{row.goal:.2f}",
        _verdict(result),
    )


def _verdict(result: Result) -> str:
    if result.missed_by is None:
        return ""
    return "met" if result.missed_by <= 0 else f"missed by {result.missed_by:.0%}"


def _amount(spread: Spread, unit: str) -> str:
    return f"{number(spread.median)}{_NO_BREAK}{unit}".strip()


def _beside(result: Result) -> str:
    row = result.row
    if row.beside is None or result.beside is None:
        return ""
    name = "limit" if isinstance(row.beside, Limit) else row.beside.removeprefix(f"{row.side}: ")
    return f"{_amount(result.beside, row.unit)} ({name})"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.lowest:.2f} to {spread.highest:.2f})"
