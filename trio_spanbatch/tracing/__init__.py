"""Make spans without OpenTelemetry, and add them to a `SpanBatcher`.

::

    tracer = Tracer(batcher)
    with tracer.span("chat", attributes={"gen_ai.request.model": "small"}) as span:
        span.set_attribute("gen_ai.usage.output_tokens", 120)
"""

from __future__ import annotations

from ._tracer import ActiveSpan, Tracer, current_span

__all__ = ["ActiveSpan", "Tracer", "current_span"]
