"""The exporter's requests, and its results for responses: with the real receiver over TCP."""

from __future__ import annotations

import gzip
import zlib

import httpx
import pytest
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from tests.support.exporters import ENDPOINT, batch_of, encoded_span, export_once, stored
from trio_spanbatch import Delivered, OTLPExporter, Refused, SpanBatch, SpanExporter, TryLater
from trio_spanbatch._exporter import LocationChecker
from trio_spanbatch._http.body import PIECE, gzip_compress
from trio_spanbatch._version import __version__
from trio_spanbatch.testing import Answer, Hang, OTLPReceiver, partial_success

# Requests.


async def test_a_batch_arrives_with_the_headers_that_the_specification_asks_for() -> None:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        result = await export_once(receiver, batch_of(3, "tenant 7"), location_header="X-Scope-OrgID")
        assert result == Delivered()
        headers = dict(receiver.requests[0].headers)
        assert headers["content-type"] == "application/x-protobuf"
        assert headers["user-agent"].startswith(f"trio-spanbatch/{__version__} (OTLP exporter; Python 3.")
        assert headers["accept-encoding"] == "gzip, deflate"
        assert "content-encoding" not in headers
        assert "transfer-encoding" not in headers
        assert [span.name for span in receiver.stored["tenant 7"]] == ["step"] * 3


async def test_the_exporter_is_a_span_exporter() -> None:
    exporter: SpanExporter = OTLPExporter(ENDPOINT)
    assert isinstance(exporter, LocationChecker)
    await exporter.aclose()


@pytest.mark.parametrize(("endpoint", "path"), [("", "/"), ("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/a/b", "/a/b")])
async def test_the_endpoint_is_used_unchanged_and_no_path_means_the_root(endpoint: str, path: str) -> None:
    async with OTLPReceiver(path=None) as receiver:
        exporter = OTLPExporter(f"http://127.0.0.1:{receiver.port}{endpoint}")
        assert await exporter.export(batch_of()) == Delivered()
        assert receiver.requests[0].target == path
        await exporter.aclose()


async def test_compressed_requests_have_the_header_and_arrive() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, batch_of(300), compression="gzip") == Delivered()
        request = receiver.requests[0]
        assert request.header("content-encoding") == "gzip"
        assert int(request.header("content-length") or 0) < batch_of(300).size / 2
        assert len(stored(receiver)) == 300


async def test_compression_checkpoints_after_each_piece_and_restores_to_the_same_bytes() -> None:
    body = bytes(range(256)) * (PIECE // 16)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        assert gzip.decompress(await gzip_compress(body)) == body
        nursery.cancel_scope.cancel()
    assert ticks >= len(body) // PIECE - 3


async def test_a_large_request_arrives_whole() -> None:
    async with OTLPReceiver() as receiver:
        batch = SpanBatch("", tuple(encoded_span(n, "x" * PIECE) for n in range(1, 40)))
        assert await export_once(receiver, batch) == Delivered()
        assert len(stored(receiver)) == 39


async def test_a_batch_without_spans_is_not_sent() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, SpanBatch("x", ())) == Delivered()
        assert receiver.requests == []


async def test_a_request_that_is_too_large_is_not_sent_and_may_be_split() -> None:
    async with OTLPReceiver() as receiver:
        batch = batch_of(10)
        result = await export_once(receiver, batch, max_request_bytes=batch.size - 1)
        assert isinstance(result, Refused)
        assert result.isolate
        assert result.status_code == 413
        assert str(batch.size) in result.reason
        assert receiver.requests == []
        assert await export_once(receiver, batch, max_request_bytes=batch.size) == Delivered()


async def test_the_limit_of_a_request_is_64_mib_before_compression_by_default() -> None:
    limit = 64 * 1024 * 1024
    async with OTLPReceiver() as receiver:
        # The request is small, though the batch reports a large size.
        just, over = (SpanBatch("x", (encoded_span(),), size=size) for size in (limit, limit + 1))
        assert await export_once(receiver, just, compression="gzip") == Delivered()
        result = await export_once(receiver, over, compression="gzip")
        assert isinstance(result, Refused)
        assert result.reason == "the request has 67108865 bytes; more than 67108864 (max_request_bytes) are not sent"
        assert len(receiver.requests) == 1


