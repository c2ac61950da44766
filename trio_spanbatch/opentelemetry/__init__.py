"""Send the spans of programs that trace with OpenTelemetry through a `SpanBatcher`, each to its location.

Requires the extra ``opentelemetry``::

    async with SpanBatcher() as batcher:
        tracer_provider.add_span_processor(BatcherSpanProcessor(batcher))
        with use_location("main.agents.spans"):
            ...
"""

from __future__ import annotations

try:
    import opentelemetry.sdk.trace  # noqa: F401  # only for the error message below
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "trio_spanbatch.opentelemetry needs OpenTelemetry's SDK: pip install 'trio-spanbatch[opentelemetry]'",
        name=_error.name,
    ) from _error

from ._background import background_batcher
from ._processor import BatcherSpanProcessor
from ._span import span, traced
from ._use_location import use_location

__all__ = ["BatcherSpanProcessor", "background_batcher", "span", "traced", "use_location"]
