"""Agents in a trio nursery, with tools on httpx; the spans of each agent go to a separate location.

The deadline of one agent cancels it. Its spans arrive too, marked as cancelled.
"""

import math
import os
import sys

import httpx
import trio
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from weather_service import weather_service

from trio_spanbatch import Loss, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, span


class MarkingTransport(httpx.AsyncHTTPTransport):
    """Marks the spans of cancelled requests, which the instrumentation of httpx creates around this."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except trio.Cancelled:
            trace.get_current_span().set_attribute("trio.cancelled", True)
            raise


async def look_up_weather(client: httpx.AsyncClient, city: str) -> None:
    """Look up the weather in a city: the tool of the agents."""
    with span("execute_tool weather") as current:
        response = await client.get(f"/{city}")
        current.set_attribute("weather", response.raise_for_status().text)


async def agent(client: httpx.AsyncClient, name: str, cities: list[str], patience: float) -> None:
    """Look up the weather in all ``cities`` at once, then think about it, for at most ``patience`` seconds."""
    with trio.move_on_after(patience), span(f"invoke_agent {name}", location=f"main.{name}.spans"):
        async with trio.open_nursery() as nursery:
            for city in cities:
                nursery.start_soon(look_up_weather, client, city)
        with span("chat"):
            await trio.sleep(0.01)


async def run_agents(url: str) -> None:
    """Run three agents at once. Requests for Atlantis and Avalon never end."""
    async with httpx.AsyncClient(base_url=url, transport=MarkingTransport(), timeout=None) as client:
        HTTPXClientInstrumentor.instrument_client(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent, client, "europe", ["Paris", "Rome"], math.inf)
            nursery.start_soon(agent, client, "asia", ["Tokyo"], math.inf)
            nursery.start_soon(agent, client, "legends", ["Atlantis", "Avalon"], 0.2)


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main() -> None:
    """Trace the agents."""
    exporter = OTLPExporter.from_env(location_header="X-Scope-OrgID")
    async with SpanBatcher(exporter, shutdown_timeout=8, on_loss=tell) as batcher:
        provider = TracerProvider()
        provider.add_span_processor(BatcherSpanProcessor(batcher))
        trace.set_tracer_provider(provider)
        with weather_service() as url:
            await run_agents(url)
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    trio.run(main)
