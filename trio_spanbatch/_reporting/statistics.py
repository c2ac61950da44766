"""The records in which a batcher tells what became of its spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from .._spans.batch import SpanBatch
from .._spans.hashing import hash_of_record

__all__ = [
    "FlushCounts",
    "FlushReport",
    "LocationStatistics",
    "Loss",
    "Settlement",
    "SpanBatcherStatistics",
]


@attrs.frozen(kw_only=True)
class LocationStatistics:
    """What became of one location's spans so far. All but the last two fields are counts.

    Attributes:
        accepted: Spans accepted. Always the sum of the next six.
        queued: Spans that wait in the location's queue.
        in_flight: Spans in batches that are being delivered.
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        spooled: Spans kept on disk.
        undelivered: Spans handed back.
        ambiguous: Spans that had an attempt of unknown outcome, each counted once, whatever became of it.
        pending_bytes: Bytes of the spans queued or in flight, as `Limits.max_pending_bytes` counts them.
        requests: Attempts made.
        retries: Attempts that repeated one before.
        splits: Batches cut in two to find the span that a server refuses, or to make a request smaller.
        oldest_pending_age: Seconds since the oldest batch with a pending span was begun; 0 if nothing is pending.
        consecutive_failures: Attempts that failed since the last one that succeeded.
    """

    accepted: int = 0
    queued: int = 0
    in_flight: int = 0
    delivered: int = 0
    rejected: int = 0
    spooled: int = 0
    undelivered: int = 0
    ambiguous: int = 0
    pending_bytes: int = 0
    requests: int = 0
    retries: int = 0
    splits: int = 0
    oldest_pending_age: float = 0.0
    consecutive_failures: int = 0


@attrs.frozen(kw_only=True)
class SpanBatcherStatistics:
    """A snapshot of a batcher's counts, over all locations and for each.

    At every instant ``accepted == queued + in_flight + delivered + rejected + spooled + undelivered``.

    Attributes:
        accepted: Spans accepted.
        queued: Spans that wait in a location's queue.
        in_flight: Spans in batches that are being delivered.
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        spooled: Spans kept on disk.
        undelivered: Spans handed back.
        ambiguous: Spans that had an attempt of unknown outcome, each counted once, whatever became of it.
        pending_bytes: Bytes of the spans queued or in flight, as `Limits.max_pending_bytes` counts them.
        requests: Attempts made.
        retries: Attempts that repeated one before.
        splits: Batches cut in two.
        locations: The same for each location. Locations that ended long ago are left out once more than
            ``Limits.max_locations`` have ended; the counts above keep them.
    """

    accepted: int = 0
    queued: int = 0
    in_flight: int = 0
    delivered: int = 0
    rejected: int = 0
    spooled: int = 0
    undelivered: int = 0
    ambiguous: int = 0
    pending_bytes: int = 0
    requests: int = 0
    retries: int = 0
    splits: int = 0
    locations: Mapping[str, LocationStatistics] = attrs.field(factory=dict)

    __hash__ = hash_of_record


@attrs.frozen(kw_only=True)
class FlushCounts:
    """What became of one location's spans that a flush waited for."""

    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0


@attrs.frozen(kw_only=True)
class FlushReport:
    """What became of the spans that were pending when ``flush`` was called.

    A server that rejects some spans of a batch does not say which. Where such a batch held spans that came after
    the call too, as many of the rejected as can be are counted here.

    Attributes:
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        undelivered: Spans handed back.
        locations: The same for each location that had pending spans.
    """

    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0
    locations: Mapping[str, FlushCounts] = attrs.field(factory=dict)

    __hash__ = hash_of_record


@attrs.frozen
class Loss:
    """Spans that were not delivered, and why.

    Attributes:
        location: Where they belong.
        batch: The spans. Where the server rejected some of a batch without saying which, the whole batch.
        outcome: ``"rejected"`` by the server, or handed back ``"undelivered"``.
        reason: Why, in a few words.
        status_code: The HTTP status code, where there was one.
        count: How many spans were lost. Less than ``len(batch.spans)`` only where a server rejected some.
    """

    location: str
    batch: SpanBatch
    outcome: Literal["rejected", "undelivered"]
    reason: str
    status_code: int | None = None
    count: int = attrs.field(kw_only=True)

    @count.default
    def _all(self) -> int:
        return len(self.batch.spans)


@attrs.frozen
class Settlement:
    """What became of the spans of one lease. The three counts add up to its length.

    Attributes:
        cause: What kind of failure the last attempt ended with if there was no response, in a word.
    """

    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0
    reason: str = ""
    status_code: int | None = None
    cause: str = ""
