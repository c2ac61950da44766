"""The outcome of the spans that ``send`` read, as a JSON document or as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from .._reporting.statistics import LocationStatistics, Loss, SpanBatcherStatistics
from .screen import Screen

# In the order in which they are shown.
COUNTS = ("read", "accepted", "delivered", "rejected", "undelivered", "ambiguous", "invalid", "requests", "retries")
# Left out of a table that would not fit, if they are zero.
_OFTEN_ZERO = frozenset({"rejected", "undelivered", "ambiguous", "invalid", "retries"})

_MAX_ROWS = 25
_MAX_REASONS = 25


@attrs.define
class Tally:
    """Counts that the batcher does not keep."""

    invalid: int = 0  # spans, and lines that are not requests, that were reported and left out
    invalid_by_location: Counter[str] = attrs.Factory(Counter)  # those of them whose location is known
    _reasons: Counter[tuple[str, str, str]] = attrs.Factory(Counter)

    def add_invalid(self, location: str | None, count: int = 1) -> None:
        self.invalid += count
        if location is not None:
            self.invalid_by_location[location] += count

    def add_loss(self, loss: Loss) -> None:
        """Count spans that were rejected or undelivered, by reason."""
        key = (loss.location, loss.outcome, loss.reason)
        if key not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            key = ("other locations", loss.outcome, "for other reasons")
        self._reasons[key] += loss.count

    def losses(self) -> Iterator[str]:
        for (location, outcome, reason), count in self._reasons.most_common():
            yield f"{location}: {count:,} {outcome}: {reason}"

    def document(self, statistics: SpanBatcherStatistics) -> dict[str, Any]:
        """Return the totals, and the counts of each location under ``locations``."""
        names = sorted(statistics.locations.keys() | self.invalid_by_location.keys())
        nothing = LocationStatistics()
        locations = {
            name: _counts(statistics.locations.get(name, nothing), self.invalid_by_location[name]) for name in names
        }
        return {**_counts(statistics, self.invalid), "locations": locations}

    def is_complete(self, statistics: SpanBatcherStatistics) -> bool:
        """Whether everything that was read was delivered."""
        return not (self.invalid or statistics.rejected or statistics.undelivered)

    def show(self, screen: Screen, statistics: SpanBatcherStatistics) -> None:
        document = self.document(statistics)
        locations: dict[str, dict[str, int]] = document["locations"]
        rows = [[name, *_cells(counts)] for name, counts in list(locations.items())[:_MAX_ROWS]]
        if len(locations) != 1:
            rows.append(["total", *_cells(document)])
        screen.table(["location", *COUNTS], rows, _OFTEN_ZERO)
        if len(locations) > _MAX_ROWS:
            screen.say(f"and {len(locations) - _MAX_ROWS} more locations; --json shows them all")


def _counts(statistics: SpanBatcherStatistics | LocationStatistics, invalid: int) -> dict[str, int]:
    # Whatever was read was either accepted or invalid.
    ours = {"read": statistics.accepted + invalid, "invalid": invalid}
    return {name: getattr(statistics, name, 0) for name in COUNTS} | ours


def _cells(counts: dict[str, Any]) -> list[str]:
    return [f"{counts[name]:,}" for name in COUNTS]
