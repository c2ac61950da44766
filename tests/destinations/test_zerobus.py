"""Zerobus over real HTTP: the real databricks-sdk, a workspace that issues tokens, and a service that accepts them."""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tests.destinations.databricks_support import (
    CLIENT_ID,
    CLIENT_SECRET,
    PERSONAL_TOKEN,
    TABLE,
    FakeWorkspace,
    as_service_principal,
    forget_databricks,
    json_answer,
    workspace_of,
)
from tests.destinations.zerobus_support import HEADER, HOST, OTHER_TABLE, Zerobus, setup_of, zerobus_for
from tests.support.batchers import make_spans
from tests.support.exporters import batch_of
from tests.support.proxy import running_proxy
from trio_spanbatch import Delivered, InvalidLocationError, OTLPExporter, Refused, RetryPolicy, SpanBatcher, TryLater
from trio_spanbatch.destinations import unity_catalog, zerobus
from trio_spanbatch.testing import Answer, partial_success


@pytest.fixture(autouse=True)
def a_service_principal_and_nothing_else_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_databricks(monkeypatch, tmp_path)
    monkeypatch.delenv("ZEROBUS_ENDPOINT", raising=False)
    as_service_principal(monkeypatch)


@asynccontextmanager
async def servers(**options: Any) -> AsyncIterator[tuple[FakeWorkspace, Zerobus]]:
    async with (
        workspace_of(**{"tables": {TABLE, OTHER_TABLE}, **options}) as workspace,
        zerobus_for(workspace) as service,
    ):
        yield workspace, service


@asynccontextmanager
async def exporter_of(workspace: FakeWorkspace, service: Zerobus | None, **options: Any) -> AsyncIterator[OTLPExporter]:
    endpoint = None if service is None else service.endpoint
    exporter = zerobus(workspace.host, endpoint=endpoint, timeout=60, **options)
    try:
        yield exporter
    finally:
        await exporter.aclose()


async def test_each_table_gets_its_spans_with_a_token_for_that_table_and_nothing_else() -> None:
    async with servers() as (workspace, service), exporter_of(workspace, service, compression="gzip") as exporter:
        for table in (TABLE, OTHER_TABLE, TABLE):
            assert await exporter.export(batch_of(2, table)) == Delivered()
    # The fake workspace issues a token only if the request follows the documentation.
    assert workspace.scopes == {"token-0123456789-1": TABLE, "token-0123456789-2": OTHER_TABLE}
    assert service.tokens == ["1", "2", "1"]
    assert (service.stored(TABLE), service.stored(OTHER_TABLE)) == (4, 2)
    for request in service.receiver.requests:
        assert request.target == "/v1/traces"
        assert request.header(HEADER) == request.location
        assert request.header("content-type") == "application/x-protobuf"
        assert request.header("content-encoding") == "gzip"
    assert workspace.trace_requests == []


async def test_a_batcher_delivers_to_many_tables_through_zerobus() -> None:
    tables = {f"main.agents.spans_{number}" for number in range(20)}
    async with servers(tables=tables) as (workspace, service):
        exporter = zerobus(workspace.host, endpoint=service.endpoint, timeout=60)
        async with SpanBatcher(exporter, shutdown_timeout=600) as batcher:
            for table in sorted(tables):
                await batcher.add_spans(table, make_spans(5))
    assert batcher.statistics().delivered == 100
    assert sorted(workspace.scopes.values()) == sorted(tables)
    assert {table: len(spans) for table, spans in service.receiver.stored.items()} == dict.fromkeys(tables, 5)


