"""The format of numbers."""

from __future__ import annotations

__all__ = ["number"]


def number(value: float) -> str:
    """Format ``value`` with three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
