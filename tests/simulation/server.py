"""The server of a simulated run: a receiver without sockets, and its faults."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import trio

from tests.support.batchers import span_ids
from tests.support.oracle import Oracle
from trio_spanbatch import SpanBatch
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, ReceivedRequest, Reset, partial_success
from trio_spanbatch.testing import Outcome as ServerOutcome

from .plan import Fault, Outage, Plan

LOCATION_HEADER = "x-location"

_RETRIED = (429, 502, 503, 504)
_PERMANENT = (401, 403, 404, 500, 501, 505)
_ISOLATED = (400, 422)

# Answers that never end.
_DRIPPING_HEADERS = [b"HTTP/1.1 200 OK\r\n", *[b"x-drip: 1\r\n"] * 20]
_DRIPPING_BODY = [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", *[b"x"] * 20]


class Server:
    """A server with faults as likely as in the plan's weather.

    Attributes:
        receiver: The receiver.
        faults: The number of injected faults, by kind.
    """

    def __init__(self, plan: Plan, rng: random.Random, oracle: Oracle, tell: Callable[[str], None]) -> None:
        self.receiver = OTLPReceiver(listen=False, location_header=LOCATION_HEADER, answers=self._answer)
        self.faults: Counter[str] = Counter()
        self._plan = plan
        self._rng = rng
        self._oracle = oracle
        self._tell = tell
        self._poison: dict[int, bool] = {}
        self._refused_alone: set[int] = set()
        self._unreliable: set[str | None] = set()
        self._down_until = -math.inf

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport to the receiver, over a network that breaks now and then."""
        return _Wire(self, self.receiver.memory_transport())

    def stored(self) -> Iterator[tuple[str, int]]:
        """Yield the location and id of every span that was stored."""
        for location, spans in self.receiver.stored.items():
            for span in spans:
                yield location, int.from_bytes(span.span_id, "big")

    def without_fault(self, batch: SpanBatch) -> list[int]:
        """Return the ids of the spans in ``batch`` that the server never refused.

        There are none if the location refuses requests at random: then this is unknown.
        """
        if batch.location in self._unreliable:
            return []
        ids = span_ids(batch.spans)
        return [span_id for span_id in ids if not self._poison.get(span_id) and span_id not in self._refused_alone]

    def draw_fault(self) -> Fault | None:
        """Return the fault of the next request, or None."""
        if trio.current_time() >= self._plan.heals_at:
            return None
        kinds = list(self._plan.weather)
        weights = list(self._plan.weather.values())
        fault: Fault | None = self._rng.choices([*kinds, None], [*weights, max(0.0, 1 - sum(weights))])[0]
        return fault

    def outage(self) -> Outage | None:
        """Return what the whole server does now, if there is an outage."""
        now = trio.current_time()
        if now >= self._plan.heals_at:
            return None
        return next((kind for begin, end, kind in self._plan.outages if begin <= now < end), None)

    def injected(self, fault: str, what: str = "") -> None:
        """Record a fault."""
        self.faults[fault] += 1
        self._tell(f"server: {fault}{what and ': '}{what}")

    def restart(self) -> None:
        """Break all connections, and refuse new ones for a while."""
        self.receiver.drop_connections()
        self.receiver.network.refuse_connections = True
        self._down_until = trio.current_time() + self._rng.choice([0, 1, 20])

    def network_is_down(self) -> bool:
        """Return whether connections are refused now."""
        if trio.current_time() >= min(self._down_until, self._plan.heals_at):
            self.receiver.network.refuse_connections = False
        return self.receiver.network.refuse_connections

    def _answer(self, request: ReceivedRequest) -> ServerOutcome | None:
        ids = [int.from_bytes(span.span_id, "big") for span in request.spans]
        outcome = self._decide(request, ids)
        if isinstance(outcome, Answer):
            taken = {int.from_bytes(span.span_id, "big") for span in outcome.accepted(request.spans)}
            self._oracle.left_out_of(ids, set(ids) - taken)
        else:
            self._oracle.left_out_of(ids, ())
        self._oracle.asked_to_wait(ids, _seconds_to_wait(outcome))
        self._tell(f"server: {request.location} {ids} -> {outcome if outcome is not None else 'stored'}")
        return outcome

    def _decide(self, request: ReceivedRequest, ids: list[int]) -> ServerOutcome | None:
        rng = self._rng
        if (outage := self.outage()) is not None:
            # A connection that was open before is not refused.
            self.injected(f"outage: {outage}")
            return Hang(store=rng.random() < 0.1) if outage == "hang" else Answer(503, delay=rng.choice([0, 0, 1]))
        # Some spans are refused even if no fault is drawn.
        for span_id in ids:
            if span_id not in self._poison:
                self._poison[span_id] = rng.random() < self._plan.poison
        if any(self._poison[span_id] for span_id in ids):
            self.injected("poison")
            # With delays, so that cancels and the drain's end fall in the middle of an isolation.
            return Answer(rng.choice(_ISOLATED), delay=rng.choice([0, 0, 0.5, 3]))
        if self._plan.is_always_limited and (refusal := self._refusal_of_size(request, ids)) is not None:
            return refusal
        fault = self.draw_fault()
        if fault is not None:
            self.injected(fault)
        if fault in ("refused", "misdirected"):
            self._unreliable.add(request.location)
        match fault:
            case "slow":
                return Answer(delay=rng.choice([0.1, 1, rng.uniform(0, 8)]))
            case "try later":
                return Answer(rng.choice(_RETRIED), delay=rng.choice([0, 1]))
            case "retry after":
                return Answer(rng.choice(_RETRIED), headers=[("retry-after", str(rng.choice([0, 1, 3, 20, 400])))])
            case "refused":
                return Answer(rng.choice(_ISOLATED))
            case "misdirected":
                return Answer(rng.choice(_PERMANENT))
            case "partial success":
                return partial_success(rng.choice([0, 1, len(ids), 99, -1]), "no room")
            case "reset":
                return Reset(store=rng.random() < 0.5)
            case "half a response":
                return Reset("mid_response", store=rng.random() < 0.5)
            case "hang":
                return Hang(store=rng.random() < 0.5)
            case "drip":
                chunks = rng.choice([_DRIPPING_HEADERS, _DRIPPING_BODY])
                return Drip(chunks, interval=1, store=rng.random() < 0.5)
            case "too large":
                return self._refusal_of_size(request, ids)
            case "restart":
                self.restart()
                return Reset(store=rng.random() < 0.5)
            case _:
                return None

    def _refusal_of_size(self, request: ReceivedRequest, ids: list[int]) -> ServerOutcome | None:
        if len(request.content) <= self._plan.request_limit:
            return None
        self.injected("413")
        if len(ids) == 1:
            self._refused_alone.update(ids)
        return Answer(413)


