"""`SpanBatcher()` without arguments follows the environment, with real servers and a real proxy."""

from __future__ import annotations

import base64
import logging
import ssl
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.support.batchers import make_span, make_spans
from tests.support.deliveries import clear_environment
from tests.support.proxy import running_proxy
from tests.support.receivers import wait_until
from trio_spanbatch import OTLPExporter, Resource, Span, SpanBatcher, SpanContext
from trio_spanbatch.testing import Answer, Hang, OTLPReceiver

PREFIX = "OTEL_EXPORTER_OTLP_"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
SECRET = "dapi-0123456789abcdef"


class Environment:
    """Sets variables for one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clear_environment(monkeypatch)
        self._monkeypatch = monkeypatch

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def send_to(self, receiver: OTLPReceiver, **variables: str) -> None:
        self.set(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url.removesuffix("/v1/traces"), **variables)


@pytest.fixture(autouse=True)
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(monkeypatch)


async def send(count: int = 3) -> SpanBatcher:
    """Send spans with a batcher without arguments."""
    async with SpanBatcher() as batcher:
        batcher.add_spans_nowait("a", make_spans(count))
    return batcher


async def until_quiet() -> None:
    for _ in range(100):
        await trio.lowlevel.checkpoint()


# The server and the requests.


def test_without_variables_a_batcher_sends_to_localhost_4318() -> None:
    exporter = OTLPExporter.from_env()
    assert isinstance(exporter, OTLPExporter)
    assert exporter.endpoint == "http://localhost:4318/v1/traces"


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_base_endpoint_gets_the_path_for_traces(slash: str, env: Environment) -> None:
    async with OTLPReceiver(path="/otlp/v1/traces") as receiver:
        env.set(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.port}/otlp{slash}")
        assert (await send()).statistics().delivered == 3


@pytest.mark.parametrize(("path", "target"), [("", "/"), ("/", "/"), ("/v2/spans", "/v2/spans")])
async def test_the_endpoint_for_traces_is_used_unchanged(path: str, target: str, env: Environment) -> None:
    async with OTLPReceiver(path=None) as receiver:
        env.set(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{receiver.port}{path}",
            OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.test",
        )
        assert (await send()).statistics().delivered == 3
        assert receiver.requests[0].target == target


async def test_headers_are_sent_and_those_for_traces_take_precedence(env: Environment) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20a%3Db,x-team=green")
        await send()
        env.set(OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-team=blue")
        await send()
        first, second = receiver.requests
        assert (first.header("authorization"), first.header("x-team")) == ("Bearer a=b", "green")
        assert (second.header("authorization"), second.header("x-team")) == (None, "blue")


@pytest.mark.parametrize("prefix", [PREFIX, TRACES])
async def test_compression_is_gzip_if_the_environment_says_so(prefix: str, env: Environment) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver)
        await send()
        env.set(**{f"{prefix}COMPRESSION": "gzip"})
        assert (await send()).statistics().delivered == 3
        plain, compressed = receiver.requests
        assert (plain.header("content-encoding"), compressed.header("content-encoding")) == (None, "gzip")


@pytest.mark.parametrize("variable", [f"{PREFIX}TIMEOUT", f"{TRACES}TIMEOUT", "OTEL_BSP_EXPORT_TIMEOUT"])
async def test_timeouts_are_in_milliseconds(variable: str, env: Environment, mock_clock: MockClock) -> None:
    async with OTLPReceiver(answers=[Hang()]) as receiver:
        env.send_to(receiver, **{variable: "2500"})
        async with SpanBatcher() as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batcher.flush)
                await receiver.wait_for_requests(1)
                mock_clock.jump(2.4)
                await until_quiet()
                assert batcher.statistics().ambiguous == 0
                mock_clock.jump(0.2)
                await wait_until(lambda: batcher.statistics().ambiguous == 3)
                mock_clock.jump(1)
                await wait_until(lambda: batcher.statistics().delivered == 3)


@pytest.mark.parametrize("variables", [{}, {"OTEL_BSP_EXPORT_TIMEOUT": "0"}], ids=["the exporter's", "both"])
async def test_a_timeout_of_0_means_no_limit(
    variables: dict[str, str], env: Environment, mock_clock: MockClock
) -> None:
    async with OTLPReceiver(answers=[Hang()]) as receiver:
        env.send_to(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="0", **variables)
        async with SpanBatcher(shutdown_timeout=0) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            with trio.move_on_after(100_000):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(batcher.flush)
                    await receiver.wait_for_requests(1)
                    mock_clock.jump(99_999)
                    await until_quiet()
                    assert batcher.statistics().in_flight == 3
                    mock_clock.jump(2)
    assert batcher.statistics().undelivered == 3


# Batches.


async def test_a_batch_is_due_after_the_schedule_delay(env: Environment, mock_clock: MockClock) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, OTEL_BSP_SCHEDULE_DELAY="250")
        async with SpanBatcher() as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            await until_quiet()
            mock_clock.jump(0.249)
            await until_quiet()
            assert batcher.statistics().queued == 3
            mock_clock.jump(0.002)
            await wait_until(lambda: batcher.statistics().delivered == 3)


async def test_a_batch_and_the_queue_are_as_large_as_the_environment_says(
    env: Environment, mock_clock: MockClock
) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="3", OTEL_BSP_MAX_QUEUE_SIZE="4")
        async with SpanBatcher() as batcher:
            batcher.add_spans_nowait("a", make_spans(4))
            with pytest.raises(trio.WouldBlock):
                batcher.add_span_nowait("a", make_span())
            # No time passes: the batch is full.
            await wait_until(lambda: batcher.statistics().delivered == 3)
            assert batcher.statistics().queued == 1
        assert [len(request.spans) for request in receiver.requests] == [3, 1]


# Resources, and disabling.


async def test_spans_without_a_resource_get_that_of_the_environment(env: Environment) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, OTEL_SERVICE_NAME="agents", OTEL_RESOURCE_ATTRIBUTES="service.name=other,host.name=b%2Cc")
        async with SpanBatcher() as batcher:
            batcher.add_span_nowait("a", make_span())
            resource = Resource({"service.name": "its own"})
            context = SpanContext(trace_id=1, span_id=2**40)
            batcher.add_span_nowait("a", Span("own", context, start_time=1, end_time=2, resource=resource))
        message = receiver.requests[0].message
        assert message is not None
        found = [
            {attribute.key: attribute.value.string_value for attribute in group.resource.attributes}
            for group in message.resource_spans
        ]
        assert found == [{"service.name": "agents", "host.name": "b,c"}, {"service.name": "its own"}]


async def test_a_disabled_sdk_accepts_every_span_rejects_it_with_that_reason_and_sends_nothing(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, OTEL_SDK_DISABLED="true")
        batcher = await send()
        assert (receiver.requests, receiver.connections) == ([], 0)
    statistics = batcher.statistics()
    assert (statistics.accepted, statistics.rejected) == (3, 3)
    assert "3 of 3 spans were rejected (OTEL_SDK_DISABLED is true: nothing is sent: 3)" in caplog.text


@pytest.mark.parametrize("variable", [f"{PREFIX}PROTOCOL", f"{TRACES}PROTOCOL"])
@pytest.mark.parametrize("protocol", ["grpc", "http/json", "nonsense"])
async def test_a_protocol_that_is_not_spoken_is_warned_about_once_and_http_protobuf_is_sent(
    variable: str, protocol: str, env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, **{variable: protocol})
        assert (await send()).statistics().delivered == 3
        SpanBatcher()
        assert {request.header("content-type") for request in receiver.requests} == {"application/x-protobuf"}
    (record,) = caplog.records
    assert (record.levelname, record.getMessage().partition(",")[0]) == ("WARNING", f"{variable} is '{protocol}'")


async def test_a_query_of_an_endpoint_is_not_sent(env: Environment, caplog: pytest.LogCaptureFixture) -> None:
    async with OTLPReceiver() as receiver:
        env.send_to(receiver)
        env.set(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.port}/?key={SECRET}#part")
        assert (await send()).statistics().delivered == 3
        assert {request.target for request in receiver.requests} == {"/v1/traces"}
    assert "OTEL_EXPORTER_OTLP_ENDPOINT has a query or fragment (not shown)" in caplog.text
    assert SECRET not in caplog.text


async def test_an_invalid_value_is_ignored_with_one_warning_and_an_empty_value_counts_as_unset(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    nonsense = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
        "OTEL_BSP_SCHEDULE_DELAY": "-1",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0",
        "OTEL_BSP_MAX_QUEUE_SIZE": "many",
        "OTEL_BSP_EXPORT_TIMEOUT": "1.5",
        "OTEL_SDK_DISABLED": "perhaps",
        "OTEL_RESOURCE_ATTRIBUTES": "nonsense",
    }
    empty = dict.fromkeys(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{PREFIX}HEADERS", f"{PREFIX}CERTIFICATE"), "")
    async with OTLPReceiver() as receiver:
        env.send_to(receiver, **nonsense, **empty)
        assert (await send()).statistics().delivered == 3
    # Later batchers do not warn again.
    SpanBatcher()
    for variable in nonsense:
        assert len([record for record in caplog.records if record.getMessage().startswith(variable)]) == 1, variable
    assert len(caplog.records) == len(nonsense)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    """A server's context that asks for a client certificate; the files for the client are in ``tmp_path``."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    client = authority.issue_cert("agent@example.test")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client-key.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def files(directory: Path, prefix: str, ca: str = "ca.pem") -> dict[str, str]:
    return {
        f"{prefix}CERTIFICATE": str(directory / ca),
        f"{prefix}CLIENT_CERTIFICATE": str(directory / "client.pem"),
        f"{prefix}CLIENT_KEY": str(directory / "client-key.pem"),
    }