async def test_the_users_user_agent_precedes_the_exporters_own() -> None:
    async with OTLPReceiver() as receiver:
        await export_once(receiver, headers={"User-Agent": "my-agents/2"})
        assert (receiver.requests[0].header("user-agent") or "").startswith("my-agents/2 trio-spanbatch/")


async def test_static_headers_are_sent_with_every_request() -> None:
    async with OTLPReceiver() as receiver:
        await export_once(receiver, headers={"X-Mixed-Case": "a b", "empty": "", "latin": "\xe9"})
        headers = dict(receiver.requests[0].headers)
        assert (headers["x-mixed-case"], headers["empty"], headers["latin"]) == ("a b", "", "\xe9")


async def test_connections_are_kept_alive() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        for _ in range(5):
            assert await exporter.export(batch_of()) == Delivered()
        assert receiver.connections == 1
        await exporter.aclose()


async def test_connections_are_kept_alive_after_errors_too() -> None:
    async with OTLPReceiver(answers=[Answer(500, body=b"busy"), Answer(400, body=b"bad" * 50_000)]) as receiver:
        exporter = OTLPExporter(receiver.url)
        for _ in range(3):
            await exporter.export(batch_of())
        assert receiver.connections == 1
        await exporter.aclose()


async def test_any_number_of_exports_run_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(answers=lambda _: Answer(delay=1), listen=False) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport(), timeout=1.5)
        results = []

        async def export() -> None:
            results.append(await exporter.export(batch_of()))

        async with trio.open_nursery() as nursery:
            for _ in range(150):
                nursery.start_soon(export)
        assert results == [Delivered()] * 150
        await exporter.aclose()


async def test_the_exporters_own_client_never_queues_for_a_connection() -> None:
    async with OTLPReceiver(answers=lambda _: Hang()) as receiver:
        exporter = OTLPExporter(receiver.url)
        async with trio.open_nursery() as nursery:
            for _ in range(110):
                nursery.start_soon(exporter.export, batch_of())
            await receiver.wait_for_requests(110)
            nursery.cancel_scope.cancel()
        await exporter.aclose()


# Responses.


async def test_a_partial_success_is_a_delivery_with_rejected_spans() -> None:
    async with OTLPReceiver(answers=[partial_success(2, "too old")]) as receiver:
        assert await export_once(receiver, batch_of(5)) == Delivered(2, "too old")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_answers_are_read(encoding: str) -> None:

    plain = partial_success(2, "too old")
    body = gzip.compress(plain.body) if encoding == "gzip" else zlib.compress(plain.body)
    answer = Answer(headers=[*plain.headers, ("content-encoding", encoding)], body=body)
    async with OTLPReceiver(answers=[answer]) as receiver:
        assert await export_once(receiver) == Delivered(2, "too old")


async def test_retry_after_comes_with_the_result() -> None:
    async with OTLPReceiver(answers=[Answer(429, headers=[("Retry-After", "17")])]) as receiver:
        assert await export_once(receiver) == TryLater("429 Too Many Requests", after=17.0, status_code=429)


async def test_a_retry_after_date_is_relative_to_now() -> None:
    headers = [("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")]
    async with OTLPReceiver(answers=[Answer(503, headers=headers)]) as receiver:
        assert await export_once(receiver) == TryLater("503 Service Unavailable", after=0.0, status_code=503)


@pytest.mark.parametrize("location", ["/elsewhere", "https://user:pw@elsewhere.example/?pw", "http://[::", "//", ""])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_refused_and_not_followed(status: int, location: str) -> None:
    async with OTLPReceiver(answers=[Answer(status, headers=[("Location", location)])], path=None) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, Refused)
        assert result.status_code == status
        assert "pw" not in result.reason
        assert len(receiver.requests) == 1


