"""Helpers for tests of the receiver: requests, clients, raw connections."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.processes import DEADLINE
from trio_spanbatch.testing import OTLPReceiver

PROTOBUF = {"content-type": "application/x-protobuf"}


def message_of(*names: str) -> ExportTraceServiceRequest:
    """Return a request of spans with these names."""
    message = ExportTraceServiceRequest()
    scope_spans = message.resource_spans.add().scope_spans.add()
    for number, name in enumerate(names, start=1):
        scope_spans.spans.add(name=name, trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"))
    return message


def body_of(*names: str) -> bytes:
    return message_of(*names).SerializeToString()


def stored_names(receiver: OTLPReceiver, location: str = "default") -> list[str]:
    return [span.name for span in receiver.stored.get(location, [])]


def raw_request(body: bytes, *headers: str, method: str = "POST", target: str = "/v1/traces") -> bytes:
    """Return the bytes of a request as a well-behaved client sends them."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: receiver",
        "Content-Type: application/x-protobuf",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail if a socket, a stream or an async generator was left to the garbage collector."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    leaks = [str(warning.message) for warning in caught]
    assert leaks == [], leaks


def client_for(receiver: OTLPReceiver, *, memory: bool, timeout: float | None = None) -> httpx.AsyncClient:
    if memory:
        return httpx.AsyncClient(transport=receiver.memory_transport(), timeout=timeout)
    return httpx.AsyncClient(timeout=timeout, trust_env=False)


class Body(httpx.AsyncByteStream):
    """A request's body that leaks nothing.

    httpx's body is an async generator, which httpcore leaves unfinished when the server breaks the connection while the
    body is being sent. That would cause occasional ResourceWarnings in tests of the receiver.
    """

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def request_to(receiver: OTLPReceiver, *chunks: bytes, **headers: str) -> httpx.Request:
    """Return a request with the body ``chunks``: with a content-length if there is one chunk, else chunked."""
    framing = {"content-length": str(len(chunks[0]))} if len(chunks) == 1 else {"transfer-encoding": "chunked"}
    # With a custom stream, httpx adds no headers.
    host = {"host": httpx.URL(receiver.url).netloc.decode()}
    return httpx.Request("POST", receiver.url, headers=host | PROTOBUF | framing | headers, stream=Body(*chunks))


async def post(client: httpx.AsyncClient, receiver: OTLPReceiver, *chunks: bytes, **headers: str) -> httpx.Response:
    return await client.send(request_to(receiver, *chunks, **headers))


@asynccontextmanager
async def raw_connection(receiver: OTLPReceiver, *, memory: bool) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """Open a connection to ``receiver`` to which a test writes raw bytes."""
    if not memory:
        async with await trio.open_tcp_stream("127.0.0.1", receiver.port) as stream:
            yield stream
        return
    client_end, server_end = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.serve_stream, server_end)
        async with client_end:
            yield client_end


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Return everything that the receiver sends until it closes or breaks the connection."""
    data = b""
    try:
        while chunk := await stream.receive_some(65536):
            data += chunk
    except trio.BrokenResourceError:
        pass
    return data


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let other tasks and the kernel run until ``condition`` holds."""
    with trio.fail_after(DEADLINE):
        while True:
            await trio.lowlevel.checkpoint()
            if condition():
                return


async def converse(receiver: OTLPReceiver, memory: bool, data: bytes) -> None:
    """Send ``data`` and read until the receiver ends the connection."""
    async with raw_connection(receiver, memory=memory) as stream:
        if data:
            await stream.send_all(data)
        await read_all(stream)
