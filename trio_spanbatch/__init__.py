"""Batches trace spans by location and sends them, on trio, without silently losing any.

>>> async with SpanBatcher() as batcher:
...     batcher.add_span_nowait("main.agents.spans", span)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._batcher import SpanBatcher
from ._errors import InvalidLocationError, InvalidSpanError, TooManyLocationsError, UndeliveredSpansError
from ._exporter import (
    Delivered,
    ExportResult,
    LimitsItsAttempts,
    LocationChecker,
    Refused,
    SpanExporter,
    TellsEndpoints,
    TryLater,
)
from ._http.auth import Auth, AuthError
from ._reporting.statistics import (
    EndpointStatistics,
    FlushCounts,
    FlushReport,
    LocationStatistics,
    Loss,
    SpanBatcherStatistics,
)
from ._settings.policies import BatchPolicy, Limits, RetryPolicy
from ._spans.batch import EncodedSpan, SpanBatch
from ._spans.records import (
    EntityRef,
    InstrumentationScope,
    Resource,
    Span,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLike,
    SpanLink,
    Status,
    StatusCode,
)

if TYPE_CHECKING:
    from ._http.exporter import OTLPExporter
    from ._spool.settings import Spool
    from ._spool.store import SpoolError

__all__ = [
    "Auth",
    "AuthError",
    "BatchPolicy",
    "Delivered",
    "EncodedSpan",
    "EndpointStatistics",
    "EntityRef",
    "ExportResult",
    "FlushCounts",
    "FlushReport",
    "InstrumentationScope",
    "InvalidLocationError",
    "InvalidSpanError",
    "Limits",
    "LimitsItsAttempts",
    "LocationChecker",
    "LocationStatistics",
    "Loss",
    "OTLPExporter",
    "Refused",
    "Resource",
    "RetryPolicy",
    "Span",
    "SpanBatch",
    "SpanBatcher",
    "SpanBatcherStatistics",
    "SpanContext",
    "SpanEvent",
    "SpanExporter",
    "SpanKind",
    "SpanLike",
    "SpanLink",
    "Spool",
    "SpoolError",
    "Status",
    "StatusCode",
    "TellsEndpoints",
    "TooManyLocationsError",
    "TryLater",
    "UndeliveredSpansError",
]


if not TYPE_CHECKING:
    # A program with another exporter needs no HTTP client, and one without a spool no store.
    _IMPORTED_WHEN_USED = {
        "OTLPExporter": "._http.exporter",
        "Spool": "._spool.settings",
        "SpoolError": "._spool.store",
    }

    def __getattr__(name: str) -> object:
        """Import some names when they are first used."""
        if name not in _IMPORTED_WHEN_USED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_IMPORTED_WHEN_USED[name], __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