async def test_a_client_that_follows_redirects_does_not_follow_them_here() -> None:
    async with OTLPReceiver(answers=[Answer(307, headers=[("Location", "/elsewhere")])], path=None) as receiver:
        async with httpx.AsyncClient(follow_redirects=True) as client:
            assert isinstance(await export_once(receiver, client=client), Refused)
        assert len(receiver.requests) == 1


async def test_a_login_page_is_refused() -> None:
    answer = Answer(headers=[("Content-Type", "text/html")], body=b"<html><title>Sign in</title></html>")
    async with OTLPReceiver(answers=[answer]) as receiver:
        result = await export_once(receiver)
        assert isinstance(result, Refused)
        assert "login page?" in result.reason


async def test_cookies_are_neither_kept_nor_sent() -> None:
    async with OTLPReceiver(answers=[Answer(headers=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")])]) as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        await exporter.export(batch_of())
        assert receiver.requests[1].header("cookie") is None
        await exporter.aclose()


async def test_an_answer_of_several_gzip_members_is_read_to_its_end() -> None:
    whole = partial_success(2, "hello")
    body = gzip.compress(b"") + gzip.compress(whole.body[:3]) + gzip.compress(whole.body[3:])
    headers = [*whole.headers, ("content-encoding", "gzip")]
    async with OTLPReceiver(answers=[Answer(headers=headers, body=body)]) as receiver:
        assert await export_once(receiver) == Delivered(2, "hello", status_code=200)


@pytest.mark.parametrize("length", [1, 10, 20])
async def test_a_compressed_answer_that_is_cut_off_is_a_delivery_with_a_warning(length: int) -> None:
    whole = partial_success(2, "hello" * 20)
    body = gzip.compress(whole.body)[:length]
    headers = [*whole.headers, ("content-encoding", "gzip")]
    async with OTLPReceiver(answers=[Answer(headers=headers, body=body)]) as receiver:
        result = await export_once(receiver)
    assert result == Delivered(
        0, "the answer's body could not be decompressed (content-encoding: gzip)", status_code=200
    )


async def test_the_readable_part_of_a_truncated_compressed_error_is_reported() -> None:
    body = gzip.compress(b"span 7 is bad")[:-8]
    async with OTLPReceiver(answers=[Answer(400, headers=[("content-encoding", "gzip")], body=body)]) as receiver:
        assert await export_once(receiver) == Refused("400 Bad Request: span 7 is bad", 400, isolate=True)


# -- a body that was read already ------------------------------------------------------------------------------------

PARTIAL = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=1, error_message="no"))


@pytest.mark.parametrize("content_encoding", ["identity", "gzip"])
async def test_a_body_that_a_hook_of_the_client_has_read_is_read_again(content_encoding: str) -> None:
    async def read(response: httpx.Response) -> None:
        await response.aread()

    body = PARTIAL.SerializeToString()
    headers = [("content-type", "application/x-protobuf"), ("content-encoding", content_encoding)]
    answer = Answer(200, headers=headers, body=gzip.compress(body) if content_encoding == "gzip" else body)
    async with (
        OTLPReceiver(answers=[answer]) as receiver,
        httpx.AsyncClient(event_hooks={"response": [read]}) as client,
    ):
        exporter = OTLPExporter(receiver.url, client=client)
        assert await exporter.export(batch_of(2)) == Delivered(1, "no")
        await exporter.aclose()


async def test_a_transport_may_return_bodies_that_are_already_read() -> None:
    body = PARTIAL.SerializeToString()
    headers = {"content-type": "application/x-protobuf"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=body))
    exporter = OTLPExporter("http://localhost/", transport=transport, max_response_bytes=len(body))
    assert await exporter.export(batch_of(2)) == Delivered(1, "no")
    await exporter.aclose()
    small = OTLPExporter("http://localhost/", transport=transport, max_response_bytes=len(body) - 1)
    assert isinstance(await small.export(batch_of(2)), Refused)
    await small.aclose()
