"""What a run tells: the table on the terminal, and the page in the documentation."""

from __future__ import annotations

from rich.table import Table

from bench.harness import Case, Limit, Result, Spread

__all__ = ["table"]


def table(results: list[tuple[Case, list[Result]]]) -> Table:
    """Return the table for the terminal."""
    shown = Table()
    shown.add_column("what", max_width=60)
    for heading in ("here", "beside it", "ratio (range)", "goal", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for _, rows in results:
        for result in rows:
            shown.add_row(*cells(result))
        shown.add_section()
    return shown


def cells(result: Result) -> tuple[str, ...]:
    """Return what a line of the table shows of a result."""
    row, ratio = result.row, result.ratio
    return (
        row.what,
        f"{number(result.figure.median)} {row.unit}",
        _beside(result),
        "" if ratio is None else _spread(ratio),
        "" if row.goal is None else f"{'≥' if row.at_least else '≤'} {row.goal:.2f}",
        {True: "met", False: "missed", None: ""}[result.is_met],
    )


def number(value: float) -> str:
    """Return ``value`` with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _beside(result: Result) -> str:
    row = result.row
    if row.beside is None or result.beside is None:
        return ""
    name = "limit" if isinstance(row.beside, Limit) else row.beside
    return f"{number(result.beside.median)} {row.unit} ({name})"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.lowest:.2f} to {spread.highest:.2f})"
