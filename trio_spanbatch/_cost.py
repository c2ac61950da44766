"""What pending spans take of the byte budgets: their own bytes, and those of the resource and scope that they share.

A resource and a scope are in memory once for all spans that share them, which nearly always stand one after the other.
So a span that has the same ones as the span before it in its location costs its own bytes, and one that has others
costs theirs as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from ._batch import EncodedSpan, SpanHeaders

__all__ = ["cost_after", "cost_of"]


def cost_after(headers: SpanHeaders | None, span: EncodedSpan) -> int:
    """Return the bytes that ``span`` costs after one with ``headers``; None stands for no span before it."""
    size = len(span.payload)
    return size if span.headers is headers else size + span.headers.size


def cost_of(spans: Iterable[EncodedSpan], headers: SpanHeaders | None = None) -> int:
    """Return the bytes that ``spans`` cost one after the other, after one with ``headers``."""
    cost = 0
    for span in spans:
        cost += cost_after(headers, span)
        headers = span.headers
    return cost
