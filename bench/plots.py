"""The plots: bars with the median of each figure and a line over its range, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.harness import Figures, Plot, Spread, figures_of
from bench.numbers import number

__all__ = ["draw"]

_OURS, _OTHERS = "#2563a8", "#b9bec6"


def draw(plot: Plot, rounds: Mapping[str, list[Figures]], file: Path) -> None:
    """Draw ``plot`` into ``file``."""
    spreads = [Spread.of(figures_of(bar.figure, rounds)) for bar in plot.bars]
    mpl.rcParams.update({"svg.hashsalt": "trio-spanbatch", "svg.fonttype": "none", "font.size": 10})
    figure = Figure(figsize=(7.6, 0.8 + 0.36 * len(spreads)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    places = range(len(spreads), 0, -1)
    bars = axes.barh(
        places,
        [spread.median for spread in spreads],
        color=[_OURS if bar.is_ours else _OTHERS for bar in plot.bars],
        xerr=[
            [spread.median - spread.lowest for spread in spreads],
            [spread.highest - spread.median for spread in spreads],
        ],
        error_kw={"elinewidth": 1, "ecolor": "#333333"},
        log=plot.is_logarithmic,
    )
    axes.bar_label(bars, [f" {number(spread.median)} {plot.unit}" for spread in spreads], padding=6)
    axes.set_yticks(places, [bar.label for bar in plot.bars])
    axes.set_title(plot.title, loc="left", fontsize=11)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None})
