"""The arguments of the exporter, the client that it uses, and closing it."""

from __future__ import annotations

import math
import re
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.support.exporters import ENDPOINT, SECRET, batch_of, export_once, no_connections_left
from trio_spanbatch import Delivered, InvalidLocationError, OTLPExporter, SpanBatcher, TryLater
from trio_spanbatch.testing import Answer, OTLPReceiver

# Arguments.


@pytest.mark.parametrize(
    "endpoint",
    [
        f"http://user:{SECRET}@localhost/v1/traces",
        f"http://{SECRET}@localhost",
        f"https://localhost/v1/traces?api_key={SECRET}",
        f"https://user:{SECRET}@localhost/v1/traces?api_key={SECRET}",
        f"https://localhost/#{SECRET}",
        f"http:user:{SECRET}@localhost",
        f"{SECRET}@localhost",
        f"http://user:{SECRET}\\@localhost/",
        f"ftp://user:{SECRET}@localhost?{SECRET}",
        f"http://user:{SECRET}?x@localhost/",
        f"http://user:{SECRET}#x@localhost/",
        f"http://user:{SECRET}/x@localhost/",
        f"http://user:1234/{SECRET}@localhost/",
        f"http://user:{SECRET}%40localhost/",
        f"http://user:{SECRET}\uff20localhost/",
        f"http://user:{SECRET}\ufe6blocalhost/",
        f"http://localhost\uff0f{SECRET}@x",
        f"http://localhost?token=a@{SECRET}",
        f"http://user:{SECRET}?x",
        f"http://user:{SECRET}#x",
    ],
)
def test_credentials_in_the_url_are_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        OTLPExporter(endpoint)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "headers=" in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (f"http://user:{SECRET}", "endpoint (not shown) is not a URL"),
        (f"http://user:{SECRET}/x", "endpoint (not shown) is not a URL"),
        (f"http://[{SECRET}]/x", "endpoint (not shown) is not a URL"),
        (f"http://localhost/{SECRET}?", "endpoint 'http://localhost' has a query or fragment"),
        (f"http://localhost:0/{SECRET}", "endpoint 'http://localhost:0' has an invalid host or port"),
        (f"ftp://localhost:21/{SECRET}", "endpoint 'ftp://localhost:21' must begin with http:// or https://"),
        (f"localhost:4318/{SECRET}", "endpoint 'localhost:4318' must begin with http:// or https://"),
        (SECRET, "endpoint (not shown) must begin with http:// or https://"),
        (f"http://{SECRET} x/", "endpoint (not shown) has an invalid host or port"),
    ],
)
def test_only_scheme_host_and_port_of_an_endpoint_are_shown(endpoint: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        OTLPExporter(endpoint)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:4318/v1/a%40b", "http://[::1]:4318/", "http://a_b.test", "https://b\xfccher.example/v1",
        "http://127.0.0.1", "http://collector.default.svc.cluster.local.:4318",
    ],
)  # fmt: skip
def test_hosts_of_every_kind_are_endpoints(endpoint: str) -> None:
    assert OTLPExporter(endpoint).endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "localhost:4318", "/v1/traces", "http://", "https:///v1/traces", "ftp://localhost", "http://localhost:port",
        "http://localhost:99999999", "http://localhost:0", "http://a\nb/", f"http://{'a' * 64}.example", "http://[::1",
        "http://ho st/", "http://ho%20st/", "http://ho\\st/", "http://h,i/",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_not_an_http_url_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        OTLPExporter(endpoint)


@pytest.mark.parametrize("value", [f"Bearer {SECRET}\n", f"{SECRET}\r\nx: y", f" {SECRET}", f"{SECRET} ", f"{SECRET}\0",
                                   f"{SECRET}\u20ac", f"{SECRET}\x7f", f"{SECRET}\ud800", f"{SECRET}\x0b"])  # fmt: skip
