"""The web service of the examples as a separate process: requests over TCP, and SIGTERM while they arrive."""

from __future__ import annotations

import itertools
import re
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import attrs
import httpx
import pytest
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.docs.support import EXAMPLES, LOCATION_HEADER, assert_one_trace_is_one_location, environment, expected, trees
from tests.support.processes import DEADLINE, Child, child, wait_until
from trio_spanbatch.testing import OTLPReceiver

pytestmark = pytest.mark.long

RUNNING = re.compile(r"Running on http://127\.0\.0\.1:(\d+) ")
# The number of requests that are answered before the SIGTERM, and the number of clients that keep sending.
ANSWERED_BEFORE = 60
CLIENTS = 4


@attrs.frozen
class Service:
    """The running example."""

    process: Child
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def terminate(self) -> int:
        """Send a SIGTERM and wait for the end. Return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@asynccontextmanager
async def web_service(receiver: OTLPReceiver) -> AsyncIterator[Service]:
    async with child(EXAMPLES / "web_service.py", "127.0.0.1:0", environ=environment(receiver)) as process:
        await wait_until(lambda: bool(RUNNING.search(process.errors)))
        found = RUNNING.search(process.errors)
        assert found is not None
        yield Service(process, int(found[1]))


def traceparent(trace_id: int) -> str:
    return f"00-{trace_id:032x}-00000000000000ff-01"


def assert_no_span_was_lost(process: Child, *, stored: int) -> None:
    """Assert that the service reports no lost span. It may log requests that it could not answer while stopping."""
    assert process.said == [f"delivered: {stored}"]
    assert not re.search("SpanBatcher|undelivered|rejected", process.errors)


async def test_each_tenant_of_the_web_service_has_its_location_and_an_unknown_tenant_has_none() -> None:
    async with OTLPReceiver(location_header=LOCATION_HEADER) as receiver, web_service(receiver) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE, trust_env=False) as client:
            answers = [
                await client.post("/orders", json={"number": 1}, headers={"X-Tenant": "acme"}),
                await client.get("/orders/2", headers={"x-tenant": "acme", "traceparent": traceparent(2)}),
                await client.get("/orders/3", headers={"x-tenant": "globex"}),
                await client.get("/nothing", headers={"x-tenant": "globex"}),
                await client.get("/orders/4"),
                await client.get("/orders/5", headers={"x-tenant": "main.acme.spans"}),
            ]
        assert await service.terminate() == 0
        assert_no_span_was_lost(service.process, stored=sum(map(len, receiver.stored.values())))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 403, 403]
    assert {location: trees(spans) for location, spans in receiver.stored.items()} == {
        "main.acme.spans": expected(
            """
            POST /orders /orders
              store order
            """,
            """
            GET /orders/2 /orders/2 (remote parent)
              print order
            """,
        ),
        "main.globex.spans": expected(
            """
            GET /orders/3 /orders/3
              print order
            """,
            """
            GET /nothing /nothing
            """,
        ),
    }


def posts(number: int) -> bool:
    """Return whether the request with this number is a POST, served on trio, or a GET, served in a thread."""
    return number % 2 == 1


def tenant_of(number: int) -> str:
    return "acme" if number % 3 else "globex"


def request(number: int, *headers: str) -> bytes:
    """Return a request with its own trace, whose id is its number. It is the only one on its connection.

    (Hypercorn 0.18 may wait for all of ``graceful_timeout`` if a connection that it closes gets another request.)
    """
    body = b'{"number": %d}' % number if posts(number) else b""
    lines = (
        "POST /orders HTTP/1.1" if posts(number) else f"GET /orders/{number} HTTP/1.1",
        "host: test",
        "connection: close",
        f"x-tenant: {tenant_of(number)}",
        f"traceparent: {traceparent(number)}",
        f"content-length: {len(body)}",
        *headers,
    )
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


async def answer_to(port: int, data: bytes) -> bytes:
    """Send ``data`` and return all received data, until the service closes the connection."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        return b"".join([part async for part in stream])


@attrs.define
class Load:
    """Clients that send requests until they are refused, each request with its own trace.

    Attributes:
        answered: The numbers of the requests that were answered.
    """

    port: int
    answered: set[int] = attrs.Factory(set)
    _enough: trio.Event = attrs.field(factory=trio.Event)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(2))

    async def wait_until_busy(self) -> None:
        await self._enough.wait()

    async def send_requests(self) -> None:
        """Send requests until one is refused, or accepted by the kernel and closed by the service unread."""
        for number in self._numbers:
            try:
                answer = await answer_to(self.port, request(number))
            except (OSError, trio.BrokenResourceError):
                return
            if not answer:
                return
            assert answer.startswith(b"HTTP/1.1 200")
            self.answered.add(number)
            if len(self.answered) >= ANSWERED_BEFORE:
                self._enough.set()


def names_of_request(number: int) -> Counter[str]:
    return Counter(["POST /orders", "store order"] if posts(number) else [f"GET /orders/{number}", "print order"])


def names_by_trace(spans: Iterable[SpanMessage]) -> dict[int, Counter[str]]:
    names: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for span in spans:
        names[int.from_bytes(span.trace_id)][span.name] += 1
    return names


@asynccontextmanager
async def half_sent_request(port: int, number: int) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Send the head of a request, and wait until the service handles it. Yields a function that sends the rest."""
    head, body = request(number, "expect: 100-continue").split(b"\r\n\r\n")
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head + b"\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")

        async def finish() -> bytes:
            await stream.send_all(body)
            return b"".join([part async for part in stream])

        yield finish


async def wait_until_refused(port: int) -> None:
    """Return once the service accepts no new connections."""
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            return
        await stream.aclose()


async def test_after_a_sigterm_under_load_every_answered_request_has_all_its_spans() -> None:
    async with OTLPReceiver(location_header=LOCATION_HEADER) as receiver, web_service(receiver) as service:
        load = Load(service.port)
        with trio.fail_after(DEADLINE):
            async with half_sent_request(service.port, 1) as finish, trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(load.send_requests)
                await load.wait_until_busy()
                service.process.send_signal(signal.SIGTERM)
                await wait_until_refused(service.port)
                assert (await finish()).startswith(b"HTTP/1.1 200")
        assert await service.process.wait() == 0
        assert_no_span_was_lost(service.process, stored=sum(map(len, receiver.stored.values())))
    assert_one_trace_is_one_location(receiver.stored)
    found = {number: names for spans in receiver.stored.values() for number, names in names_by_trace(spans).items()}
    answered = {1, *load.answered}
    assert {number: found.get(number) for number in answered} == {
        number: names_of_request(number) for number in answered
    }
    for location, spans in receiver.stored.items():
        assert {f"main.{tenant_of(number)}.spans" for number in names_by_trace(spans)} == {location}
