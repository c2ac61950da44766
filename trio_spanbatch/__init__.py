"""Batches trace spans by location and sends them, on trio, without losing one in silence.

async with SpanBatcher() as batcher:
    batcher.add_span_nowait("main.agents.spans", span)
"""

from __future__ import annotations

from ._batch import EncodedSpan, SpanBatch
from ._batcher import SpanBatcher
from ._errors import InvalidLocationError, InvalidSpanError, TooManyLocationsError, UndeliveredSpansError
from ._exporter import LimitsItsAttempts, LocationChecker, SpanExporter
from ._policy import BatchPolicy, Limits, RetryPolicy
from ._records import (
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
from ._results import Delivered, ExportResult, Refused, TryLater
from ._statistics import FlushCounts, FlushReport, LocationStatistics, Loss, SpanBatcherStatistics
from .otlp.http import OTLPExporter

__all__ = [
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
