"""What became of the spans that ``send`` read: in one document for programs, in a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from .._reporting.statistics import LocationStatistics, Loss, SpanBatcherStatistics
from .screen import Screen
from .watched import GIVEN_UP

__all__ = ["COUNTS", "Tally"]

# Counts that the batcher keeps, in the order in which they are shown.
_BATCHER_COUNTS = ("accepted", "delivered", "rejected", "undelivered", "ambiguous", "requests", "retries")
COUNTS = ("read", "accepted", "delivered", "rejected", "undelivered", "ambiguous", "invalid", "requests", "retries")
# Left out of a table that would not fit, if they are zero.
_OFTEN_ZERO = frozenset({"rejected", "undelivered", "ambiguous", "invalid", "retries"})

_MAX_ROWS = 25
_MAX_REASONS = 25


@attrs.define
class Tally:
    """Counts of spans. ``read`` is never counted by itself: it is what was accepted and what was invalid.

    Attributes:
        invalid: Spans, and lines that are no requests, that were reported and left out.
        invalid_by_location: Those of them whose location is known.
        not_sent: For each location, how many requests the batcher counts that were not sent: `WatchedExporter`'s.
        not_repeated: The same for retries.
        given_up: For each location, how many spans the batcher counts as rejected that were handed back: `GIVEN_UP`.
    """

    invalid: int = 0
    invalid_by_location: Counter[str] = attrs.Factory(Counter)
    not_sent: Counter[str] = attrs.Factory(Counter)
    not_repeated: Counter[str] = attrs.Factory(Counter)
    given_up: Counter[str] = attrs.Factory(Counter)
    _reasons: Counter[tuple[str, str, str]] = attrs.Factory(Counter)

    def add_invalid(self, location: str | None) -> None:
        """Count a span that is left out."""
        self.invalid += 1
        if location is not None:
            self.invalid_by_location[location] += 1

    def add_loss(self, loss: Loss) -> None:
        """Count spans that were rejected or undelivered, under their reason."""
        outcome: str = loss.outcome
        if loss.status_code == GIVEN_UP and outcome == "rejected":
            outcome = "undelivered"
            self.given_up[loss.location] += loss.count
        key = (loss.location, outcome, loss.reason)
        if key not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            key = ("other locations", outcome, "for other reasons")
        self._reasons[key] += loss.count

    def losses(self) -> Iterator[str]:
        """Yield a line for each reason for which spans of a location were lost."""
        for (location, outcome, reason), count in self._reasons.most_common():
            yield f"{location}: {count:,} {outcome}: {reason}"

    def document(self, statistics: SpanBatcherStatistics) -> dict[str, Any]:
        """Return the counts in all, and under ``locations`` the same for each."""
        names = sorted(statistics.locations.keys() | self.invalid_by_location.keys())
        nothing = LocationStatistics()
        locations = {
            name: _counts(
                statistics.locations.get(name, nothing),
                invalid=self.invalid_by_location[name],
                not_sent=self.not_sent[name],
                not_repeated=self.not_repeated[name],
                given_up=self.given_up[name],
            )
            for name in names
        }
        in_all = _counts(
            statistics,
            invalid=self.invalid,
            not_sent=self.not_sent.total(),
            not_repeated=self.not_repeated.total(),
            given_up=self.given_up.total(),
        )
        return {**in_all, "locations": locations}

    def is_complete(self, statistics: SpanBatcherStatistics) -> bool:
        """Whether everything that was read was delivered."""
        return not (self.invalid or statistics.rejected or statistics.undelivered)

    def show(self, screen: Screen, statistics: SpanBatcherStatistics) -> None:
        """Print the table."""
        document = self.document(statistics)
        locations: dict[str, dict[str, int]] = document["locations"]
        rows = [[name, *_cells(counts)] for name, counts in list(locations.items())[:_MAX_ROWS]]
        if len(locations) != 1:
            rows.append(["in all", *_cells(document)])
        screen.table(["location", *COUNTS], rows, _OFTEN_ZERO)
        if len(locations) > _MAX_ROWS:
            screen.say(f"and {len(locations) - _MAX_ROWS} more locations; --json has them all")


def _counts(
    statistics: SpanBatcherStatistics | LocationStatistics,
    *,
    invalid: int,
    not_sent: int,
    not_repeated: int,
    given_up: int,
) -> dict[str, int]:
    counts = {name: getattr(statistics, name) for name in _BATCHER_COUNTS}
    counts |= {"read": statistics.accepted + invalid, "invalid": invalid}
    counts["rejected"] -= given_up
    counts["undelivered"] += given_up
    counts["requests"] -= not_sent
    counts["retries"] -= not_repeated
    return {name: counts[name] for name in COUNTS}


def _cells(counts: dict[str, Any]) -> list[str]:
    return [f"{counts[name]:,}" for name in COUNTS]
