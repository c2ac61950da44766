"""Batches trace spans by location and sends them, on trio, without silently losing any.

>>> async with SpanBatcher() as batcher:
...     batcher.add_span_nowait("main.agents.spans", span)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from ._http.exporter import OTLPExporter
    from ._local.console import ConsoleExporter
    from ._local.json_file import JSONFileExporter
    from ._reporting.statistics import (
        EndpointStatistics,
        FlushCounts,
        FlushReport,
        LocationStatistics,
        Loss,
        SpanBatcherStatistics,
        SpoolStatistics,
    )
    from ._settings.policies import BatchPolicy, Limits, RetryPolicy
    from ._signals import exit_on_sigterm
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
    from ._spans.scrubbing import scrub
    from ._spool.settings import Spool
    from ._spool.store import SpoolError
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
    "Spool",
    "SpoolError",
    "SpoolStatistics",
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
    # The module of each name. Imported with this package, they would all be loaded by `pytest`, which imports the
    # package to find its plugin; and a program with another exporter needs no HTTP client.
    _MODULE_OF = {
        name: module
        for module, names in {
            "_batcher": "SpanBatcher",
            "_errors": "InvalidLocationError InvalidSpanError TooManyLocationsError UndeliveredSpansError",
            "_exporter": "Delivered ExportResult LimitsItsAttempts LocationChecker "
            "Refused SpanExporter TellsEndpoints TryLater",
            "_http.auth": "Auth AuthError",
            "_http.exporter": "OTLPExporter",
            "_local.console": "ConsoleExporter",
            "_local.json_file": "JSONFileExporter",
            "_reporting.statistics": "EndpointStatistics FlushCounts FlushReport "
            "LocationStatistics Loss SpanBatcherStatistics SpoolStatistics",
            "_settings.policies": "BatchPolicy Limits RetryPolicy",
            "_signals": "exit_on_sigterm",
            "_spans.attributes": "DROP",
            "_spans.batch": "EncodedSpan SpanBatch",
            "_spans.records": "EntityRef InstrumentationScope Resource Span SpanContext "
            "SpanEvent SpanKind SpanLike SpanLink Status StatusCode",
            "_spans.scrubbing": "scrub",
            "_spool.settings": "Spool",
            "_spool.store": "SpoolError",
            # Not in `__all__`, as it needs the extra "opentelemetry".
            "opentelemetry": "background_batcher",
        }.items()
        for name in names.split()
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
