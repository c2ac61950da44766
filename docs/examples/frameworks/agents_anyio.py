"""A program that runs a library for anyio on trio and sends the spans of each agent to a separate location."""

import os
import sys

import anyio
import httpx
from anyio_agents import MarkingTransport, run_agents
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from weather_service import weather_service

from trio_spanbatch import Loss, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor


def location_of(span: ReadableSpan, _: Context) -> str:
    """Return the location of an agent's trace. Called for the first span only; the others follow it."""
    agent = (span.attributes or {}).get("agent")
    return "default" if agent is None else f"main.{agent}.spans"


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main() -> None:
    """Trace the library."""
    exporter = OTLPExporter.from_env(location_header="X-Scope-OrgID")
    async with SpanBatcher(exporter, shutdown_timeout=8, on_loss=tell) as batcher:
        provider = TracerProvider()
        provider.add_span_processor(BatcherSpanProcessor(batcher, location=location_of))
        trace.set_tracer_provider(provider)
        with weather_service() as url:
            async with httpx.AsyncClient(base_url=url, transport=MarkingTransport(), timeout=None) as client:
                HTTPXClientInstrumentor.instrument_client(client)
                await run_agents(client)
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    anyio.run(main, backend="trio")
