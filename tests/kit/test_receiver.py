"""The receiver as a well-behaved server, over TCP and over memory streams."""

from __future__ import annotations

import gzip
import itertools
import logging
import ssl
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest
import trio
import trio.testing
import trustme

from tests.support.receivers import (
    PROTOBUF,
    body_of,
    client_for,
    message_of,
    nothing_leaks,
    post,
    raw_connection,
    raw_request,
    read_all,
    stored_names,
    wait_until,
)
from trio_spanbatch.testing import Answer, Hang, OTLPReceiver, ReceivedRequest, Reset

networks = pytest.mark.parametrize("memory", [False, True], ids=["tcp", "memory"])

DISCONNECTS = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)


def contexts_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # httpcore suppresses the cause with "from None", but it is still the context.
        error = error.__context__


# A well-behaved server


@networks
async def test_a_good_request_is_stored_and_answered_200_with_an_empty_body(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, client_for(receiver, memory=memory) as client:
        began = trio.current_time()
        response = await post(client, receiver, body_of("one", "two"))
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == "application/x-protobuf"
        (request,) = receiver.requests
        assert (request.method, request.target, request.location) == ("POST", "/v1/traces", "default")
        assert request.body == request.content == body_of("one", "two")
        assert request.message == message_of("one", "two")
        assert [span.name for span in request.spans] == stored_names(receiver) == ["one", "two"]
        assert request.header("Content-Type") == "application/x-protobuf"
        assert request.header("absent") is None
        assert began <= request.at <= trio.current_time()


@networks
async def test_the_location_is_the_unchanged_header_and_default_if_missing_or_empty(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, location_header="X-Scope-OrgID")
    async with receiver, client_for(receiver, memory=memory) as client:
        await post(client, receiver, body_of("a"), **{"x-scope-orgid": "main.agents%2Espans"})
        await post(client, receiver, body_of("b"))
        await post(client, receiver, body_of("c"), **{"x-scope-orgid": ""})
        assert [request.location for request in receiver.requests] == ["main.agents%2Espans", "default", "default"]
        assert stored_names(receiver, "main.agents%2Espans") == ["a"]
        assert stored_names(receiver) == ["b", "c"]


@networks
@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
        ("identity", bytes),
    ],
    ids=["gzip", "gzip-in-capitals", "gzip-members", "deflate", "raw-deflate", "identity"],
)
async def test_compressed_requests_are_decompressed(
    memory: bool, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, client_for(receiver, memory=memory) as client:
        body = body_of("x" * 300)
        # Compressed once, as gzip writes the current second.
        compressed = compress(body)
        response = await post(client, receiver, compressed, **{"content-encoding": encoding})
        assert response.status_code == 200
        assert receiver.requests[0].content == body
        assert receiver.requests[0].body == compressed


@networks
async def test_invalid_requests_are_refused_as_by_a_real_server(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, client_for(receiver, memory=memory) as client:
        good = body_of("x")
        bomb = {"content-encoding": "gzip"}
        assert (await post(client, receiver, b"\xff\xff\xff")).status_code == 400
        assert (await post(client, receiver, b"no gzip", **bomb)).status_code == 400
        assert (await post(client, receiver, b"", **bomb)).status_code == 400
        assert (await post(client, receiver, gzip.compress(good)[:-3], **bomb)).status_code == 400
        assert (await post(client, receiver, good, **{"content-encoding": "br"})).status_code == 415
        assert (await post(client, receiver, good, **{"content-type": "text/plain"})).status_code == 415
        assert (await client.post(receiver.url, content=good, headers={})).status_code == 415
        response = await client.get(receiver.url)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert (await client.head(receiver.url)).status_code == 405
        assert (await client.post(receiver.url + "/more", content=good, headers=PROTOBUF)).status_code == 404
        assert receiver.stored == {}
        assert len(receiver.requests) == 10
        assert receiver.requests[0].message is None
        assert receiver.requests[0].spans == []
        assert receiver.connections == 1


async def test_parameters_of_the_content_type_and_a_query_are_accepted() -> None:
    async with OTLPReceiver() as receiver, client_for(receiver, memory=False) as client:
        headers = {"content-type": "Application/X-Protobuf; charset=utf-8"}
        assert (await client.post(receiver.url + "?a=b", content=body_of("x"), headers=headers)).is_success


async def test_the_path_can_be_changed_or_unrestricted() -> None:
    for path, target, status in [("/api/otel", "/api/otel", 200), ("/api/otel", "/v1/traces", 404), (None, "/x", 200)]:
        async with OTLPReceiver(path=path) as receiver, client_for(receiver, memory=False) as client:
            assert receiver.url.endswith(path or "/v1/traces")
            url = f"http://127.0.0.1:{receiver.port}{target}"
            assert (await client.post(url, content=body_of("x"), headers=PROTOBUF)).status_code == status


@networks
async def test_a_request_that_is_too_large_is_answered_413_and_closes_the_connection(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, max_request_bytes=1000)
    async with receiver, client_for(receiver, memory=memory) as client:
        small = body_of("x" * 900)
        assert (await post(client, receiver, small)).status_code == 200
        assert (await post(client, receiver, body_of("x" * 1000))).status_code == 413
        assert (await post(client, receiver, *[b"x" * 100] * 100)).status_code == 413
        bomb = gzip.compress(bytes(1_000_000))
        assert len(bomb) > 970
        assert (await post(client, receiver, bomb[:1000], **{"content-encoding": "gzip"})).status_code == 413
        assert len(stored_names(receiver)) == 1
        assert [request.body == b"" for request in receiver.requests] == [False, True, True, False]


@networks
async def test_chunked_bodies_are_read_completely(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, client_for(receiver, memory=memory) as client:
        assert (await post(client, receiver, *(bytes((byte,)) for byte in body_of("in pieces")))).is_success
        assert stored_names(receiver) == ["in pieces"]


@networks
async def test_connections_are_kept_alive_and_counted(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver:
        async with client_for(receiver, memory=memory) as client:
            for _ in range(3):
                await post(client, receiver, body_of("x"))
            assert (receiver.connections, receiver.open_connections) == (1, 1)
            await post(client, receiver, body_of("x"), connection="close")
            await wait_until(lambda: receiver.open_connections == 0)
            await post(client, receiver, body_of("x"))
            assert receiver.connections == 2
        await wait_until(lambda: receiver.open_connections == 0)


@networks
async def test_pipelined_requests_are_answered_one_after_the_other(memory: bool) -> None:
    receiver = OTLPReceiver(
        listen=not memory, answers=[Answer(501), None, Answer(502, headers=[("Connection", "close")])]
    )
    async with receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(b"".join(raw_request(body_of(name)) for name in ("one", "two", "three", "four")))
        statuses = [line.split()[1] for line in (await read_all(stream)).split(b"\r\n") if line.startswith(b"HTTP/")]
        assert statuses == [b"501", b"200", b"502"]
        assert [request.spans[0].name for request in receiver.requests] == ["one", "two", "three"]


@networks
async def test_a_client_that_expects_100_continue_gets_it_before_it_sends_the_body(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
        request = raw_request(body := body_of("x"), "Expect: 100-continue")
        await stream.send_all(request[: -len(body)])
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(body)
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200 OK")


@networks
async def test_http_1_0_is_answered_and_closed(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory) as receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(raw_request(body_of("x")).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200 OK")
        assert stored_names(receiver) == ["x"]


@networks
async def test_many_clients_are_served_at_once(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=itertools.chain([Hang()] * 3, itertools.repeat(None)))
    async with receiver, client_for(receiver, memory=memory) as client, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(post, client, receiver, body_of(str(number)))
        await receiver.wait_for_requests(3)
        assert (await post(client, receiver, body_of("last"))).is_success
        assert receiver.open_connections == 4
        nursery.cancel_scope.cancel()


# Stores and counters


@networks
async def test_on_request_sees_every_request_and_its_status_before_the_client_does(memory: bool) -> None:
    seen: list[tuple[str, int | None]] = []
    answers = [Answer(503), None, Reset(), Reset("before_body")]
    receiver = OTLPReceiver(
        listen=not memory,
        answers=answers,
        on_request=lambda request, status: seen.append((request.method, status)),
        max_request_bytes=1000,
    )
    async with receiver, client_for(receiver, memory=memory) as client:
        await post(client, receiver, body_of("x"))
        assert seen == [("POST", 503)]
        await client.get(receiver.url)
        for _ in range(2):
            with pytest.raises(DISCONNECTS):
                await post(client, receiver, body_of("x"))
        await post(client, receiver, body_of("x" * 2000))
        assert seen == [("POST", 503), ("GET", 405), ("POST", None), ("POST", None), ("POST", 413)]


@networks
async def test_a_failing_on_request_is_answered_500_and_nothing_is_stored(
    memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: ReceivedRequest, status: int | None) -> None:
        raise OSError("disk full")

    receiver = OTLPReceiver(listen=not memory, on_request=fail, answers=[None, Reset(store=True)])
    async with receiver, client_for(receiver, memory=memory) as client:
        response = await post(client, receiver, body_of("x"))
        assert (response.status_code, response.text) == (500, "the receiver's on_request failed")
        with pytest.raises(DISCONNECTS):
            await post(client, receiver, body_of("x"))
        assert "disk full" in caplog.text
        assert receiver.stored == {}


@networks
async def test_without_keep_nothing_is_kept_but_requests_are_counted(memory: bool) -> None:
    async with OTLPReceiver(listen=not memory, keep=False) as receiver, client_for(receiver, memory=memory) as client:
        for _ in range(3):
            await post(client, receiver, body_of("x"))
        assert (receiver.requests, receiver.stored) == ([], {})
        await receiver.wait_for_requests(3)


async def test_waiting_for_requests_that_have_already_arrived_only_checkpoints() -> None:
    async with OTLPReceiver() as receiver, client_for(receiver, memory=False) as client:
        await post(client, receiver, body_of("x"))
        with trio.testing.assert_checkpoints():
            await receiver.wait_for_requests(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.wait_for_requests, 3)
            for _ in range(2):
                await post(client, receiver, body_of("x"))


# TLS


@networks
async def test_tls_is_used_on_every_connection(memory: bool, caplog: pytest.LogCaptureFixture) -> None:
    authority = trustme.CA()
    server, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1", "receiver.test").configure_cert(server)
    authority.configure_trust(trusting)
    receiver = OTLPReceiver(listen=not memory, ssl_context=server, answers=[None, Reset()])

    def client_that_trusts(context: ssl.SSLContext) -> httpx.AsyncClient:
        if memory:
            return httpx.AsyncClient(transport=receiver.memory_transport(ssl_context=context))
        return httpx.AsyncClient(verify=context, trust_env=False)

    with caplog.at_level(logging.WARNING), nothing_leaks():
        async with receiver, client_that_trusts(trusting) as client:
            assert receiver.url.startswith("https://")
            assert (await post(client, receiver, body_of("x"))).is_success
            with pytest.raises(DISCONNECTS):
                await post(client, receiver, body_of("x"))
            async with client_that_trusts(ssl.create_default_context()) as stranger:
                with pytest.raises(httpx.ConnectError) as caught:
                    await post(stranger, receiver, body_of("x"))
                assert "CERTIFICATE_VERIFY_FAILED" in "".join(map(str, contexts_of(caught.value)))
            # Plain HTTP against TLS.
            async with raw_connection(receiver, memory=memory) as stream:
                await stream.send_all(raw_request(body_of("x")))
                assert b"HTTP" not in await read_all(stream)
            assert receiver.connections == 3
    assert caplog.text == ""
