"""Records of span counts and losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import nlargest
from typing import Literal

import attrs

from .._errors import on_one_line
from .._spans.batch import SpanBatch
from .._spans.hashing import hash_of_record

# Columns of the table that are shown even if they contain only zeros.
_ALWAYS_SHOWN = ("accepted", "delivered", "rejected", "undelivered")
# The most locations in a text.
_MAX_ROWS = 25
_MAX_NAME_LENGTH = 60


@attrs.frozen(kw_only=True)
class _Counts:
    accepted: int = 0
    recovered: int = 0
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

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in _nonzero(self)) or "no spans"


@attrs.frozen(kw_only=True)
class LocationStatistics(_Counts):
    """A snapshot of one location's counts. The last two fields are not counts.

    Attributes:
        accepted: Spans accepted. Together with ``recovered`` always the sum of the next six.
        recovered: Spans taken over from the spool of a process that has ended.
        queued: Spans in the location's queue.
        in_flight: Spans in batches that are being delivered. With a spool also those that left the queue to be
            committed, or are committed and in memory.
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        spooled: Spans that are in the spool and nowhere in memory. Always 0 without a spool.
        undelivered: Spans handed back.
        ambiguous: Spans that had an attempt of unknown outcome, each counted once, regardless of its final outcome.
        pending_bytes: Bytes of the spans queued or in flight, as `Limits.max_pending_bytes` counts them.
        requests: Attempts made.
        retries: Attempts that repeated an earlier one.
        splits: Batches split in two to find a span that the server refuses, or to make a request smaller.
        oldest_pending_age: Seconds since the oldest batch with a pending span was opened; 0 if no span is pending.
        consecutive_failures: Attempts that failed since the last one that succeeded.
    """

    oldest_pending_age: float = 0.0
    consecutive_failures: int = 0


@attrs.frozen(kw_only=True)
class EndpointStatistics:
    """A snapshot of what is known about a server. Times are as `trio.current_time` tells them.

    Attributes:
        name: What ``endpoint_of`` of the exporter returned; empty if there is only one endpoint.
        is_up: Whether it is up, as far as is known.
        since: When it last went up or down; when it was first used if it has always been up.
        attempts: How many attempts have ended since then.
        next_probe_at: From when on the next attempt may begin. It does once a location that is not backing off itself
            has a batch that is due. None if the server is up.
    """

    name: str = ""
    is_up: bool = True
    since: float = 0.0
    attempts: int = 0
    next_probe_at: float | None = None


@attrs.frozen(kw_only=True)
class SpoolStatistics:
    """A snapshot of a batcher's spool.

    Attributes:
        nbytes: Bytes of the records that are not removed yet, which ``Spool.max_bytes`` limits.
        oldest_age: Seconds since the oldest committed span that is not accounted for was accepted; 0 without one. Some
            servers silently drop old spans.
        uncommitted: Spans that were sent without having been committed, because the disk failed or was full.
        unsendable: Spans from earlier processes that stay in the spool, because nothing can be sent to their location:
            the exporter refuses it, or the function that returns its policy has failed.
        damaged: Damaged records, or pieces of a file, that were moved aside.
        set_aside: Files that could not be read, or that a newer version has written.
        dead: Spans that were rejected, and are kept as dead letters.
    """

    nbytes: int = 0
    oldest_age: float = 0.0
    uncommitted: int = 0
    unsendable: int = 0
    damaged: int = 0
    set_aside: int = 0
    dead: int = 0


@attrs.frozen(kw_only=True)
class SpanBatcherStatistics(_Counts):
    """A snapshot of a batcher's counts: the sums of those of `LocationStatistics`, and the counts of each location.

    At every instant ``accepted + recovered == queued + in_flight + delivered + rejected + spooled + undelivered``.

    Attributes:
        cut: Values that were cut to ``max_attribute_bytes``, also those of spans that were not accepted. An attribute
            of a resource or scope that spans share is counted once.
        locations: The counts of each location. Locations that ended long ago are left out once more than
            ``Limits.max_locations`` have ended; the counts above keep them.
        endpoints: The servers to which the live locations belong, by name. One, unless the exporter tells several
            apart.
        spool: The spool; None without one.
    """

    cut: int = 0
    locations: Mapping[str, LocationStatistics] = attrs.field(factory=dict)
    endpoints: Mapping[str, EndpointStatistics] = attrs.field(factory=dict)
    spool: SpoolStatistics | None = None

    __hash__ = hash_of_record

    @property
    def endpoint(self) -> EndpointStatistics:
        """The server, or of several the one that has been down for longest, or else the first."""
        known = sorted(self.endpoints.values(), key=lambda endpoint: (endpoint.is_up, endpoint.since))
        return known[0] if known else EndpointStatistics()

    def __str__(self) -> str:
        """Return a table: a row for each location, or for those with the most lost spans if there are many."""
        names = [field.name for field in attrs.fields(_Counts)]
        columns = [name for name in names if name in _ALWAYS_SHOWN or getattr(self, name)]
        shown = dict(nlargest(_MAX_ROWS, self.locations.items(), key=_importance))
        rows = [("location", *(name.replace("_", " ") for name in columns))]
        for name, counts in (*sorted(shown.items()), ("total", self)):
            rows.append((on_one_line(name, _MAX_NAME_LENGTH), *(f"{getattr(counts, column):,}" for column in columns)))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ["  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        if (left_out := len(self.locations) - len(shown)) > 0:
            lines.insert(-1, f"and {left_out:,} more")
        down = [endpoint.name for endpoint in self.endpoints.values() if not endpoint.is_up]
        lines += [f"{on_one_line(name) or 'the server'} is down" for name in down[:_MAX_ROWS]]
        return "\n".join(lines)


@attrs.frozen(kw_only=True)
class FlushCounts:
    """The outcome of one location's spans that a flush waited for."""

    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0
    spooled: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{value:,} {name}" for name, value in _nonzero(self)) or "no spans"


