"""The goals that the package's own rules have to meet after an outage of five minutes."""

from __future__ import annotations

from tests.herd.server import Figures

__all__ = ["missed_goals"]

# The seconds until 99 % of the clients' backlogs are drained, and whether a 503 is allowed, by the capacity.
_GOALS = {2.2: (30.0, False), 1.2: (60.0, True)}
_MOST_WASTED = 0.01


def missed_goals(capacity: float, figures: Figures) -> list[str]:
    """Return the goals that a run has missed, in words."""
    missed = []
    within, may_reject = _GOALS.get(capacity, (float("inf"), True))
    drained = figures.drained_within(0.99)
    if drained > within:
        missed.append(f"{capacity:g} times the capacity: 99 % drained after {drained:.1f} s, not within {within:g} s")
    if figures.rejected and not may_reject:
        missed.append(f"{capacity:g} times the capacity: {figures.rejected:,} answers were 503")
    if figures.wasted_part >= _MOST_WASTED:
        missed.append(f"{capacity:g} times the capacity: {figures.wasted_part:.2%} of the server's time was wasted")
    return missed
