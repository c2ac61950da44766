"""HTTP proxies: forwarding, tunnels, credentials, refusals, and TLS to proxies."""

from __future__ import annotations

import base64
import ssl
import traceback
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio

from tests.support.scripted import (
    OK,
    Tls,
    answer,
    answers,
    listening,
    no_sockets_left,
    post,
    pump,
    read_head,
    read_request,
    url_of,
)
from trio_spanbatch._http.transport import HTTPTransport

PASSWORD = "pass:word-ä"
BASIC = b"Basic " + base64.b64encode(f"user:{PASSWORD}".encode())

Serve = Callable[[trio.abc.Stream], Awaitable[object]]


@pytest.fixture(params=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "TLS" else None


@pytest.fixture(params=["http proxy", "https proxy"])
def of_proxy(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "https proxy" else None


def transport_over(port: int, of_proxy: Tls | None, tls: Tls | None) -> HTTPTransport:
    scheme = "https" if of_proxy else "http"
    url = httpx.URL(f"{scheme}://127.0.0.1:{port}")
    proxy = httpx.Proxy(url, auth=("user", PASSWORD), headers={"X-Proxy": "yes"})
    return HTTPTransport(
        tls.client if tls else unused_context,
        proxy=proxy,
        proxy_context=of_proxy.client if of_proxy else unused_context,
    )


def unused_context() -> ssl.SSLContext:
    raise AssertionError("TLS is not needed")


def tunnels_to(port: int, heads: list[bytes]) -> Serve:
    """Return a proxy that opens all tunnels to a port of this machine, regardless of the requested host."""

    async def serve(client: trio.abc.Stream) -> None:
        head, _ = await read_head(client)
        heads.append(head)
        async with await trio.open_tcp_stream("127.0.0.1", port) as server:
            await client.send_all(b"HTTP/1.1 200 Connection established\r\nVia: a proxy\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, client, server, nursery.cancel_scope)
                await pump(server, client, nursery.cancel_scope)

    return serve


async def test_a_request_to_an_http_server_is_forwarded_with_its_whole_url(of_proxy: Tls | None) -> None:
    heads: list[bytes] = []
    with no_sockets_left():
        async with (
            listening(answers(OK, heads=heads), of_proxy) as port,
            transport_over(port, of_proxy, None) as transport,
        ):
            for _ in range(2):
                request, progress = post("http://server.test:4318/v1/traces?x=1", headers={"authorization": "mine"})
                assert await answer(transport, request) == (200, b"ok")
                assert progress.sent
                assert progress.peer == f"127.0.0.1:{port}"
    line, *headers = heads[0].split(b"\r\n")
    assert line == b"POST http://server.test:4318/v1/traces?x=1 HTTP/1.1"
    fields = {name.lower(): value for name, _, value in (header.partition(b": ") for header in headers)}
    assert fields[b"host"] == b"server.test:4318"
    assert fields[b"proxy-authorization"] == BASIC
    assert fields[b"x-proxy"] == b"yes"
    assert fields[b"authorization"] == b"mine"
    assert len(heads) == 2


async def test_a_request_to_an_https_server_goes_through_a_tunnel_that_alone_gets_the_credentials(
    of_proxy: Tls | None,
) -> None:
    tls, heads, asked = Tls(), list[bytes](), list[bytes]()
    with no_sockets_left():
        async with (
            listening(answers(OK, heads=heads), tls) as server,
            listening(tunnels_to(server, asked), of_proxy) as port,
            transport_over(port, of_proxy, tls) as transport,
        ):
            for _ in range(2):
                request, progress = post("https://server.test/v1/traces", headers={"authorization": "mine"})
                assert await answer(transport, request) == (200, b"ok")
                assert progress.sent
            assert progress.peer == f"127.0.0.1:{port}"
    (connect,) = asked
    line, *headers = connect.split(b"\r\n")
    assert line == b"CONNECT server.test:443 HTTP/1.1"
    fields = {name.lower(): value for name, _, value in (header.partition(b": ") for header in headers)}
    assert fields == {b"host": b"server.test:443", b"proxy-authorization": BASIC, b"x-proxy": b"yes"}
    assert [head.split(b"\r\n")[0] for head in heads] == [b"POST /v1/traces HTTP/1.1"] * 2
    assert all(b"proxy" not in head.lower() for head in heads)


async def test_a_tunnel_to_an_ipv6_address_names_it_in_brackets() -> None:
    tls, heads, asked = Tls(), list[bytes](), list[bytes]()
    async with (
        listening(answers(OK, heads=heads), tls) as server,
        listening(tunnels_to(server, asked)) as port,
        transport_over(port, None, tls) as transport,
    ):
        assert await answer(transport, f"https://[::1]:{server}/") == (200, b"ok")
    assert asked[0].startswith(b"CONNECT [::1]:%d HTTP/1.1\r\n" % server)


@pytest.mark.parametrize("status", [301, 400, 403, 407, 502, 503])
@pytest.mark.parametrize("body", [b"", b"Content-Length: 5\r\n"])
async def test_a_proxy_that_refuses_a_tunnel_is_a_proxy_error_with_its_status(
    status: int, body: bytes, of_proxy: Tls | None
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 %d Not now\r\n%s\r\n" % (status, body))
        await trio.sleep_forever()

    with no_sockets_left():
        async with listening(serve, of_proxy) as port, transport_over(port, of_proxy, None) as transport:
            request, progress = post("https://server.test/")
            with pytest.raises(httpx.ProxyError, match=f"^{status} Not now$") as caught:
                await answer(transport, request)
            assert caught.value.request is request
            assert not progress.sent
            assert progress.peer == f"127.0.0.1:{port}"


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 20", b"220 smtp.test\r\n\r\n", b"HTTP/1.1 101 -\r\n\r\n"])
async def test_a_proxy_that_closes_a_tunnel_early_is_a_connect_error(response: bytes, of_proxy: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        if response:
            await stream.send_all(response)

    with no_sockets_left():
        async with listening(serve, of_proxy) as port, transport_over(port, of_proxy, None) as transport:
            request, progress = post("https://server.test/")
            with pytest.raises(httpx.ConnectError):
                await answer(transport, request)
            assert not progress.sent


async def test_a_server_that_is_not_trusted_gets_nothing_through_the_tunnel(of_proxy: Tls | None) -> None:
    heads, asked = list[bytes](), list[bytes]()
    with no_sockets_left():
        async with (
            listening(answers(OK, heads=heads), Tls()) as server,
            listening(tunnels_to(server, asked), of_proxy) as port,
            transport_over(port, of_proxy, Tls()) as transport,
        ):
            request, progress = post("https://server.test/")
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await answer(transport, request)
            assert not progress.sent
    assert (heads, len(asked)) == ([], 1)


async def test_a_proxy_that_is_not_trusted_gets_no_credentials() -> None:
    heads: list[bytes] = []
    async with (
        listening(answers(OK, heads=heads), Tls()) as port,
        transport_over(port, Tls(), None) as transport,
    ):
        for url in ("http://server.test/", "https://server.test/"):
            request, progress = post(url)
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await answer(transport, request)
            assert not progress.sent
    assert heads == []


async def test_credentials_of_a_proxy_are_in_no_error() -> None:
    async with listening(answers(b"HTTP/1.1 407 No\r\n\r\n")) as port:
        proxy = httpx.Proxy(f"http://127.0.0.1:{port}", headers={"X-Key": "secret-key\n"})
        async with HTTPTransport(proxy=proxy) as transport:
            for url in ("https://server.test/", "http://server.test/"):
                with pytest.raises(httpx.LocalProtocolError) as caught:
                    await answer(transport, url)
                assert "secret-key" not in "".join(traceback.format_exception(caught.value))
                assert caught.value.__context__ is None


@pytest.mark.parametrize("then", ["closes", "stays"])
async def test_a_refusal_of_a_proxy_before_the_end_of_the_request_is_read(
    then: str, tls: Tls | None, of_proxy: Tls | None
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\ntoo large")
        if then == "stays":
            await trio.sleep_forever()

    content = bytes(24 * 1024 * 1024)
    with no_sockets_left():
        async with (
            listening(serve, tls) as server,
            # Where the server is http, the proxy itself answers.
            listening(tunnels_to(server, []) if tls else serve, of_proxy) as port,
            transport_over(port, of_proxy, tls) as transport,
        ):
            request, progress = post(url_of(server, tls), content)
            assert await answer(transport, request) == (413, b"too large")
            assert progress.sent


async def test_a_tunnel_with_more_than_the_response_is_not_used_again(of_proxy: Tls | None) -> None:
    tls, asked = Tls(), list[bytes]()

    async def serve(stream: trio.abc.Stream) -> None:
        while (await read_request(stream))[0]:
            await stream.send_all(OK + OK)

    async with (
        listening(serve, tls) as server,
        listening(tunnels_to(server, asked), of_proxy) as port,
        transport_over(port, of_proxy, tls) as transport,
    ):
        for _ in range(3):
            assert await answer(transport, "https://server.test/") == (200, b"ok")
    assert len(asked) == 3
