"""For programs that trace with OpenTelemetry: its spans go into a `SpanBatcher`, each to its location.

It needs the extra ``opentelemetry``. Two lines plug it in::

    async with SpanBatcher() as batcher:
        tracer_provider.add_span_processor(BatcherSpanProcessor(batcher))
        with use_location("main.agents.spans"):
            ...
"""

from __future__ import annotations

try:
    import opentelemetry.sdk.trace  # noqa: F401  # only to say it here if it is missing
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "trio_spanbatch.opentelemetry needs OpenTelemetry's SDK: pip install 'trio-spanbatch[opentelemetry]'",
        name=_error.name,
    ) from _error

from ._processor import BatcherSpanProcessor
from ._use_location import use_location

__all__ = ["BatcherSpanProcessor", "use_location"]