@attrs.frozen(kw_only=True)
class FlushReport(FlushCounts):
    """The outcome of the spans that were pending when ``flush`` was called.

    A server that rejects some spans of a batch does not say which. If such a batch also has spans that were added after
    the call, as many of the rejected spans as possible are counted here.

    Attributes:
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        undelivered: Spans handed back.
        spooled: Spans that the spool keeps for the next process, as the batcher was left meanwhile.
        locations: The same for each location that had pending spans.
    """

    locations: Mapping[str, FlushCounts] = attrs.field(factory=dict)

    __hash__ = hash_of_record

    def __str__(self) -> str:
        lossy = {name: counts for name, counts in self.locations.items() if counts.rejected or counts.undelivered}
        shown = dict(nlargest(_MAX_ROWS, lossy.items(), key=_importance))
        parts = [f"{on_one_line(name, _MAX_NAME_LENGTH)}: {counts}" for name, counts in sorted(shown.items())]
        parts += [f"and {len(lossy) - len(shown):,} more locations with losses"] if len(lossy) > len(shown) else []
        return "; ".join([super().__str__(), *parts])


@attrs.frozen
class Loss:
    """Spans that were not delivered, with the reason.

    Attributes:
        location: Their location.
        batch: The spans. If the server rejected some of a batch without saying which, the whole batch.
        outcome: ``"rejected"`` by the server, or handed back ``"undelivered"``.
        reason: The reason, in a few words.
        status_code: The HTTP status code, if there was one.
        count: How many spans were lost. Less than ``len(batch.spans)`` only if a server rejected some; more, with an
            empty batch, if spans in the spool are damaged, or dropped because of their age or as the spool is full.
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

    def __str__(self) -> str:
        spans = "1 span" if self.count == 1 else f"{self.count:,} spans"
        how = "rejected" if self.outcome == "rejected" else "handed back undelivered"
        return f"{on_one_line(self.location, _MAX_NAME_LENGTH)}: {spans} {how}: {on_one_line(self.reason)}"


@attrs.frozen
class Settlement:
    """The outcome of the spans of one lease. The three counts add up to its length.

    Attributes:
        delivered: Spans that a server acknowledged.
        rejected: Spans that a server rejected.
        undelivered: Spans handed back.
        reason: Why spans were not delivered; irrelevant if all were.
        status_code: The HTTP status code, if there was one.
        cause: The kind of the last attempt's failure, in one word, for metrics.
    """

    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0
    reason: str = ""
    status_code: int | None = None
    cause: str = ""


def _nonzero(counts: _Counts | FlushCounts) -> Iterator[tuple[str, int]]:
    for field in attrs.fields(type(counts)):
        if field.type == "int" and (value := getattr(counts, field.name)):
            yield field.name, value


def _importance(item: tuple[str, LocationStatistics | FlushCounts]) -> tuple[int, int]:
    counts = item[1]
    return counts.rejected + counts.undelivered, counts.accepted if isinstance(counts, LocationStatistics) else 0
