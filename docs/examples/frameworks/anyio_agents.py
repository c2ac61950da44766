"""A library of agents. It runs on any event loop that anyio runs on, and knows OpenTelemetry's API and no more of it.

Whoever uses it decides what happens to its spans: see agents_anyio.py.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import httpx
from opentelemetry import trace

tracer = trace.get_tracer("anyio_agents")


def mark_cancelled(span: trace.Span) -> None:
    """Say on ``span`` that its work was cancelled. OpenTelemetry does so by itself for each ``Exception`` only."""
    span.set_status(trace.StatusCode.ERROR, "cancelled")
    span.set_attribute("error.type", "cancelled")


@contextmanager
def traced(name: str, **attributes: str) -> Iterator[trace.Span]:
    """Trace what is inside, and say if it was cancelled."""
    with tracer.start_as_current_span(name, attributes=attributes) as span:
        try:
            yield span
        except anyio.get_cancelled_exc_class():
            mark_cancelled(span)
            raise


class MarkingTransport(httpx.AsyncHTTPTransport):
    """Does the same for requests, whose spans an instrumentation of httpx makes around this."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except anyio.get_cancelled_exc_class():
            mark_cancelled(trace.get_current_span())
            raise


async def look_up_weather(client: httpx.AsyncClient, city: str) -> None:
    """Be a tool."""
    with traced("execute_tool weather") as span:
        response = await client.get(f"/{city}")
        span.set_attribute("weather", response.raise_for_status().text)


async def agent(client: httpx.AsyncClient, name: str, cities: list[str], patience: float) -> None:
    """Look up the weather in all ``cities`` at once, then think about it, and be done after ``patience`` seconds."""
    with anyio.move_on_after(patience), traced(f"invoke_agent {name}", agent=name):
        async with anyio.create_task_group() as tasks:
            for city in cities:
                tasks.start_soon(look_up_weather, client, city)
        with traced("chat"):
            await anyio.sleep(0.01)


async def run_agents(client: httpx.AsyncClient) -> None:
    """Run three agents at once. What the weather is like in Atlantis or Avalon takes for ever."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent, client, "europe", ["Paris", "Rome"], math.inf)
        tasks.start_soon(agent, client, "asia", ["Tokyo"], math.inf)
        tasks.start_soon(agent, client, "legends", ["Atlantis", "Avalon"], 0.2)
