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
from ._spans.attributes import DROP
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
    from ._local.console import ConsoleExporter
    from ._local.json_file import JSONFileExporter
    from ._signals import exit_on_sigterm
    from ._spans.scrubbing import scrub
    from .opentelemetry import background_batcher as background_batcher

__all__ = [
    "DROP",
    "Auth",
    "AuthError",
    "BatchPolicy",
    "ConsoleExporter",
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
    "JSONFileExporter",
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
    "TellsEndpoints",
    "TooManyLocationsError",
    "TryLater",
    "UndeliveredSpansError",
    "exit_on_sigterm",
    "scrub",
]


if not TYPE_CHECKING:
    # A program with another exporter, for instance, needs no HTTP client. `background_batcher` is not in `__all__`, as
    # it needs the extra "opentelemetry".
    _IMPORTED_WHEN_USED = {
        "ConsoleExporter": "._local.console",
        "JSONFileExporter": "._local.json_file",
        "OTLPExporter": "._http.exporter",
        "background_batcher": ".opentelemetry",
        "exit_on_sigterm": "._signals",
        "scrub": "._spans.scrubbing",
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
