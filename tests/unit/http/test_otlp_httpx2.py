"""Clients and transports of httpx2 are accepted like those of httpx, and other objects are refused."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
import trio

from tests.support.batchers import make_spans
from tests.support.exporters import ENDPOINT, SECRET, batch_of, no_connections_left, stored
from tests.support.paths import PROJECT
from tests.support.processes import untraced_environment
from tests.support.receivers import nothing_leaks
from tests.support.wire_server import Tls
from trio_spanbatch import Delivered, ExportResult, OTLPExporter, Refused, SpanBatcher, TryLater
from trio_spanbatch.destinations import mlflow, unity_catalog
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, ReceivedRequest, Reset, partial_success

# Given by the user: a client, or a transport for the exporter's own client.
Bring = Callable[..., contextlib.AbstractAsyncContextManager[dict[str, Any]]]


@pytest.fixture(params=[httpx, httpx2], ids=lambda package: package.__name__)
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["client", "transport"])
def bring(request: pytest.FixtureRequest, package: Any) -> Bring:
    @contextlib.asynccontextmanager
    async def client(verify: Any = False) -> AsyncIterator[dict[str, Any]]:
        async with package.AsyncClient(verify=verify, trust_env=False) as made:
            yield {"client": made}

    @contextlib.asynccontextmanager
    async def transport(verify: Any = False) -> AsyncIterator[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        yield {"transport": package.AsyncHTTPTransport(verify=verify, trust_env=False)}

    return {"client": client, "transport": transport}[request.param]


@contextlib.asynccontextmanager
async def exporting(url: str, options: dict[str, Any], **more: Any) -> AsyncIterator[OTLPExporter]:
    exporter = OTLPExporter(url, **options, **more)
    try:
        yield exporter
    finally:
        await exporter.aclose()


async def result_of(url: str, bring: Bring, verify: Any = False, **more: Any) -> ExportResult:
    async with bring(verify) as options, exporting(url, options, **more) as exporter:
        return await exporter.export(batch_of())


# Exchanges.


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_batches_are_sent_over_one_connection_as_with_httpx(bring: Bring, compression: str | None) -> None:
    with nothing_leaks():
        async with (
            OTLPReceiver(answers=[None, partial_success(2, "too old"), None]) as receiver,
            bring() as options,
            exporting(receiver.url, options, compression=compression, headers={"x-own": "1"}) as exporter,
        ):
            assert await exporter.export(batch_of(3)) == Delivered()
            assert await exporter.export(batch_of(3)) == Delivered(2, "too old")
            # Several pieces.
            assert await exporter.export(batch_of(2000, name="x" * 1000)) == Delivered()
            assert len(stored(receiver)) == 3 + 1 + 2000
            assert receiver.connections == 1
            request = receiver.requests[0]
            assert request.header("content-type") == "application/x-protobuf"
            assert request.header("content-encoding") == compression
            assert str(request.header("user-agent")).startswith("trio-spanbatch/")
            assert request.header("transfer-encoding") is None


async def test_a_whole_batcher_delivers_and_retries(bring: Bring) -> None:
    async with OTLPReceiver(answers=[Answer(503, headers=[("retry-after", "0")]), Reset(), None]) as receiver:
        async with bring() as options, SpanBatcher(OTLPExporter(receiver.url, **options)) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            with trio.fail_after(60):
                await batcher.flush()
        statistics = batcher.statistics()
    assert (statistics.delivered, statistics.ambiguous) == (5, 5)


async def test_an_unreachable_server_is_not_ambiguous(bring: Bring) -> None:
    async with OTLPReceiver() as receiver:
        url, port = receiver.url, receiver.port
    result = await result_of(url, bring)
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert result.reason.startswith(f"cannot connect to 127.0.0.1:{port}: ")
    assert "refused" in result.reason.lower()


@pytest.mark.parametrize(
    "outcome",
    [
        Reset("before_body"), Reset("after_body"), Reset("mid_response"), Drip([]),
        Drip([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"]),
        Drip([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"]),
    ],
)  # fmt: skip
async def test_a_connection_that_breaks_is_ambiguous(outcome: Any, bring: Bring) -> None:
    with nothing_leaks():
        async with OTLPReceiver(answers=[outcome]) as receiver:
            result = await result_of(receiver.url, bring)
            assert isinstance(result, TryLater)
            assert result.ambiguous
            assert result.reason.startswith(f"the exchange with 127.0.0.1:{receiver.port} broke: ")


async def test_a_failure_whose_response_breaks_off_counts_by_its_status(bring: Bring) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\nno such table"
    async with OTLPReceiver(answers=[Drip([head])]) as receiver:
        assert await result_of(receiver.url, bring) == Refused("400 Bad Request: no such table", 400, isolate=True)


async def test_a_timeout_is_ambiguous_and_closes_the_connection(bring: Bring) -> None:
    async with OTLPReceiver(answers=[Hang()]) as receiver:
        result = await result_of(receiver.url, bring, timeout=0.2)
        assert isinstance(result, TryLater)
        # On a busy machine, even connecting may time out.
        assert result.ambiguous == result.reason.startswith("no complete answer")
        await no_connections_left(receiver)


async def test_a_cancelled_export_closes_its_connection(bring: Bring) -> None:
    async with OTLPReceiver(answers=[Hang()]) as receiver, bring() as options:
        async with exporting(receiver.url, options) as exporter, trio.open_nursery() as nursery:
            nursery.start_soon(exporter.export, batch_of())
            await receiver.wait_for_requests(1)
            nursery.cancel_scope.cancel()
        await no_connections_left(receiver)


async def test_a_response_that_is_too_large_is_not_read_to_its_end(bring: Bring) -> None:
    with nothing_leaks():
        async with OTLPReceiver(answers=[Answer(body=bytes(1000))]) as receiver:
            result = await result_of(receiver.url, bring, max_response_bytes=100)
            assert result == Refused("200: the response is larger than 100 bytes", 200)
            await no_connections_left(receiver)


async def test_a_redirect_is_not_followed_even_by_a_client_that_follows_them(package: Any) -> None:
    async with (
        OTLPReceiver(answers=[Answer(307, headers=[("location", "/elsewhere")])]) as receiver,
        package.AsyncClient(follow_redirects=True) as client,
        exporting(receiver.url, {"client": client}) as exporter,
    ):
        result = await exporter.export(batch_of())
        assert result == Refused("307 Temporary Redirect: the redirect to /elsewhere was not followed", 307)
        assert len(receiver.requests) == 1


async def test_cookies_are_not_kept_with_the_users_transport(package: Any) -> None:
    answers = [Answer(headers=[("Set-Cookie", "a=b")]), None]
    async with (
        OTLPReceiver(answers=answers) as receiver,
        exporting(receiver.url, {"transport": package.AsyncHTTPTransport()}) as exporter,
    ):
        for _ in range(2):
            assert await exporter.export(batch_of()) == Delivered()
        assert receiver.requests[1].header("cookie") is None


# TLS and proxies.


async def test_failures_of_tls_are_distinguished(bring: Bring) -> None:
    tls, other = Tls.make(), Tls.make()
    async with OTLPReceiver(ssl_context=tls.server) as receiver:
        assert await result_of(receiver.url, bring, tls.client) == Delivered()
        untrusted = await result_of(receiver.url, bring, other.client)
        assert isinstance(untrusted, TryLater)
        assert not untrusted.ambiguous
        assert "is not trusted: certificate verify failed" in untrusted.reason
        assert "the client or transport that the exporter was" in untrusted.reason
        plain = await result_of(receiver.url.replace("https://", "http://"), bring)
        assert isinstance(plain, TryLater)
        assert "if it speaks TLS, the endpoint begins with https://" in plain.reason
    async with OTLPReceiver() as receiver:
        no_tls = await result_of(receiver.url.replace("http://", "https://"), bring, tls.client)
        assert isinstance(no_tls, TryLater)
        assert not no_tls.ambiguous
        assert "does the endpoint need http:// instead of https://?" in no_tls.reason


async def test_a_proxy_that_refuses_is_named_and_its_credentials_are_not_shown(
    package: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        OTLPReceiver(answers=[Answer(407, body=SECRET.encode())], path=None) as proxy,
        package.AsyncClient(proxy=f"http://user:{SECRET}@127.0.0.1:{proxy.port}") as client,
        exporting("https://collector.test", {"client": client}) as exporter,
    ):
        result = await exporter.export(batch_of())
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert result.reason.startswith(f"the proxy 127.0.0.1:{proxy.port} does not connect: 407")
    assert SECRET not in str(result) + caplog.text


# Exceptions.

NOT_CONNECTED = ["ConnectError", "ConnectTimeout", "PoolTimeout"]
BROKEN = [
    "ReadError", "WriteError", "CloseError", "NetworkError", "ReadTimeout", "WriteTimeout", "TimeoutException",
    "RemoteProtocolError", "ProtocolError", "TransportError", "DecodingError", "TooManyRedirects", "RequestError",
]  # fmt: skip
IMPOSSIBLE = ["LocalProtocolError", "UnsupportedProtocol", "InvalidURL"]


def expected(name: str) -> ExportResult:
    if name == "PoolTimeout":
        return TryLater("cannot connect to localhost:4318: no ***")
    if name in NOT_CONNECTED:
        return TryLater("cannot connect to localhost:4318: no ***", endpoint=True)
    if name == "ProxyError":
        return TryLater("the proxy localhost:4318 does not connect: no ***", endpoint=True)
    if name in IMPOSSIBLE:
        return Refused(f"the request cannot be sent: {name}")
    return TryLater("the exchange with localhost:4318 broke: no ***", ambiguous=True)


@pytest.mark.parametrize("name", [*NOT_CONNECTED, "ProxyError", *IMPOSSIBLE, *BROKEN])
@pytest.mark.parametrize("as_client", [False, True])
async def test_each_exception_of_either_package_is_a_result(name: str, as_client: bool, package: Any) -> None:
    def fail(_request: Any) -> Any:
        raise getattr(package, name)(f"no {SECRET}")

    transport = package.MockTransport(fail)
    options = {"client": package.AsyncClient(transport=transport)} if as_client else {"transport": transport}
    async with exporting(ENDPOINT, options, headers={"authorization": SECRET}) as exporter:
        assert await exporter.export(batch_of()) == expected(name)


async def test_an_auth_function_may_use_either_package(package: Any) -> None:
    def auth(_location: str) -> dict[str, str]:
        raise package.ReadTimeout(SECRET)

    async with exporting(ENDPOINT, {}, auth=auth) as exporter:
        assert await exporter.export(batch_of()) == TryLater("no credentials: ReadTimeout while they were fetched")


# Clients and transports of all kinds.


async def test_a_client_that_was_given_is_not_closed_and_keeps_its_settings(package: Any) -> None:
    class OwnClient(package.AsyncClient):  # type: ignore[misc]  # of which package, the fixture knows
        pass

    async with OTLPReceiver() as receiver, OwnClient(headers={"x-own": "1"}, cookies={"c": "d"}) as client:
        async with exporting(receiver.url, {"client": client}) as exporter:
            assert await exporter.export(batch_of()) == Delivered()
        assert not client.is_closed
        assert receiver.requests[0].header("x-own") == "1"
        assert receiver.requests[0].header("cookie") == "c=d"


async def test_a_client_that_was_closed_is_reported_as_closed(package: Any) -> None:
    client = package.AsyncClient()
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError, match="given"):
        await OTLPExporter(ENDPOINT, client=client).export(batch_of())


async def test_a_transport_is_closed_with_the_exporter(package: Any) -> None:
    closed: list[bool] = []

    class OwnTransport(package.AsyncBaseTransport):  # type: ignore[misc]  # as above
        async def handle_async_request(self, request: Any) -> Any:
            return package.Response(200, content=partial_success(1, "too old").body, request=request)

        async def aclose(self) -> None:
            closed.append(True)

    async with exporting(ENDPOINT, {"transport": OwnTransport()}) as exporter:
        assert await exporter.export(batch_of(2)) == Delivered(1, "too old")
    assert closed == [True]


async def test_batches_can_be_sent_to_an_asgi_application(package: Any) -> None:
    bodies: list[bytes] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            bodies.append(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    batch = batch_of(3)
    async with exporting(ENDPOINT, {"transport": package.ASGITransport(app)}) as exporter:
        assert await exporter.export(batch) == Delivered()
    assert b"".join(bodies) == batch.to_request()


def test_type_checkers_know_which_clients_and_transports_are_accepted() -> None:
    # mypy checks this file too, and reports an unneeded "ignore".
    OTLPExporter(ENDPOINT, client=httpx.AsyncClient())
    OTLPExporter(ENDPOINT, client=httpx2.AsyncClient())
    OTLPExporter(ENDPOINT, transport=httpx.AsyncHTTPTransport())
    OTLPExporter(ENDPOINT, transport=httpx2.MockTransport(lambda _: httpx2.Response(200)))
    with pytest.raises(TypeError):
        OTLPExporter(ENDPOINT, client=httpx.Client())  # type: ignore[arg-type]  # a sync one
    with pytest.raises(TypeError):
        OTLPExporter(ENDPOINT, client=httpx2.Client())  # type: ignore[arg-type]  # a sync one
    with pytest.raises(TypeError):
        OTLPExporter(ENDPOINT, transport=httpx.HTTPTransport())  # type: ignore[arg-type]  # a sync one
    with pytest.raises(TypeError):
        OTLPExporter(ENDPOINT, transport=httpx2.HTTPTransport())  # type: ignore[arg-type]  # a sync one


class Session:
    """A client of another package, such as requests or aiohttp."""

    def request(self) -> None:
        """Send a request."""


@pytest.mark.parametrize(
    "made", [lambda p: p.Client(), lambda p: p.AsyncHTTPTransport(), lambda _: Session(), lambda p: p]
)
def test_an_object_that_is_not_an_async_client_is_refused_naming_both_packages(
    made: Callable[[Any], Any], package: Any
) -> None:
    given = made(package)
    with pytest.raises(TypeError) as caught:
        OTLPExporter(ENDPOINT, client=given)
    kind = "module" if isinstance(given, ModuleType) else f"{type(given).__module__}.{type(given).__name__}"
    assert str(caught.value) == (f"client is of type {kind}; it must be an httpx.AsyncClient or an httpx2.AsyncClient")


@pytest.mark.parametrize("made", [lambda p: p.HTTPTransport(), lambda p: p.AsyncClient(), lambda _: Session()])
def test_an_object_that_is_not_an_async_transport_is_refused_naming_both_packages(
    made: Callable[[Any], Any], package: Any
) -> None:
    with pytest.raises(
        TypeError, match=r"transport is of type .*\bhttpx\.AsyncBaseTransport.* httpx2\.AsyncBaseTransport"
    ):
        OTLPExporter(ENDPOINT, transport=made(package))


def test_parameters_of_a_client_are_refused_and_not_shown(package: Any) -> None:
    with pytest.raises(ValueError, match=r"client has params= \(not shown\)") as caught:
        OTLPExporter(ENDPOINT, client=package.AsyncClient(params={"key": SECRET}))
    assert SECRET not in str(caught.value)


# Destinations.


async def test_names_of_experiments_are_looked_up_with_either_package(bring: Bring) -> None:
    def answer(request: ReceivedRequest) -> Answer | Reset | None:
        if request.method == "POST":
            return None
        questions.append(request.target)
        document = b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}'
        return Reset() if len(questions) == 1 else Answer(headers=[("content-type", "application/json")], body=document)

    questions: list[str] = []
    async with OTLPReceiver(answers=answer, path=None) as receiver, bring() as options:
        exporter = mlflow(f"http://127.0.0.1:{receiver.port}", experiments="name", environ={}, **options)
        broken = await exporter.export(batch_of(1, "agents"))
        assert isinstance(broken, TryLater)
        assert not broken.ambiguous
        assert await exporter.export(batch_of(1, "agents")) == Delivered()
        assert receiver.requests[-1].header("x-mlflow-experiment-id") == "7"
        await exporter.aclose()


async def test_unity_catalog_accepts_either_package(
    bring: Bring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("DATABRICKS_HOST", "https://workspace.test")
    monkeypatch.setenv("DATABRICKS_TOKEN", SECRET)
    async with bring() as options:
        exporter = unity_catalog(**options)
        await exporter.aclose()


# Neither is imported unnecessarily.


def run(program: str) -> str:
    environ = {name: value for name, value in untraced_environment().items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    return done.stdout


EXPORT = """
import sys, trio
from trio_spanbatch import OTLPExporter, Span, SpanBatcher, SpanContext
from trio_spanbatch.testing import OTLPReceiver, Reset

async def main():
    async with OTLPReceiver(listen=False, answers=[Reset(), None]) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        async with SpanBatcher(exporter) as batcher:
            batcher.add_span_nowait("a", Span("x", SpanContext(1, 1), start_time=1, end_time=2))
    print(batcher.statistics().delivered, batcher.statistics().ambiguous)
"""


def test_httpx2_is_not_imported_and_need_not_be_installed() -> None:
    assert run(EXPORT + "trio.run(main); print('httpx2' in sys.modules)") == "1 1\nFalse\n"
    forbidden = "import sys; sys.modules['httpx2'] = sys.modules['httpcore2'] = None\n"
    assert run(forbidden + EXPORT + "trio.run(main)") == "1 1\n"


def test_a_program_may_install_httpx2_as_httpx() -> None:
    assert run("import httpx2; httpx2.alias_httpx()\n" + EXPORT + "trio.run(main)") == "1 1\n"


async def test_an_unrelated_module_named_httpx2_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", ModuleType("httpx2"))
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
    with pytest.raises(TypeError, match="httpx2"):
        OTLPExporter(ENDPOINT, client=Session())  # type: ignore[arg-type]  # on purpose