@pytest.mark.parametrize("given", ["argument", "variable", "whole URL"])
async def test_an_endpoint_that_is_given_is_used_and_the_workspace_is_not_asked_for_one(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers() as (workspace, service):
        endpoint = {"argument": service.endpoint, "variable": None, "whole URL": service.receiver.url}[given]
        if given == "variable":
            monkeypatch.setenv("ZEROBUS_ENDPOINT", f"{service.endpoint}/")
        monkeypatch.setenv("DATABRICKS_HOST", workspace.host)
        exporter = zerobus(endpoint=endpoint, timeout=60)
        assert exporter.endpoint == service.receiver.url
        assert await exporter.export(batch_of(1, TABLE)) == Delivered()
        await exporter.aclose()
    assert workspace.summaries == 0
    assert len(workspace.token_requests) == 1


async def test_the_endpoint_is_found_through_the_workspace_and_reached_over_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    async with (
        workspace_of() as workspace,
        zerobus_for(workspace, ssl_context=context) as service,
        running_proxy() as proxy,
    ):
        # Nothing leaves this machine: the name resolves to it.
        proxy.ports[HOST] = service.receiver.port
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with SpanBatcher(zerobus(workspace.host, timeout=60), shutdown_timeout=600) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
            await batcher.add_spans(TABLE, make_spans(3))
    assert batcher.statistics().delivered == 6
    assert (service.stored(), workspace.summaries) == (6, 1)
    # One connection, which is kept.
    assert proxy.asked == [f"CONNECT {HOST}:443 HTTP/1.1"]
    # One token of the workspace for the lookup, and one for the table.
    assert [form.get("resource", "")[-21:] for form in workspace.token_requests] == ["", "zerobusDirectWriteApi"]


async def test_spans_that_zerobus_rejects_are_counted_and_not_sent_again() -> None:
    async with servers() as (workspace, service):
        service.answers = lambda request: partial_success(2, "a column is missing")
        async with SpanBatcher(zerobus(workspace.host, endpoint=service.endpoint, timeout=60)) as batcher:
            await batcher.add_spans(TABLE, make_spans(5))
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.rejected, statistics.requests) == (3, 2, 1)


async def test_429_is_repeated_after_the_time_that_zerobus_asks_for() -> None:
    busy = json_answer(429, {"message": "over quota"}, ("retry-after", "7"))
    async with servers() as (workspace, service), exporter_of(workspace, service) as exporter:
        service.answers = lambda request: busy
        assert await exporter.export(batch_of(1, TABLE)) == TryLater(
            "429 Too Many Requests: over quota", 7.0, status_code=429
        )


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
async def test_any_5xx_is_repeated_with_backoff_until_the_spans_are_delivered(status: int) -> None:
    async with servers() as (workspace, service):
        answers = iter([Answer(status), Answer(status), None])
        service.answers = lambda request: next(answers)
        exporter = zerobus(workspace.host, endpoint=service.endpoint, timeout=60)
        async with SpanBatcher(exporter, retry=RetryPolicy(initial=0.001)) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.retries, service.stored()) == (3, 2, 3)
    # OTLP's retryable codes mean that the request was not processed; with other codes, that is unknown.
    assert statistics.ambiguous == (0 if status in (502, 503, 504) else 3)


@pytest.mark.parametrize("sends_all", [True, False])
@pytest.mark.parametrize("status", [408, 429, 500, 501, 503, 599])
async def test_a_repetition_waits_for_the_time_that_zerobus_asks_for(
    status: int, sends_all: bool, autojump_clock: trio.testing.MockClock
) -> None:
    headers = [("retry-after", "77"), *([] if sends_all else [("content-length", "1000")])]
    async with setup_of() as setup:
        setup.zerobus.answers = lambda request: Answer(status, headers=headers)
        result = await setup.export(batch_of(2, TABLE))
        assert isinstance(result, TryLater)
        assert (result.after, result.status_code) == (77, status)


async def test_a_408_is_repeated() -> None:
    async with servers() as (workspace, service), exporter_of(workspace, service) as exporter:
        service.answers = lambda request: Answer(408)
        assert await exporter.export(batch_of(1, TABLE)) == TryLater("408 Request Timeout", status_code=408)


async def test_a_bad_table_name_is_refused_before_anything_is_accepted() -> None:
    async with servers() as (workspace, service):
        exporter = zerobus(workspace.host, endpoint=service.endpoint)
        async with SpanBatcher(exporter) as batcher:
            for name in ("agents.spans", "main.agents.`spans`", "main..spans", "main.agents.a b"):
                with pytest.raises(InvalidLocationError, match="is not a table of Unity Catalog"):
                    await batcher.add_spans(name, make_spans(1))
        with pytest.raises(InvalidLocationError, match="is not a table of Unity Catalog"):
            exporter.check_location("agents.spans")
    assert workspace.receiver.requests == service.receiver.requests == []


