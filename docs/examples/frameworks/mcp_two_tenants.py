"""An MCP server and its clients in one trio run, traced on both sides; each tenant has a separate location.

The package mcp traces both sides, and sends the trace context and the baggage in the `_meta` of each request. So both
sides know the tenant, and a trace has one location from the agent to the requests that the server makes.
"""

import os
import sys

import httpx
import trio
from mcp import Client
from mcp.server import MCPServer
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from weather_service import weather_service

from trio_spanbatch import Loss, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor

LOCATIONS = {"acme": "main.acme.spans", "globex": "main.globex.spans"}

tracer = trace.get_tracer("mcp_two_tenants")


def location_of(_: ReadableSpan, parent: context.Context) -> str:
    """Return the location of a trace's tenant. Baggage comes from outside and must not be trusted."""
    tenant = baggage.get_baggage("tenant", parent)
    return LOCATIONS.get(str(tenant), "main.strangers.spans")


def weather_server(client: httpx.AsyncClient) -> MCPServer:
    """Return a server with one tool."""
    server = MCPServer("weather", log_level="WARNING")

    @server.tool()
    async def weather(city: str) -> str:
        """Look up the weather."""
        response = await client.get(f"/{city}")
        return response.raise_for_status().text

    return server


async def agent(server: MCPServer, tenant: str, cities: list[str]) -> None:
    """Work for a tenant, using the tool of the server."""
    token = context.attach(baggage.set_baggage("tenant", tenant))
    try:
        # "legacy" uses JSON-RPC over in-memory streams, as with a server in another process.
        async with Client(server, mode="legacy") as client:
            with tracer.start_as_current_span("invoke_agent"):
                for city in cities:
                    await client.call_tool("weather", {"city": city})
    finally:
        context.detach(token)


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main() -> None:
    """Run three agents at once with one server. One of them works for an unknown tenant."""
    exporter = OTLPExporter.from_env(location_header="X-Scope-OrgID")
    async with SpanBatcher(exporter, shutdown_timeout=8, on_loss=tell) as batcher:
        provider = TracerProvider()
        provider.add_span_processor(BatcherSpanProcessor(batcher, location=location_of))
        trace.set_tracer_provider(provider)
        # Trace the requests of all httpx clients, except the batcher's own.
        HTTPXClientInstrumentor().instrument()
        with weather_service() as url:
            async with httpx.AsyncClient(base_url=url, timeout=None) as client, trio.open_nursery() as nursery:
                server = weather_server(client)
                nursery.start_soon(agent, server, "acme", ["Paris", "Rome"])
                nursery.start_soon(agent, server, "globex", ["Tokyo"])
                nursery.start_soon(agent, server, "nobody", ["Oslo"])
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    trio.run(main)