def test_a_header_value_that_cannot_be_sent_is_refused_by_the_headers_name(value: str) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        OTLPExporter(ENDPOINT, headers={"authorization": value})
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"headers": {"a b": "c"}}, ValueError, "(not shown) is not valid; use"),
        ({"headers": {f"{SECRET} b": "c"}}, ValueError, "(not shown) is not valid; use"),
        ({"headers": {f"{SECRET}\n": "c"}}, ValueError, "(not shown) is not valid; use"),
        ({"headers": {f"Bearer {SECRET}": "="}}, ValueError, "(not shown) is not valid; use"),
        ({"headers": {f"Authorization: Basic {SECRET}": "="}}, ValueError, "header 'Authorization' has a colon after"),
        ({"headers": f"Authorization: {SECRET}"}, TypeError, "headers is of type str"),
        ({"headers": [("Authorization", SECRET)]}, TypeError, "headers is of type list"),
        ({"headers": {"": "c"}}, ValueError, "(not shown) is not valid; use"),
        ({"headers": {"Content-Type": "c"}}, ValueError, "set by the exporter itself"),
        ({"headers": {"Host": "c"}}, ValueError, "set by the exporter itself"),
        ({"headers": {"a": 1}}, TypeError, "header 'a'"),
        ({"headers": {b"a": "b"}}, TypeError, "bytes"),
        ({"location_header": "a\n"}, ValueError, "location_header"),
        ({"location_header": "Content-Encoding"}, ValueError, "set by the exporter itself"),
        ({"location_header": "X-Tenant", "headers": {"x-tenant": "a"}}, ValueError, "also among headers"),
        ({"location_header": "User-Agent"}, ValueError, "also among headers"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": -1.0}, ValueError, "timeout is -1.0"),
        ({"timeout": math.nan}, ValueError, "timeout is nan"),
        ({"timeout": 10**400}, ValueError, "it must be above 0 and at most 2e+308 seconds"),
        ({"timeout": -(10**400)}, ValueError, "it must be above 0"),
        ({"timeout": "10"}, TypeError, "timeout is '10'"),
        ({"timeout": True}, TypeError, "timeout is True"),
        ({"compression": "br"}, ValueError, "compression is 'br'"),
        ({"max_request_bytes": 0}, ValueError, "max_request_bytes is 0"),
        ({"max_response_bytes": 1.5}, TypeError, "max_response_bytes is 1.5"),
        ({"auth": ("user", SECRET)}, TypeError, "client="),
        ({"client": 5}, TypeError, "client is of type int; it must be an httpx.AsyncClient"),
        ({"client": httpx.Client()}, TypeError, "Client; it must be an httpx.AsyncClient or an httpx2"),
        ({"client": httpx.AsyncClient(params={"key": SECRET})}, ValueError, "client has params= (not shown)"),
        ({"transport": httpx.HTTPTransport()}, TypeError, "it must be an httpx.AsyncBaseTransport, such as"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        OTLPExporter(ENDPOINT, **options)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_an_endpoint_is_a_string() -> None:
    with pytest.raises(TypeError, match="endpoint"):
        OTLPExporter(httpx.URL(ENDPOINT))  # type: ignore[arg-type]  # on purpose


def test_an_exporter_is_created_outside_of_trio_and_shows_no_secret() -> None:
    exporter = OTLPExporter("http://localhost:4318/v1/traces", headers={"authorization": SECRET}, auth=lambda _: {})
    assert repr(exporter) == "<OTLPExporter for http://localhost:4318/v1/traces>"
    assert exporter.endpoint == "http://localhost:4318/v1/traces"


# The location.


@pytest.mark.parametrize(
    "location", ["", " a", "a ", "a\r\nb", "a\nb", "a\0b", "a\tb", "caf\xe9", "\u8868", "a\x7f", "\n", "x" * 200 + "\n"]
)
async def test_a_location_that_no_header_can_carry_is_invalid(location: str) -> None:
    exporter = OTLPExporter(ENDPOINT, location_header="X-Scope-OrgID")
    with pytest.raises(InvalidLocationError) as caught:
        exporter.check_location(location)
    assert repr(location[:100])[:-1] in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidLocationError):
        await exporter.export(batch_of(1, location))
    await exporter.aclose()


@pytest.mark.parametrize("location", ["a", "main.agents.spans", "a b", "42", "~!", "x" * 5000])
async def test_printable_ascii_is_a_location(location: str) -> None:
    exporter = OTLPExporter(ENDPOINT, location_header="X-Scope-OrgID")
    exporter.check_location(location)
    await exporter.aclose()


async def test_without_a_location_header_every_location_is_valid() -> None:
    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, batch_of(1, "\u8868\n")) == Delivered()


