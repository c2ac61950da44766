"""SOCKS5 proxies: connections through them, refusals, replies in pieces, and credentials that no log has."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import httpx
import pytest
import trio

from tests.support.exporters import SECRET, batch_of
from tests.support.scripted import (
    OK,
    Tls,
    answer,
    listening,
    no_sockets_left,
    post,
    pump,
    read_request,
    silent,
)
from trio_spanbatch import Delivered, OTLPExporter, TryLater
from trio_spanbatch._http.transport import HTTPTransport
from trio_spanbatch.testing import Answer, OTLPReceiver

BOUND = b"\x01\x7f\x00\x00\x01\x10\x10"


@pytest.fixture(params=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    return Tls() if request.param == "TLS" else None


class Proxy:
    """A SOCKS5 proxy that connects to a port of this machine for any request, and records the requests.

    Args:
        port: The port.
        methods: The reply to the offer of methods.
        status: The reply to a user name and a password.
        reply: The reply to the request to connect.
    """

    def __init__(
        self, port: int, *, methods: bytes = b"\x05\x00", status: bytes = b"\x01\x00", reply: bytes = b"\x05\x00\x00"
    ) -> None:
        self._port = port
        self._methods = methods
        self._status = status
        self._reply = reply if len(reply) > 3 else reply + BOUND
        self.asked: list[bytes] = []

    async def serve(self, client: trio.abc.Stream) -> None:
        self.asked.append(bytes(await client.receive_some()))
        await drip(client, self._methods)
        if self._methods == b"\x05\x02":
            self.asked.append(bytes(await client.receive_some()))
            await drip(client, self._status)
        if not (request := bytes(await client.receive_some())):
            return
        self.asked.append(request)
        await drip(client, self._reply)
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, server, nursery.cancel_scope)
            await pump(server, client, nursery.cancel_scope)


async def drip(stream: trio.abc.Stream, data: bytes) -> None:
    for at in range(len(data)):
        await stream.send_all(data[at : at + 1])


def transport_over(port: int, tls: Tls | None = None, auth: tuple[str, str] | None = None) -> HTTPTransport:
    proxy = httpx.Proxy(f"socks5://127.0.0.1:{port}", auth=auth)
    return HTTPTransport(tls.client, proxy=proxy) if tls else HTTPTransport(proxy=proxy)


async def serve_ok(stream: trio.abc.Stream) -> None:
    while (await read_request(stream))[0]:
        await stream.send_all(OK)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("server.test", b"\x03\x0bserver.test"),
        ("127.0.0.1", b"\x01\x7f\x00\x00\x01"),
        ("[::1]", b"\x04" + bytes(15) + b"\x01"),
    ],
)
async def test_a_server_is_reached_through_the_proxy_which_looks_its_name_up(
    host: str, address: bytes, tls: Tls | None
) -> None:
    async with listening(serve_ok, tls) as port:
        proxy = Proxy(port)
        async with listening(proxy.serve) as proxy_port, transport_over(proxy_port, tls) as transport:
            for _ in range(2):
                request, progress = post(f"{'https' if tls else 'http'}://{host}:8443/")
                assert await answer(transport, request) == (200, b"ok")
                assert progress.peer == f"127.0.0.1:{proxy_port}"
    assert proxy.asked == [b"\x05\x01\x00", b"\x05\x01\x00" + address + (8443).to_bytes(2, "big")]


async def test_a_proxy_gets_the_user_name_and_the_password() -> None:
    async with listening(serve_ok) as port:
        proxy = Proxy(port, methods=b"\x05\x02")
        async with (
            listening(proxy.serve) as proxy_port,
            transport_over(proxy_port, auth=("user", "pä:ss")) as transport,
        ):
            assert await answer(transport, post("http://server.test/")[0]) == (200, b"ok")
    assert proxy.asked[:2] == [b"\x05\x01\x02", b"\x01\x04user\x06" + "pä:ss".encode()]


@pytest.mark.parametrize("bound", [b"\x03\x05a.bcd\x10\x10", b"\x04" + bytes(16) + b"\x10\x10", BOUND])
async def test_the_reply_may_have_an_address_of_any_kind(bound: bytes) -> None:
    async with listening(serve_ok) as port:
        proxy = Proxy(port, reply=b"\x05\x00\x00" + bound)
        async with listening(proxy.serve) as proxy_port, transport_over(proxy_port) as transport:
            assert await answer(transport, post("http://server.test/")[0]) == (200, b"ok")


@pytest.mark.parametrize(
    ("replies", "auth", "words"),
    [
        ([b"\x05\xff"], None, "it wants a user name and password"),
        ([b"\x05\x00"], ("user", SECRET), "it does not take the user name and password"),
        ([b"\x05\x02", b"\x01\x01"], ("user", SECRET), "it does not accept the user name and password"),
        ([b"\x05\x00", b"\x05\x02\x00" + BOUND], None, "not allowed by its rules"),
        ([b"\x05\x00", b"\x05\x05\x00" + BOUND], None, "connection refused"),
        ([b"\x05\x00", b"\x05\x77\x00" + BOUND], None, "error 119"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], None, "it does not speak SOCKS5"),
        ([b"\x05"], None, "it ended the connection"),
        ([b"\x05\x00", b"\x05\x00\x00\x01\x7f"], None, "it ended the connection"),
        ([b"\x05\x02"], ("user", "x" * 256), "more than 255 bytes"),
    ],
)
async def test_a_proxy_that_refuses_is_a_proxy_error_and_nothing_is_sent(
    replies: Sequence[bytes], auth: tuple[str, str] | None, words: str
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        for reply in replies:
            await stream.receive_some()
            await stream.send_all(reply)

    async with listening(serve) as port, transport_over(port, auth=auth) as transport:
        with no_sockets_left():
            request, progress = post("http://server.test/")
            with pytest.raises(httpx.ProxyError) as caught:
                await answer(transport, request)
            assert words in str(caught.value)
            assert SECRET not in str(caught.value)
            assert caught.value.request is request
            assert not progress.sent
            await trio.testing.wait_all_tasks_blocked()


async def test_a_cancel_takes_effect_at_once_if_a_proxy_hangs() -> None:
    async with listening(silent) as port, transport_over(port) as transport:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, transport, post("http://server.test/")[0])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught


async def test_credentials_of_a_socks_proxy_and_of_requests_are_in_no_log_not_even_at_debug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    for name in ("httpx", "httpcore", "trio_spanbatch"):
        caplog.set_level(1, name)
    token = f"token-{SECRET}"
    echo = Answer(503, headers=[("X-Said", token), ("Set-Cookie", token)])
    async with OTLPReceiver(answers=[echo]) as receiver:
        proxy = Proxy(receiver.port, methods=b"\x05\x02")
        async with listening(proxy.serve) as port:
            monkeypatch.setenv("ALL_PROXY", f"socks5://user:{SECRET}@127.0.0.1:{port}")
            exporter = OTLPExporter("http://collector.test/v1/traces", headers={"Authorization": f"Bearer {token}"})
            results = [await exporter.export(batch_of()) for _ in range(2)]
            await exporter.aclose()
    logging.getLogger("trio_spanbatch").debug("logs are captured")
    assert isinstance(results[0], TryLater)
    assert results[1] == Delivered(status_code=200)
    assert proxy.asked[1] == b"\x01\x04user" + bytes((len(SECRET),)) + SECRET.encode()
    assert "logs are captured" in caplog.text
    assert SECRET not in caplog.text + repr(results)
