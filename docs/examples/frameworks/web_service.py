"""A web service on trio (Starlette on hypercorn), instrumented with OpenTelemetry: each tenant has a separate location.

SIGTERM shuts it down gracefully: it accepts no new requests, answers the current ones, and delivers its spans.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trio_spanbatch import Loss, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location

LOCATIONS = {"acme": "main.acme.spans", "globex": "main.globex.spans"}

tracer = trace.get_tracer("web_service")


class AtTenantsLocation:
    """Sets the tenant's location for all spans of a request. Unknown tenants get a 403, which is not traced.

    It wraps the instrumentation, so that the server's span starts inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        # Clients can send any header: real services get the tenant from a verified token.
        location = LOCATIONS.get(Headers(scope=scope).get("x-tenant", ""))
        if location is None:
            await PlainTextResponse("unknown tenant", 403)(scope, receive, send)
            return
        with use_location(location):
            await self.app(scope, receive, send)


async def take_order(request: Request) -> JSONResponse:
    """Take an order, on trio."""
    order = await request.json()
    with tracer.start_as_current_span("store order", attributes={"order": order["number"]}):
        await trio.sleep(0.01)
    return JSONResponse(order)


def print_order(request: Request) -> PlainTextResponse:
    """Print an order. Starlette runs functions that are not async in a thread."""
    number = request.path_params["number"]
    with tracer.start_as_current_span("print order", attributes={"order": number}):
        return PlainTextResponse(f"order {number}")


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Keep a batcher open from before the first request until after the last."""
    exporter = OTLPExporter.from_env(location_header="X-Scope-OrgID")
    async with SpanBatcher(exporter, shutdown_timeout=10, on_loss=tell) as batcher:
        provider = TracerProvider()
        provider.add_span_processor(BatcherSpanProcessor(batcher))
        trace.set_tracer_provider(provider)
        yield
    print(f"delivered: {batcher.statistics().delivered}")


app = Starlette(
    routes=[
        Route("/orders", take_order, methods=["POST"]),
        Route("/orders/{number:int}", print_order),
    ],
    middleware=[
        Middleware(AtTenantsLocation),
        Middleware(OpenTelemetryMiddleware, exclude_spans=["send", "receive"]),
    ],
    lifespan=lifespan,
)


async def main(address: str) -> None:
    """Serve until SIGTERM. Then allow 15 seconds for requests and 10 for spans, as Kubernetes waits for 30."""
    config = Config()
    config.bind = [address]
    config.graceful_timeout = 15
    # Outside the server, so that a second SIGTERM does not kill it while it stops.
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def terminated() -> None:
            await anext(signals)

        await serve(app, config, shutdown_trigger=terminated)  # type: ignore[arg-type]  # both are ASGI, typed apart


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000")