async def test_a_personal_access_token_is_refused_as_the_wrong_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_CLIENT_ID")
    monkeypatch.delenv("DATABRICKS_CLIENT_SECRET")
    monkeypatch.setenv("DATABRICKS_TOKEN", PERSONAL_TOKEN)
    async with servers() as (workspace, service):
        async with exporter_of(workspace, service) as exporter:
            given = await exporter.export(batch_of(1, TABLE))
        async with exporter_of(workspace, None) as exporter:
            found = await exporter.export(batch_of(1, TABLE))
    reason = (
        "Zerobus accepts only service principals, and databricks-sdk found pat: set DATABRICKS_CLIENT_ID and "
        "DATABRICKS_CLIENT_SECRET, or send to Unity Catalog without Zerobus"
    )
    assert given == Refused(f"no credentials: {reason}")
    assert found == Refused(f"no credentials: {reason}")
    assert (workspace.token_requests, service.receiver.requests) == ([], [])


@pytest.mark.parametrize("endpoint_is_given", [True, False])
async def test_without_credentials_the_error_names_the_variables_to_set(
    endpoint_is_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABRICKS_CLIENT_ID")
    monkeypatch.delenv("DATABRICKS_CLIENT_SECRET")
    async with (
        servers() as (workspace, service),
        exporter_of(workspace, service if endpoint_is_given else None) as exporter,
    ):
        assert await exporter.export(batch_of(1, TABLE)) == Refused(
            "no credentials: databricks-sdk found none: set DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
        )


@pytest.mark.parametrize("by", ["variable", "configuration"])
async def test_the_workspace_id_may_be_given_if_databricks_sdk_does_not_know_it(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from databricks.sdk.core import Config

    options: dict[str, Any] = {}
    async with servers(workspace_id="777", names_id=False) as (workspace, service):
        if by == "variable":
            monkeypatch.setenv("DATABRICKS_WORKSPACE_ID", "777")
        else:
            options["make_config"] = lambda: Config(host=workspace.host, workspace_id="777", retry_timeout_seconds=1)
        async with exporter_of(workspace, service, **options) as exporter:
            assert await exporter.export(batch_of(1, TABLE)) == Delivered()
    assert "/workspaces/777/" in workspace.token_requests[0]["resource"]


async def test_an_unknown_workspace_id_is_refused() -> None:
    async with servers(names_id=False) as (workspace, service), exporter_of(workspace, service) as exporter:
        assert await exporter.export(batch_of(1, TABLE)) == Refused(
            "no credentials: databricks-sdk does not know the workspace's id: set DATABRICKS_WORKSPACE_ID"
        )


async def test_a_profile_may_have_the_service_principal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from databricks.sdk.core import Config

    monkeypatch.delenv("DATABRICKS_CLIENT_ID")
    monkeypatch.delenv("DATABRICKS_CLIENT_SECRET")
    (tmp_path / "databrickscfg").write_text(
        f"[prod]\nclient_id = {CLIENT_ID}\nclient_secret = {CLIENT_SECRET}\nworkspace_id = 12345\n"
    )
    async with servers() as (workspace, service):
        make_config = lambda: Config(host=workspace.host, profile="prod")  # noqa: E731  # shorter than a def
        async with exporter_of(workspace, service, make_config=make_config) as exporter:
            assert await exporter.export(batch_of(1, TABLE)) == Delivered()


async def test_a_client_secret_that_was_replaced_is_read_again_when_the_old_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with servers() as (workspace, service), exporter_of(workspace, service) as exporter:
        assert await exporter.export(batch_of(1, TABLE)) == Delivered()
        workspace.secret = "dose-new-new-new-new"
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", workspace.secret)
        assert await exporter.export(batch_of(1, OTHER_TABLE)) == Delivered()


async def test_a_wrong_client_secret_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "wrong-wrong-wrong")
    async with servers() as (workspace, service), exporter_of(workspace, service) as exporter:
        assert await exporter.export(batch_of(1, TABLE)) == Refused(
            f"no credentials: the token endpoint of {workspace.host} answered 401 invalid_client: check "
            "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
        )


async def test_an_unknown_table_is_refused_with_what_to_do() -> None:
    async with servers(tables=set()) as (workspace, service), exporter_of(workspace, service) as exporter:
        result = await exporter.export(batch_of(1, TABLE))
    assert result == Refused(
        f"404 Not Found: NOT_FOUND: Table '{TABLE}' not found; create the table, or correct its name", 404
    )


@pytest.mark.parametrize("prefer", [False, True])
@pytest.mark.parametrize("debug_headers", [False, True])
async def test_no_secret_is_in_any_log_result_repr_or_exception(
    debug_headers: bool, prefer: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if debug_headers:
        monkeypatch.setenv("DATABRICKS_DEBUG_HEADERS", "true")
    caplog.set_level(logging.DEBUG)
    shown: list[object] = []
    async with servers() as (workspace, service), exporter_of(workspace, service) as exporter:
        if prefer:
            monkeypatch.setenv("ZEROBUS_ENDPOINT", service.endpoint)
            exporter = unity_catalog(workspace.host, prefer_zerobus=True, timeout=60)
        parts = exporter._zerobus  # type: ignore[attr-defined]  # of both kinds of exporter

        async def export_and_show(table: str = TABLE) -> None:
            shown.append(await exporter.export(batch_of(1, table)))
            shown.extend(
                [repr(exporter), repr(vars(exporter)), repr(vars(parts)), repr(vars(parts.tokens)), str(parts.tokens)]
            )
            try:
                await parts.tokens.headers(table)
            except Exception as error:
                cause: BaseException | None = error
                while cause is not None:
                    shown.extend([repr(cause), str(cause), repr(cause.args)])
                    cause = cause.__cause__ or cause.__context__

        await export_and_show()
        # Servers that echo what they receive.
        service.answers = lambda request: Answer(
            403, body=(request.header("authorization") or "").encode(), headers=[("x-echo", "Bearer")]
        )
        await export_and_show()
        service.revoked = set(workspace.scopes)
        await export_and_show()
        for answer in (
            json_answer(400, {"error": "invalid_client", "error_description": CLIENT_SECRET}),
            json_answer(403, {"error": CLIENT_SECRET, "message": CLIENT_SECRET}),
            json_answer(200, {"access_token": f"{CLIENT_SECRET}\n", "token_type": CLIENT_SECRET}),
            Answer(302, headers=[("location", f"https://evil.example/?{CLIENT_SECRET}")]),
            Answer(500, body=CLIENT_SECRET.encode()),
        ):
            workspace.token_answer = answer
            await export_and_show(OTHER_TABLE)
        if prefer:
            await exporter.aclose()
    text = caplog.text + " ".join(map(repr, shown))
    assert len(workspace.issued) >= 2
    for secret in (CLIENT_SECRET, *workspace.issued):
        assert secret not in text


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("https://user:s3cret@1.zerobus.r.cloud.databricks.com", "user name or password"),
        ("https://1.zerobus.r.cloud.databricks.com/v1/s3cret", "must be a host alone"),
        ("https://1.zerobus.r.cloud.databricks.com/?k=s3cret", "must be a host alone.*remove the rest"),
        ("https://1.zerobus.r.cloud.databricks.com#s3cret", "must be a host alone.*remove the rest"),
        ("http://1.zerobus.r.cloud.databricks.com", "must begin with https://, because tokens are sent there"),
        ("http://127.0.0.1.example.com", "must begin with https://"),
        ("ftp://1.zerobus.r.cloud.databricks.com", "must begin with http:// or https://"),
        ("", "has an invalid host|must begin with|is not a URL"),
        ("1.zerobus r", "has an invalid host|is not a URL"),
    ],
)
def test_an_invalid_endpoint_is_refused_without_showing_credentials(endpoint: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        zerobus("https://dbc-1.cloud.databricks.com", endpoint=endpoint)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("1.zerobus.us-west-2.cloud.databricks.com", "https://1.zerobus.us-west-2.cloud.databricks.com/v1/traces"),
        (" https://zerobus.example:8443/v1/traces/ ", "https://zerobus.example:8443/v1/traces"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/traces"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/traces"),
        ("http://localhost", "http://localhost/v1/traces"),
    ],
)
def test_an_endpoint_may_be_written_in_any_common_form(endpoint: str, url: str) -> None:
    assert zerobus("https://dbc-1.cloud.databricks.com", endpoint=endpoint).endpoint == url