# The client, and closing.


async def test_closing_closes_its_connections_and_exporting_then_raises() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        await exporter.aclose()
        await exporter.aclose()
        await no_connections_left(receiver)
        with pytest.raises(trio.ClosedResourceError):
            await exporter.export(batch_of())


async def test_closing_while_cancelled_still_closes() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        await exporter.export(batch_of())
        with trio.CancelScope() as scope:
            scope.cancel()
            await exporter.aclose()
        assert scope.cancelled_caught
        await no_connections_left(receiver)


async def test_a_client_that_was_given_is_not_closed_and_keeps_its_settings() -> None:
    async with OTLPReceiver() as receiver, httpx.AsyncClient(headers={"x-own": "1"}, cookies={"c": "d"}) as client:
        assert await export_once(receiver, client=client) == Delivered()
        assert not client.is_closed
        assert receiver.requests[0].header("x-own") == "1"
        assert receiver.requests[0].header("cookie") == "c=d"


async def test_a_client_that_was_closed_is_reported_as_closed() -> None:
    client = httpx.AsyncClient()
    await client.aclose()
    exporter = OTLPExporter(ENDPOINT, client=client)
    with pytest.raises(trio.ClosedResourceError, match="given"):
        await exporter.export(batch_of())


async def test_a_client_and_a_transport_are_mutually_exclusive() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ValueError, match="mutually exclusive"):
            OTLPExporter(ENDPOINT, client=client, transport=httpx.AsyncHTTPTransport())


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver(path=None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "other.test")
        exporter = OTLPExporter("http://collector.test/v1/traces")
        assert await exporter.export(batch_of()) == Delivered()
        assert proxy.requests[0].target == "http://collector.test/v1/traces"
        assert proxy.requests[0].header("proxy-authorization") is not None
        await exporter.aclose()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTP_PROXY", f"http://user:{SECRET}#x@localhost", "are percent-encoded"),
        ("HTTPS_PROXY", f"http://user:{SECRET}/x@localhost", "are percent-encoded"),
        ("ALL_PROXY", f"ftp://{SECRET}@localhost", "http://, https:// or socks5://"),
    ],
)
def test_an_unusable_proxy_is_reported_without_showing_it(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        SpanBatcher()
    assert str(caught.value).startswith(f"a proxy variable ({variable}; not shown) cannot be used: ")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver(answers=[Answer(407)], path=None) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        exporter = OTLPExporter("https://collector.test/v1/traces")
        result = await exporter.export(batch_of())
        assert isinstance(result, TryLater)
        assert result.reason.startswith(f"the proxy 127.0.0.1:{proxy.port} does not connect: 407")
        assert not result.ambiguous
        await exporter.aclose()


@pytest.mark.parametrize("given", ["client", "transport"])
def test_a_unix_domain_socket_is_refused_with_a_client_or_transport_which_connects_itself(given: str) -> None:
    own: dict[str, Any] = {
        "client": httpx.AsyncClient(),
        "transport": httpx.MockTransport(lambda _: httpx.Response(200)),
    }
    with pytest.raises(ValueError, match="uds is given with a client or transport"):
        OTLPExporter("http://collector.test/v1/traces", uds="/run/collector.sock", **{given: own[given]})
