"""A table of names and numbers in whatever width there is: no number is ever cut, and no name lost.

Three layouts, the first that fits: a name and its numbers on one line; the same without columns that have nothing to
tell, which a line below names; a name with ``label number`` pairs below, as many on a line as fit.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import attrs
from rich.cells import cell_len

__all__ = ["Line", "table_lines"]

# How far columns stand apart: as far as there is room for.
_GAPS = ("  ", " ")
_INDENT = "  "


@attrs.frozen
class Line:
    """A line of a table. Names may be longer than the width; everything else fits.

    Attributes:
        text: What it says.
        heading: Whether it names columns.
    """

    text: str
    heading: bool = False


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, optional: Collection[str] = ()
) -> list[Line]:
    """Return the lines of a table whose first column holds names, and whose others hold numbers.

    Args:
        columns: What stands above them.
        rows: A name and its numbers each.
        width: How many characters there are to a line.
        optional: Columns that may be left out where there is nothing but zeros in them, if the table does not fit.
    """
    lines = _beside_if_it_fits(columns, rows, width)
    if lines is not None:
        return lines
    empty = [label for place, label in enumerate(columns) if label in optional and all(r[place] == "0" for r in rows)]
    if empty:
        kept = [place for place, label in enumerate(columns) if label not in empty]
        columns, rows = [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]
        lines = _beside_if_it_fits(columns, rows, width)
    if lines is None:
        lines = [line for row in rows for line in _pairs(columns[1:], row, width)]
    note = textwrap.wrap(f"0 everywhere: {', '.join(empty)}", width) if empty else []
    return [*lines, *map(Line, note)]


def _beside_if_it_fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Line] | None:
    labels, names = columns[1:], [columns[0], *(row[0] for row in rows)]
    # A label may be folded at its spaces; a number may not.
    widths = [
        max(map(cell_len, [*label.split(), *cells]))
        for label, *cells in zip(labels, *(row[1:] for row in rows), strict=True)
    ]
    name_width = max(map(cell_len, names))
    for gap in _GAPS:
        numbers_width = sum(widths) + len(gap) * (len(widths) - 1)
        if name_width + len(gap) + numbers_width <= width:
            return list(_beside(columns, rows, [name_width, *widths], gap))
    return None


def _beside(columns: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int], gap: str) -> Iterator[Line]:
    for heading in _folded(columns, widths):
        yield Line(_joined(heading, widths, gap), heading=True)
    for row in rows:
        yield Line(_joined(row, widths, gap))


def _pairs(labels: Sequence[str], row: Sequence[str], width: int) -> Iterator[Line]:
    yield Line(row[0])
    line = ""
    for label, number in zip(labels, row[1:], strict=True):
        pair = f"{label} {number}"
        longer = f"{line}, {pair}" if line else f"{_INDENT}{pair}"
        if line and cell_len(longer) + len(",") > width:
            yield Line(f"{line},")
            longer = f"{_INDENT}{pair}"
        line = longer
    yield Line(line)


def _folded(labels: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """Return the lines of a heading, the short labels on the last of them."""
    cells = [_fold(label, width) for label, width in zip(labels, widths, strict=True)]
    height = max(map(len, cells))
    return [list(line) for line in zip(*([""] * (height - len(cell)) + cell for cell in cells), strict=True)]


def _fold(label: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in label.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _joined(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    places: list[Callable[[str, int], str]] = [_to_the_left, *[_to_the_right] * (len(cells) - 1)]
    return gap.join(place(cell, width) for place, cell, width in zip(places, cells, widths, strict=True)).rstrip()


def _to_the_left(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _to_the_right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