@pytest.mark.parametrize(
    "value",
    [
        "http://1.zerobus.r.cloud.databricks.com",
        "https://1.zerobus.r.cloud.databricks.com/s3cret",
        "https://1.zerobus.r.cloud.databricks.com?s3cret",
        "https://user:s3cret@1.zerobus.r.cloud.databricks.com",
        "ftp://w",
        "1.zerobus r",
    ],
)
@pytest.mark.parametrize("make", [zerobus, functools.partial(unity_catalog, prefer_zerobus=True)])
def test_a_message_about_an_endpoint_in_a_variable_names_the_variable(
    make: Any, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROBUS_ENDPOINT", value)
    with pytest.raises(ValueError, match=r"^ZEROBUS_ENDPOINT ") as caught:
        make("https://w.cloud.databricks.com")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", ["https://w.com/s3cret", "https://user:s3cret@w.com", "ftp://w.com", "w w"])
@pytest.mark.parametrize("make", [zerobus, unity_catalog])
def test_a_message_about_a_workspace_names_the_argument_or_the_variable(
    make: Any, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", value)
    for name, host in (("DATABRICKS_HOST", None), ("host", value)):
        with pytest.raises(ValueError, match=rf"^{name} ") as caught:
            make(host)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("make", [zerobus, functools.partial(unity_catalog, prefer_zerobus=True)])
def test_a_header_that_names_the_table_is_refused_before_the_endpoint_is_known(make: Any) -> None:
    with pytest.raises(ValueError, match="'x-databricks-zerobus-table-name' is also among headers"):
        make("https://w.cloud.databricks.com", headers={"X-Databricks-Zerobus-Table-Name": "a.b.c"})


def test_arguments_of_the_wrong_type_are_named() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="endpoint is of type int"):
        zerobus("https://w.cloud.databricks.com", endpoint=wrong)
    with pytest.raises(TypeError, match="host is of type int"):
        zerobus(wrong)


def test_headers_that_authenticate_are_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="databricks-sdk authenticates") as caught:
        zerobus("https://w.cloud.databricks.com", headers={"authorization": "Bearer s3cret"})
    assert "s3cret" not in str(caught.value)