@pytest.mark.parametrize("prefix", [PREFIX, TRACES])
async def test_ca_client_certificate_and_key_come_from_the_environment(
    prefix: str, env: Environment, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async with OTLPReceiver(ssl_context=tls) as receiver:
        env.send_to(receiver, **files(tmp_path, prefix))
        assert (await send()).statistics().delivered == 3


async def test_a_wrong_ca_is_a_clear_failure_that_is_logged_and_hands_the_spans_back(
    env: Environment, tls: ssl.SSLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with OTLPReceiver(ssl_context=tls) as receiver:
        env.send_to(receiver, **files(tmp_path, PREFIX, ca="other.pem"))
        async with SpanBatcher(shutdown_timeout=0) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batcher.flush)
                await wait_until(lambda: "exports to 'a' fail" in caplog.text)
                nursery.cancel_scope.cancel()
        assert receiver.requests == []
    statistics = batcher.statistics()
    assert (statistics.undelivered, statistics.ambiguous) == (3, 0)
    assert "certificate verify failed" in caplog.text
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in caplog.text


@pytest.mark.parametrize("shows_certificate", [False, True])
async def test_without_a_certificate_setting_it_trusts_the_cas_that_httpx_trusts(
    shows_certificate: bool, env: Environment, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    env.set(SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    if shows_certificate:
        env.set(OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(tmp_path / "client.pem"))
        env.set(OTEL_EXPORTER_OTLP_CLIENT_KEY=str(tmp_path / "client-key.pem"))
    else:
        tls.verify_mode = ssl.CERT_NONE
    async with OTLPReceiver(ssl_context=tls) as receiver:
        env.send_to(receiver)
        assert (await send()).statistics().delivered == 3


# Proxies.


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_http_proxy_and_all_proxy_are_honoured(variable: str, env: Environment) -> None:
    async with OTLPReceiver() as receiver, running_proxy() as proxy:
        env.send_to(receiver, **{variable: proxy.url})
        assert (await send()).statistics().delivered == 3
        assert proxy.asked == [f"POST {receiver.url} HTTP/1.1"]
        assert receiver.requests[0].target == "/v1/traces"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_https_proxy_is_honoured_with_an_encrypted_tunnel(
    variable: str, env: Environment, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async with OTLPReceiver(ssl_context=tls) as receiver, running_proxy() as proxy:
        env.send_to(receiver, **files(tmp_path, PREFIX), **{variable: proxy.url})
        assert (await send()).statistics().delivered == 3
        assert proxy.asked == [f"CONNECT 127.0.0.1:{receiver.port} HTTP/1.1"]


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("hosts", ["127.0.0.1", "collector.test,127.0.0.1", "*"])
async def test_no_proxy_is_honoured(variable: str, hosts: str, env: Environment) -> None:
    async with OTLPReceiver() as receiver, running_proxy() as proxy:
        env.send_to(receiver, HTTP_PROXY=proxy.url, ALL_PROXY=proxy.url, **{variable: hosts})
        assert (await send()).statistics().delivered == 3
        assert proxy.asked == []


async def test_a_proxy_for_https_is_not_used_for_http(env: Environment) -> None:
    async with OTLPReceiver() as receiver, running_proxy() as proxy:
        env.send_to(receiver, HTTPS_PROXY=proxy.url)
        assert (await send()).statistics().delivered == 3
        assert proxy.asked == []


async def test_credentials_of_a_proxy_are_sent_to_it_and_shown_nowhere(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with OTLPReceiver(path=None) as proxy:
        env.set(
            OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.test",
            HTTP_PROXY=f"http://user:{SECRET}@127.0.0.1:{proxy.port}",
        )
        async with SpanBatcher() as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert (proxy.requests[0].header("proxy-authorization") or "").startswith("Basic ")
    assert batcher.statistics().delivered == 3
    assert SECRET not in caplog.text
    assert SECRET not in repr((batcher, batcher.statistics()))


# Secrets.


@pytest.mark.parametrize(
    "variables",
    [
        {f"{PREFIX}ENDPOINT": f"http://user:{SECRET}/@collector.test"},
        {f"{TRACES}ENDPOINT": f"http://{SECRET}?@collector.test/v1/traces"},
        {f"{PREFIX}HEADERS": f"authorization=Bearer%20{SECRET}%0A"},
        {f"{TRACES}HEADERS": f"authorization=Bearer%20{SECRET}%0D%0Ax-admin%3A1"},
    ],
    ids=["userinfo", "user", "newline", "CR LF"],
)
def test_an_ambiguous_password_in_a_url_and_a_token_with_a_newline_are_refused_when_the_batcher_is_created(
    variables: dict[str, str], env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    env.set(**variables)
    with pytest.raises(ValueError, match=r"endpoint|authorization") as caught:
        SpanBatcher()
    for error in (caught.value, caught.value.__cause__, caught.value.__context__):
        assert SECRET not in repr(error)
    assert SECRET not in caplog.text


async def test_a_password_in_the_endpoint_is_sent_as_basic_authentication_and_never_shown(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"no spans of {SECRET} are taken".encode()
    async with OTLPReceiver(answers=[Answer(403, body=echo)]) as receiver:
        env.set(**{f"{PREFIX}ENDPOINT": f"http://user:{SECRET}@127.0.0.1:{receiver.port}"})
        batcher = await send()
    authorization = receiver.requests[0].header("authorization")
    assert authorization == f"Basic {base64.b64encode(f'user:{SECRET}'.encode()).decode()}"
    assert batcher.statistics().rejected == 3
    assert SECRET not in f"{caplog.text}{batcher!r}"
    assert authorization.partition(" ")[2] not in caplog.text
