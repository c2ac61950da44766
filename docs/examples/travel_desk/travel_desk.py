"""A travel desk for several tenants: agents plan trips with tools, and each tenant's spans go to its own location.

OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python travel_desk.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from trio_spanbatch import Loss, OTLPExporter, SpanBatcher, SpanExporter
from trio_spanbatch.tracing import Tracer


@attrs.frozen
class Trip:
    """What a customer of a tenant asks for."""

    tenant: str
    city: str


@attrs.frozen
class Services:
    """What the agents talk to. Tests replace it.

    Attributes:
        chat: A language model: returns the answer to a prompt.
        prices: The tools, by name: each returns a price in a city.
    """

    chat: Callable[[str], Awaitable[str]]
    prices: dict[str, Callable[[str], Awaitable[int]]]


class Desk:
    """Plans trips.

    Args:
        tracer: Traces the agents.
        services: What they talk to.
        patience: The seconds after which a customer does not wait any longer.
    """

    def __init__(self, tracer: Tracer, services: Services, *, patience: float = 20.0) -> None:
        self._tracer = tracer
        self._services = services
        self._patience = patience
        self.plans: dict[Trip, str] = {}

    async def plan(self, trip: Trip) -> None:
        """Plan a trip. Customers who have waited too long get no plan; nor do those whose tools fail."""
        with trio.move_on_after(self._patience):
            try:
                with self._tracer.span("plan trip", location=trip.tenant, attributes={"city": trip.city}) as span:
                    prices = await self._look_up(trip.city)
                    span.set_attribute("total", sum(prices.values()))
                    self.plans[trip] = await self._chat(f"{trip.city} for {sum(prices.values())}")
            except* ConnectionError as failures:
                print(f"no plan for {trip.city}: {failures.exceptions[0]}", file=sys.stderr)

    async def _look_up(self, city: str) -> dict[str, int]:
        """Ask all tools at once. If one fails, the others are cancelled."""
        prices: dict[str, int] = {}

        async def ask(name: str) -> None:
            with self._tracer.span(f"tool {name}", attributes={"city": city}) as span:
                prices[name] = await self._services.prices[name](city)
                span.set_attribute("price", prices[name])

        async with trio.open_nursery() as nursery:
            for name in self._services.prices:
                nursery.start_soon(ask, name)
        return prices

    async def _chat(self, prompt: str) -> str:
        with self._tracer.span("chat", attributes={"prompt": prompt}):
            return await self._services.chat(prompt)


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def serve(trips: Sequence[Trip], services: Services, exporter: SpanExporter | None = None) -> dict[Trip, str]:
    """Plan all trips at once. Return the plans."""
    async with SpanBatcher(exporter, on_loss=tell) as batcher:
        desk = Desk(Tracer(batcher), services)
        async with trio.open_nursery() as nursery:
            for trip in trips:
                nursery.start_soon(desk.plan, trip)
    print(f"delivered: {batcher.statistics().delivered}")
    return desk.plans


async def think(prompt: str) -> str:
    """Answer like a small language model."""
    await trio.sleep(0.05)
    return f"Visit {prompt}!"


async def price(city: str) -> int:
    """Look up a price."""
    await trio.sleep(0.01)
    return 10 * len(city)


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    wishes = [Trip("acme", "Paris"), Trip("acme", "Rome"), Trip("globex", "Oslo")]
    trio.run(
        serve,
        wishes,
        Services(think, {"flight": price, "hotel": price}),
        OTLPExporter.from_env(location_header="X-Scope-OrgID"),
    )