def _seconds_to_wait(outcome: ServerOutcome | None) -> float | None:
    headers = dict(outcome.headers) if isinstance(outcome, Answer) else {}
    return float(headers["retry-after"]) if "retry-after" in headers else None


class _Wire(httpx.AsyncBaseTransport):
    """The network between the exporter and the receiver: connections that are refused or break within a request."""

    def __init__(self, server: Server, inner: httpx.AsyncBaseTransport) -> None:
        self._server = server
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._server.network_is_down():
            self._server.injected("connection refused")
        fault = self._server.draw_fault()
        if self._server.outage() == "refused connections":
            fault = "refused connections"
        if fault == "refused connections":
            self._server.injected(fault)
            await trio.lowlevel.checkpoint()
            raise httpx.ConnectError("the network is down")
        if fault == "broken body":
            self._server.injected(fault)
            assert isinstance(request.stream, httpx.AsyncByteStream)
            request.stream = _BreaksInTheMiddle(request.stream, self._server.receiver)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BreaksInTheMiddle(httpx.AsyncByteStream):
    """A request's body before whose last byte the server breaks all connections."""

    def __init__(self, body: httpx.AsyncByteStream, receiver: OTLPReceiver) -> None:
        self._chunks = aiter(body)
        self._receiver = receiver
        self._broken = False
        self._rest = b""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._rest:
            self._receiver.drop_connections()
            await trio.lowlevel.checkpoint()
            chunk, self._rest = self._rest, b""
            return chunk
        chunk = await anext(self._chunks)
        if self._broken:
            return chunk
        self._broken = True
        self._rest = chunk[-1:]
        return chunk[:-1]
