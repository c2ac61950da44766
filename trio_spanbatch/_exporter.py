"""What sends batches: the interface between the batcher and any destination."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ._batch import SpanBatch
from ._results import ExportResult

__all__ = ["LimitsItsAttempts", "LocationChecker", "SpanExporter", "is_closed"]


class SpanExporter(Protocol):
    """Sends batches. Implement this to send spans anywhere."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``.

        Expected failures are returned. An exception is taken for a bug: it is logged with its traceback and the
        batch is handed back. The batcher cancels an attempt that takes longer than ``RetryPolicy.attempt_timeout``,
        and all that are still under way at the end of the drain; an exporter must neither shield itself from that
        nor swallow ``trio.Cancelled``. Several exports run at once, also of one location.
        """
        ...

    async def aclose(self) -> None:
        """Close what the exporter has opened. Called once, at the end of the drain.

        An exporter that cannot be used after that may have an attribute ``closed``, which is then ``True``: the next
        batcher that is given it says so when it is entered.
        """
        ...


@runtime_checkable
class LimitsItsAttempts(Protocol):
    """What an exporter has besides `SpanExporter` if it ends its attempts by itself.

    Where the user gave no `RetryPolicy`, an attempt gets at least this time, so that a slow destination's exporter need
    not be given twice how slow it is.

    Attributes:
        timeout: Seconds that one attempt may take.
    """

    @property
    def timeout(self) -> float:
        """Seconds that one attempt may take."""
        ...


@runtime_checkable
class LocationChecker(Protocol):
    """What an exporter has besides `SpanExporter` if not every string is a location for it."""

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        ...


def is_closed(exporter: SpanExporter) -> bool:
    """Return whether an exporter says that it is closed."""
    # Nothing else than True: somebody else's ``closed`` may be a method, or anything.
    return getattr(exporter, "closed", False) is True