def test_without_a_workspace_the_error_says_how_to_set_it() -> None:
    with pytest.raises(ValueError, match="there is no workspace: give host="):
        zerobus(endpoint="https://1.zerobus.us-west-2.cloud.databricks.com")


async def test_prefer_zerobus_sends_through_zerobus_and_then_through_the_workspace_over_real_http(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with servers() as (workspace, service):
        monkeypatch.setenv("ZEROBUS_ENDPOINT", service.endpoint)
        exporter = unity_catalog(workspace.host, prefer_zerobus=True, timeout=60)
        async with SpanBatcher(exporter, shutdown_timeout=600) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
            service.answers = lambda request: Answer(403)
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
            await batcher.add_spans(OTHER_TABLE, make_spans(3))
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.rejected, statistics.ambiguous) == (9, 0, 0)
    assert (statistics.requests, statistics.retries) == (3, 0)
    assert (service.stored(), len(service.receiver.requests)) == (3, 2)
    assert {table: len(spans) for table, spans in workspace.receiver.stored.items()} == {TABLE: 3, OTHER_TABLE: 3}
    (line,) = [record for record in caplog.records if record.name.endswith("zerobus_fallback")]
    assert line.getMessage() == (
        "Zerobus does not accept spans (403 Forbidden; the service principal needs USE CATALOG, USE SCHEMA, SELECT and "
        f"MODIFY for the table): they go to {workspace.host}/api/2.0/otel/v1/traces instead, and Zerobus is tried "
        "again in an hour"
    )


async def test_prefer_zerobus_with_a_personal_access_token_sends_through_the_workspace_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DATABRICKS_CLIENT_ID")
    monkeypatch.delenv("DATABRICKS_CLIENT_SECRET")
    monkeypatch.setenv("DATABRICKS_TOKEN", PERSONAL_TOKEN)
    async with servers() as (workspace, service):
        exporter = unity_catalog(workspace.host, prefer_zerobus=True, timeout=60)
        for _ in range(3):
            assert await exporter.export(batch_of(1, TABLE)) == Delivered()
        await exporter.aclose()
    assert len(workspace.trace_requests) == 3
    assert service.receiver.requests == []
    (line,) = [record for record in caplog.records if record.name.endswith("zerobus_fallback")]
    assert "Zerobus accepts only service principals, and databricks-sdk found pat" in line.getMessage()


async def test_exports_are_refused_once_it_is_closed() -> None:
    async with servers() as (workspace, service):
        exporter = zerobus(workspace.host, endpoint=service.endpoint)
        await exporter.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await exporter.export(batch_of(1, TABLE))
