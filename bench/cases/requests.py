"""A request: the cost of one export, by the size of its batch and the number of open connections; and small batches."""

from __future__ import annotations

import http.cookiejar
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import combinations
from typing import Any, cast
from unittest import mock

import httpx
import trio
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import Compression, trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from bench.cases.span_to_wire import prepared, prepared_opentelemetry
from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import SpansLost, check_ids
from bench.limits import allow_many_files
from bench.receiver import TOGETHER, Receiver
from bench.spans import frozen_agent_spans
from trio_spanbatch import Delivered, EncodedSpan, OTLPExporter, SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_CONNECTIONS = (1, 64, 1_000)
# The number of requests that are sent one after the other, by their number of spans.
_REQUESTS = {5: 400, 50: 100, 512: 40}
# The number of requests that are sent at once; with more connections, one on each.
_AT_ONCE = 192
# From the span to the wire: the number of batches that are sent, by their number of spans.
_BATCHES = {5: 400, 50: 100}

_MakeClient = Callable[[], httpx.AsyncClient | None]


class _NoCookies(http.cookiejar.CookieJar):
    """Neither stores nor sends cookies, like the exporter's own transport."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Ignore the cookies of ``response``."""

    def add_cookie_header(self, request: Any) -> None:
        """Leave ``request`` unchanged."""


def _httpx_client() -> httpx.AsyncClient:
    """Return a client that keeps any number of connections alive, and has no limits."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0)
    return httpx.AsyncClient(trust_env=False, cookies=_NoCookies(), timeout=None, limits=limits)


def _no_client() -> None:
    """Leave the choice to the exporter."""


def _prepared_ours(setup: Setup) -> Round:
    run_requests = _prepared(setup, _no_client, _CONNECTIONS)
    to_wire = {size: prepared(setup, None, size, count) for size, count in _batches(setup).items()}

    def run_round() -> Figures:
        return run_requests() | {_to_wire(size): run()["cpu"] for size, run in to_wire.items()}

    return run_round


def _prepared(setup: Setup, make_client: _MakeClient, connections: Sequence[int]) -> Round:
    allow_many_files()
    encoder = SpanEncoder()
    encoded = [encoder.encode(span) for span in frozen_agent_spans(setup.size(20_480, 2_048))]

    def run_round() -> Figures:
        figures: Figures = {}
        for count in connections:
            figures |= trio.run(_over, setup, make_client, count, encoded)
        return figures

    return run_round


async def _over(setup: Setup, make_client: _MakeClient, connections: int, encoded: list[EncodedSpan]) -> Figures:
    """Measure requests while this many connections are open."""
    figures: Figures = {}
    opened = setup.size(connections, min(connections, 64))
    async with AsyncExitStack() as stack:
        client = make_client()
        if client is not None:
            await stack.enter_async_context(client)
        exporter = OTLPExporter(setup.receiver.url, location_header="x-location", client=client)
        stack.push_async_callback(exporter.aclose)
        # The receiver answers once this many requests wait, so that each needs a separate connection.
        await _sent_at_once(exporter, [[_batch(encoded[:1], f"{TOGETHER}{opened}")]] * opened)
        for size, requests in _REQUESTS.items():
            batches = _cut(encoded, size, setup.size(requests, 4))
            figures[_name(size, connections)] = await _cpu(setup.receiver, batches, _sent, exporter, batches)
        if setup.receiver.connections() < opened:
            raise RuntimeError(f"fewer than {opened} connections are open, so the figures would be wrong")
        if connections > 1:
            each = setup.size(max(_AT_ONCE // connections, 1), 1)
            batches = _cut(encoded, 5, each * opened)
            by_task = [batches[at : at + each] for at in range(0, len(batches), each)]
            figures[_at_once(connections)] = await _cpu(setup.receiver, batches, _sent_at_once, exporter, by_task)
    return figures


async def _cpu(
    receiver: Receiver, batches: list[SpanBatch], send: Callable[..., Awaitable[None]], *arguments: object
) -> float:
    """Return the microseconds of CPU time for each of ``batches``, which ``send`` sends."""
    receiver.forget()
    with watch() as seen:
        await send(*arguments)
    return _checked(receiver, seen, sum(len(batch.spans) for batch in batches), len(batches))


def _checked(receiver: Receiver, seen: Watch, spans: int, requests: int) -> float:
    """Return the microseconds per request, if exactly these requests and spans arrived."""
    check_ids(receiver.ids(), spans)
    if receiver.requests() != requests:
        raise SpansLost(f"{requests} requests were sent, and {receiver.requests()} arrived")
    return seen.cpu / requests * 1e6


async def _sent(exporter: OTLPExporter, batches: list[SpanBatch]) -> None:
    for batch in batches:
        result = await exporter.export(batch)
        if not isinstance(result, Delivered):
            raise SpansLost(f"a request was not delivered: {result}")


async def _sent_at_once(exporter: OTLPExporter, batches_by_task: list[list[SpanBatch]]) -> None:
    async with trio.open_nursery() as nursery:
        for batches in batches_by_task:
            nursery.start_soon(_sent, exporter, batches)


def _prepared_opentelemetry(setup: Setup) -> Round:
    spans = frozen_agent_spans(setup.size(20_480, 2_048))
    messages = {
        size: [encode_spans(spans[at * size : (at + 1) * size]) for at in range(setup.size(requests, 4))]
        for size, requests in _REQUESTS.items()
    }
    to_wire = {
        size: prepared_opentelemetry(setup, Compression.NoCompression, size, count)
        for size, count in _batches(setup).items()
    }

    def run_round() -> Figures:
        figures: Figures = {}
        exporter = trace_exporter.OTLPSpanExporter(setup.receiver.url, compression=Compression.NoCompression)
        with mock.patch.object(trace_exporter, "encode_spans", _encoded_already):
            exporter.export(cast(Sequence[ReadableSpan], messages[5][:1]))  # opens the connection
            for size, some in messages.items():
                setup.receiver.forget()
                with watch() as seen:
                    for message in some:
                        result = exporter.export(cast(Sequence[ReadableSpan], (message,)))
                        assert result is SpanExportResult.SUCCESS
                figures[_name(size, 1)] = _checked(setup.receiver, seen, size * len(some), len(some))
        exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations
        return figures | {_to_wire(size): run()["cpu"] for size, run in to_wire.items()}

    return run_round


def _encoded_already(messages: Sequence[Any]) -> Any:
    """Replace the peer's encoder: its exporter gets a message, as ours gets encoded spans."""
    (message,) = messages
    return message


