"""A library of agents. It runs on any event loop that anyio supports, and depends only on OpenTelemetry's API.

The program that uses it configures where its spans go: see agents_anyio.py.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import httpx
from opentelemetry import trace

tracer = trace.get_tracer("anyio_agents")


def mark_cancelled(span: trace.Span) -> None:
    """Mark ``span`` as cancelled: OpenTelemetry records only exceptions of class ``Exception``."""
    span.set_status(trace.StatusCode.ERROR, "cancelled")
    span.set_attribute("error.type", "cancelled")


@contextmanager
def traced(name: str, **attributes: str) -> Iterator[trace.Span]:
    """Trace the code inside, and mark its span if it was cancelled."""
    with tracer.start_as_current_span(name, attributes=attributes) as span:
        try:
            yield span
        except anyio.get_cancelled_exc_class():
            mark_cancelled(span)
            raise


class MarkingTransport(httpx.AsyncHTTPTransport):
    """Marks the spans of cancelled requests, which an instrumentation of httpx creates around this."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except anyio.get_cancelled_exc_class():
            mark_cancelled(trace.get_current_span())
            raise


async def look_up_weather(client: httpx.AsyncClient, city: str) -> None:
    """Look up the weather in a city: the tool of the agents."""
    with traced("execute_tool weather") as span:
        response = await client.get(f"/{city}")
        span.set_attribute("weather", response.raise_for_status().text)


async def agent(client: httpx.AsyncClient, name: str, cities: list[str], patience: float) -> None:
    """Look up the weather in all ``cities`` at once, then think about it, for at most ``patience`` seconds."""
    with anyio.move_on_after(patience), traced(f"invoke_agent {name}", agent=name):
        async with anyio.create_task_group() as tasks:
            for city in cities:
                tasks.start_soon(look_up_weather, client, city)
        with traced("chat"):
            await anyio.sleep(0.01)


async def run_agents(client: httpx.AsyncClient) -> None:
    """Run three agents at once. Requests for Atlantis and Avalon never end."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent, client, "europe", ["Paris", "Rome"], math.inf)
        tasks.start_soon(agent, client, "asia", ["Tokyo"], math.inf)
        tasks.start_soon(agent, client, "legends", ["Atlantis", "Avalon"], 0.2)
