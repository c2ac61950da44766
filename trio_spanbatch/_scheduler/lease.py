"""A lease: a sealed batch, or a part of one, until each of its spans is accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .._spans.batch import EncodedSpan, SpanBatch, SpanHeaders, cost_of

if TYPE_CHECKING:
    from .location import Location

__all__ = ["Lease"]


@attrs.define(eq=False)
class Lease:
    """A batch, or a part of one, from its sealing until each of its spans is accounted for.

    Attributes:
        location: The live location of its spans.
        batch: The spans.
        first: The number of its first span in its location; the others follow without a gap.
        opened_at: When its first span was accepted, in seconds of the clock.
        headers_before: The headers of the span accepted before its first one; None if no span was pending then.
        cost: The bytes of the budgets that its spans take.
        ambiguous: Whether an attempt of unknown outcome was counted for its spans.
        attempts: How many attempts were made with exactly these spans.
        may_repeat: Whether its next attempt may begin, with an export slot.
    """

    location: Location
    batch: SpanBatch
    first: int
    opened_at: float
    headers_before: SpanHeaders | None
    cost: int
    ambiguous: bool = False
    attempts: int = 0
    may_repeat: bool = False

    def __len__(self) -> int:
        return len(self.batch.spans)

    def split(self, at: int) -> tuple[Lease, Lease]:
        """Return a lease for the first ``at`` spans and one for the others."""
        left, right = self.batch.spans[:at], self.batch.spans[at:]
        return self._part(left, self.first, self.headers_before), self._part(right, self.first + at, left[-1].headers)

    def _part(self, spans: tuple[EncodedSpan, ...], first: int, headers: SpanHeaders | None) -> Lease:
        batch = SpanBatch(self.batch.location, spans)
        cost = cost_of(spans, headers)
        return attrs.evolve(self, batch=batch, first=first, headers_before=headers, cost=cost, attempts=0)