def _batches(setup: Setup) -> dict[int, int]:
    """Return how many spans go from the span to the wire, by the size of their batches."""
    return {size: size * setup.size(batches, 4) for size, batches in _BATCHES.items()}


def _cut(encoded: list[EncodedSpan], size: int, requests: int) -> list[SpanBatch]:
    return [_batch(encoded[at * size : (at + 1) * size], "default") for at in range(requests)]


def _batch(spans: list[EncodedSpan], location: str) -> SpanBatch:
    return SpanBatch(location, spans, size=sum(span.size for span in spans))


def _name(size: int, connections: int) -> str:
    return f"{size} spans, {connections:,} connection{'s' if connections > 1 else ''}"


def _at_once(connections: int) -> str:
    return f"5 spans, {connections:,} at once"


def _to_wire(size: int) -> str:
    return f"span to wire, batches of {size}"


_OURS, _HTTPX, _PEER = "trio-spanbatch", "httpx client", "OpenTelemetry"

CASE = Case(
    name="requests",
    title="A request",
    about=(
        "One export of a batch of encoded spans: `OTLPExporter.export`, one call after the other, with 1, 64 and 1,000 "
        "open connections, and for batches of five also as many calls at once. The first comparison is the same "
        "exporter with an `httpx.AsyncClient` as its `client=`, with keep-alive, no limits and `trust_env=False`. Its "
        "pool examines all connections for each request, so that 1,000 cannot even be opened within the timeout: the "
        "comparison is then its figure for one connection. OpenTelemetry's OTLP/HTTP exporter has one connection, and "
        "gets encoded messages. Then span to wire, encoding included, in batches of 5 and 50: `SpanBatcher` compared "
        "with `BatchSpanProcessor`, one location."
    ),
    sides={
        _OURS: _prepared_ours,
        _HTTPX: lambda setup: _prepared(setup, _httpx_client, _CONNECTIONS[:2]),
        _PEER: _prepared_opentelemetry,
    },
    rows=(
        *(
            Row(
                f"A request of {_name(size, connections)}: CPU",
                _name(size, connections),
                "µs",
                f"{_HTTPX}: {_name(size, 1)}",
                0.4 if size == 5 else None,
            )
            for size in _REQUESTS
            for connections in _CONNECTIONS
        ),
        *(
            Row(f"A request of {_name(size, 64)}: CPU", _name(size, 64), "µs", f"{_HTTPX}: {_name(size, 64)}")
            for size in _REQUESTS
        ),
        *(
            Row(f"A request of {_name(5, many)}: CPU", _name(5, many), "µs", f"{_OURS}: {_name(5, few)}", 1.2)
            for few, many in combinations(_CONNECTIONS, 2)
        ),
        Row(f"A request of {_at_once(64)}: CPU", _at_once(64), "µs", f"{_HTTPX}: {_at_once(64)}"),
        Row(f"A request of {_at_once(1_000)}: CPU", _at_once(1_000), "µs", f"{_OURS}: {_at_once(64)}"),
        *(
            Row(f"A request of {size} spans: CPU", _name(size, 1), "µs", f"{_PEER}: {_name(size, 1)}")
            for size in _REQUESTS
        ),
        *(
            Row(
                f"Span to wire, batches of {size}: CPU per span",
                _to_wire(size),
                "µs",
                f"{_PEER}: {_to_wire(size)}",
                goal,
            )
            for size, goal in zip(_BATCHES, (0.5, 0.4), strict=True)
        ),
    ),
    plots=(
        Plot(
            "CPU time per request of five spans",
            "µs",
            (
                *(
                    Bar(f"{count:,} connection{'s' if count > 1 else ''}", f"{_OURS}: {_name(5, count)}")
                    for count in _CONNECTIONS
                ),
                Bar("httpx client", f"{_HTTPX}: {_name(5, 1)}", is_ours=False),
                Bar("httpx client, 64 connections", f"{_HTTPX}: {_name(5, 64)}", is_ours=False),
                Bar(_PEER, f"{_PEER}: {_name(5, 1)}", is_ours=False),
            ),
            is_logarithmic=True,
        ),
    ),
)
