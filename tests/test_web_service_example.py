"""The web service of the examples, as a process of its own: requests over TCP, and SIGTERM while they come in."""

from __future__ import annotations

import itertools
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import attrs
import httpx
import trio
from framework_support import (
    EXAMPLES,
    LOCATION_HEADER,
    assert_one_trace_is_one_location,
    environment,
    expected,
    trees,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from process_support import Child, child, wait_until

from trio_spanbatch.testing import OTLPReceiver

RUNNING = re.compile(r"Running on http://127\.0\.0\.1:(\d+) ")
# As many requests are answered before the SIGTERM comes, and so many clients keep on sending.
ANSWERED_BEFORE = 60
CLIENTS = 4


@attrs.frozen
class Service:
    """The example, running."""

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


def assert_it_said_no_more_than_that_it_runs(process: Child) -> None:
    (line,) = process.errors.splitlines()
    assert RUNNING.search(line)


async def test_each_tenant_of_the_web_service_has_its_location_and_a_stranger_has_none() -> None:
    async with OTLPReceiver(location_header=LOCATION_HEADER) as receiver, web_service(receiver) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=None, trust_env=False) as client:
            answers = [
                await client.post("/orders", json={"number": 1}, headers={"X-Tenant": "acme"}),
                await client.get("/orders/2", headers={"x-tenant": "acme", "traceparent": traceparent(2)}),
                await client.get("/orders/3", headers={"x-tenant": "globex"}),
                await client.get("/nothing", headers={"x-tenant": "globex"}),
                await client.get("/orders/4"),
                await client.get("/orders/5", headers={"x-tenant": "main.acme.spans"}),
            ]
        assert await service.terminate() == 0
        assert_it_said_no_more_than_that_it_runs(service.process)
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
    """Return whether the request of this number is a POST, which is served on trio, or a GET, served in a thread."""
    return number % 2 == 1


@attrs.define
class Load:
    """Clients that send requests until nobody takes them any more, each request in a trace of its own.

    Attributes:
        answered: The requests that were answered: the trace id, and the tenant.
    """

    url: str
    answered: dict[int, str] = attrs.Factory(dict)
    _enough: trio.Event = attrs.field(factory=trio.Event)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))

    async def wait_until_in_full_swing(self) -> None:
        await self._enough.wait()

    async def send_requests(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=None, trust_env=False) as client:
            try:
                for number in self._numbers:
                    await self._send_request(client, number)
            except httpx.TransportError:
                # The service takes no more. It may end a connection on which there is no request of its own accord.
                return

    async def _send_request(self, client: httpx.AsyncClient, number: int) -> None:
        tenant = "acme" if number % 3 else "globex"
        headers = {"x-tenant": tenant, "traceparent": traceparent(number)}
        if posts(number):
            answer = await client.post("/orders", json={"number": number}, headers=headers)
        else:
            answer = await client.get(f"/orders/{number}", headers=headers)
        assert answer.status_code == 200
        self.answered[number] = tenant
        if len(self.answered) >= ANSWERED_BEFORE:
            self._enough.set()


def names_of_request(number: int) -> list[str]:
    return ["POST /orders", "store order"] if posts(number) else [f"GET /orders/{number}", "print order"]


def names_by_trace(spans: Iterable[SpanMessage]) -> dict[int, list[str]]:
    names: defaultdict[int, list[str]] = defaultdict(list)
    for span in spans:
        names[int.from_bytes(span.trace_id)].append(span.name)
    return names


class RequestHalfSent:
    """A request that the service has begun to work on, and whose body has not come yet."""

    TRACE_ID = 2**64 + 1
    _BODY = b'{"number": 0}'

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    @classmethod
    async def to(cls, port: int) -> RequestHalfSent:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        head = (
            "POST /orders HTTP/1.1\r\nhost: test\r\nx-tenant: acme\r\nexpect: 100-continue\r\n"
            f"traceparent: {traceparent(cls.TRACE_ID)}\r\ncontent-length: {len(cls._BODY)}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
        return cls(stream)

    async def finish(self) -> bytes:
        """Send the body. Return what comes back, until the service closes the connection."""
        async with self._stream:
            await self._stream.send_all(self._BODY)
            return b"".join([part async for part in self._stream])


async def wait_until_refused(port: int) -> None:
    """Return once the service takes no new connections."""
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            return
        await stream.aclose()


async def test_after_a_sigterm_in_mid_load_every_request_that_was_answered_has_all_its_spans() -> None:
    async with OTLPReceiver(location_header=LOCATION_HEADER) as receiver, web_service(receiver) as service:
        load = Load(service.url)
        half_sent = await RequestHalfSent.to(service.port)
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(load.send_requests)
            await load.wait_until_in_full_swing()
            service.process.send_signal(signal.SIGTERM)
            await wait_until_refused(service.port)
            assert (await half_sent.finish()).startswith(b"HTTP/1.1 200")
        assert await service.process.wait() == 0
        assert_it_said_no_more_than_that_it_runs(service.process)
        assert service.process.said == [f"delivered: {sum(map(len, receiver.stored.values()))}"]
    assert_one_trace_is_one_location(receiver.stored)
    found = {
        (location, trace_id): sorted(names)
        for location, spans in receiver.stored.items()
        for trace_id, names in names_by_trace(spans).items()
    }
    answered = {RequestHalfSent.TRACE_ID: "acme", **load.answered}
    assert found.keys() >= {(f"main.{tenant}.spans", number) for number, tenant in answered.items()}
    # And of those that were begun, but whose answer did not get through.
    assert found == {(location, number): names_of_request(number) for location, number in found}
