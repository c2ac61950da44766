"""Batches trace spans by location and sends them, on trio, without silently losing any.

>>> async with SpanBatcher() as batcher:
...     batcher.add_span_nowait("main.agents.spans", span)
"""

from __future__ import annotations

from ._batcher import SpanBatcher
from ._errors import InvalidLocationError, InvalidSpanError, TooManyLocationsError, UndeliveredSpansError
from ._exporter import Delivered, ExportResult, LimitsItsAttempts, LocationChecker, Refused, SpanExporter, TryLater
from ._http.auth import Auth, AuthError
from ._http.exporter import OTLPExporter
from ._reporting.statistics import FlushCounts, FlushReport, LocationStatistics, Loss, SpanBatcherStatistics
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

__all__ = [
    "Auth",
    "AuthError",
    "BatchPolicy",
    "Delivered",
    "EncodedSpan",
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
    "Status",
    "StatusCode",
    "TooManyLocationsError",
    "TryLater",
    "UndeliveredSpansError",
]
