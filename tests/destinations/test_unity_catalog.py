"""Unity Catalog over real HTTP: the real databricks-sdk against a fake workspace that follows the documentation."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.destinations.databricks_support import (
    CLIENT_SECRET,
    PERSONAL_TOKEN,
    TABLE,
    FakeWorkspace,
    as_service_principal,
    forget_databricks,
    json_answer,
    workspace_of,
)
from tests.support.batchers import make_spans
from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, InvalidLocationError, OTLPExporter, Refused, RetryPolicy, SpanBatcher, TryLater
from trio_spanbatch.destinations import unity_catalog
from trio_spanbatch.destinations.databricks_auth import DatabricksConfig
from trio_spanbatch.testing import Answer, OTLPReceiver


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_databricks(monkeypatch, tmp_path)


@pytest.fixture
def service_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    as_service_principal(monkeypatch)


@pytest.fixture
def personal_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", PERSONAL_TOKEN)


@asynccontextmanager
async def exporter_for(workspace: FakeWorkspace, **options: Any) -> AsyncIterator[OTLPExporter]:
    exporter = unity_catalog(workspace.host, timeout=60, **options)
    try:
        yield exporter
    finally:
        await exporter.aclose()


async def export(exporter: OTLPExporter, table: str = TABLE) -> object:
    return await exporter.export(batch_of(2, table))


async def test_spans_go_to_the_table_that_the_header_names_with_a_token_of_the_service_principal(
    service_principal: None,
) -> None:
    async with workspace_of(tables={TABLE, "main.b.spans"}) as workspace, exporter_for(workspace) as exporter:
        # The answer is "200 OK" in plain text.
        assert await export(exporter) == Delivered()
        assert await export(exporter, "main.b.spans") == Delivered()
    first, second = workspace.trace_requests
    assert first.header("x-databricks-uc-table-name") == TABLE
    assert second.header("x-databricks-uc-table-name") == "main.b.spans"
    assert first.header("authorization") == second.header("authorization") == f"Bearer {workspace.issued[0]}"
    assert first.header("content-type") == "application/x-protobuf"
    assert workspace.token_requests == [{"grant_type": "client_credentials", "scope": "all-apis"}]
    assert {table: len(spans) for table, spans in workspace.receiver.stored.items()} == {TABLE: 2, "main.b.spans": 2}


@pytest.mark.parametrize("by", ["workspace", "variable", "profile", "configuration"])
async def test_requests_name_the_workspace_by_the_id_that_databricks_sdk_knows(
    by: str, personal_token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from databricks.sdk.core import Config

    options: dict[str, Any] = {}
    async with workspace_of(workspace_id="777", names_id=by == "workspace") as workspace:
        if by == "variable":
            monkeypatch.setenv("DATABRICKS_WORKSPACE_ID", "777")
        elif by == "profile":
            monkeypatch.delenv("DATABRICKS_TOKEN")
            (tmp_path / "databrickscfg").write_text(f"[prod]\ntoken = {PERSONAL_TOKEN}\nworkspace_id = 777\n")
            options["make_config"] = functools.partial(Config, host=workspace.host, profile="prod")
        elif by == "configuration":
            options["make_config"] = functools.partial(Config, host=workspace.host, workspace_id="777")
        async with exporter_for(workspace, **options) as exporter:
            assert await export(exporter) == Delivered()
    assert workspace.trace_requests[0].header("x-databricks-workspace-id") == "777"


async def test_the_id_of_the_workspace_is_sent_again_after_a_401(service_principal: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Delivered()
        workspace.accepted = {"token-0123456789-2"}
        assert await export(exporter) == Delivered()
    assert [request.header("x-databricks-workspace-id") for request in workspace.trace_requests] == ["12345"] * 3


async def test_no_workspace_is_named_where_databricks_sdk_knows_no_id(personal_token: None) -> None:
    async with workspace_of(names_id=False) as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Delivered()
    assert workspace.trace_requests[0].header("x-databricks-workspace-id") is None


@pytest.mark.parametrize("name", ["X-Databricks-Org-Id", "x-databricks-workspace-id"])
async def test_a_workspace_that_the_user_names_in_a_header_is_not_named_again(name: str, personal_token: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace, headers={name: "42"}) as exporter:
        assert await export(exporter) == Delivered()
    headers = workspace.trace_requests[0].headers
    assert [value for name, value in headers if name in ("x-databricks-org-id", "x-databricks-workspace-id")] == ["42"]


async def test_a_personal_access_token_is_sent_as_it_is(personal_token: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Delivered()
    assert workspace.trace_requests[0].header("authorization") == f"Bearer {PERSONAL_TOKEN}"
    assert workspace.token_requests == []


async def test_a_batcher_delivers_to_many_tables_with_one_token(service_principal: None) -> None:
    tables = {f"main.agents.spans_{number}" for number in range(20)}
    async with workspace_of(tables=tables) as workspace:
        async with SpanBatcher(unity_catalog(workspace.host, timeout=60), shutdown_timeout=600) as batcher:
            for table in sorted(tables):
                await batcher.add_spans(table, make_spans(5))
        statistics = batcher.statistics()
    assert statistics.accepted == statistics.delivered == 100
    assert len(workspace.issued) == 1
    assert {table: len(spans) for table, spans in workspace.receiver.stored.items()} == dict.fromkeys(tables, 5)


async def test_a_token_that_expires_soon_is_replaced_before_it_expires(service_principal: None) -> None:
    # databricks-sdk counts a token as expired 40 seconds before it expires.
    async with workspace_of(expires_in=39) as workspace, exporter_for(workspace) as exporter:
        for _ in range(3):
            assert await export(exporter) == Delivered()
    used = [request.header("authorization") for request in workspace.trace_requests]
    # The second token was issued when the SDK was asked for the first one's expiry, which is asked only once.
    assert used == [f"Bearer token-0123456789-{number}" for number in (1, 3, 4)]
    assert len(workspace.issued) == 4


async def test_after_a_401_the_token_is_replaced_once_and_the_request_repeated(service_principal: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Delivered()
        workspace.accepted = {"token-0123456789-2"}
        assert await export(exporter) == Delivered()
        assert await export(exporter) == Delivered()
    assert len(workspace.issued) == 2
    assert [request.header("authorization") for request in workspace.trace_requests] == [
        f"Bearer token-0123456789-{number}" for number in (1, 1, 2, 2)
    ]


async def test_concurrent_exports_that_get_a_401_share_one_new_token(service_principal: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Delivered()
        workspace.accepted = {"token-0123456789-2"}
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(export, exporter)
    assert len(workspace.issued) == 2
    assert len(workspace.receiver.stored[TABLE]) == 18


async def test_a_server_that_always_answers_401_is_asked_twice_and_the_batch_is_refused(
    service_principal: None,
) -> None:
    async with workspace_of(accepted=set()) as workspace, exporter_for(workspace) as exporter:
        result = await export(exporter)
    assert isinstance(result, Refused)
    assert result.status_code == 401
    assert "Credential was not sent or is not valid; the workspace does not accept" in result.reason
    assert len(workspace.issued) == len(workspace.trace_requests) == 2


async def test_a_personal_token_that_is_refused_is_not_sent_again_as_it_is_the_same(personal_token: None) -> None:
    async with workspace_of(accepted=set()) as workspace, exporter_for(workspace) as exporter:
        result = await export(exporter)
    assert isinstance(result, Refused)
    assert len(workspace.trace_requests) == 1


async def test_a_personal_token_that_was_replaced_in_the_meantime_is_read_again_after_a_401(
    personal_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workspace_of(accepted={"dapi-new"}) as workspace, exporter_for(workspace) as exporter:
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-old")
        assert isinstance(await export(exporter), Refused)
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-new")
        assert await export(exporter) == Delivered()


async def test_a_table_that_is_not_there_is_refused_with_the_servers_words_and_not_isolated(
    personal_token: None,
) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        result = await export(exporter, "main.agents.nothing")
    assert result == Refused(
        "404 Not Found: TABLE_DOES_NOT_EXIST: Table 'main.agents.nothing' does not exist.; create the table, or "
        "correct its name",
        404,
        isolate=False,
    )


async def test_a_404_that_is_not_about_a_table_asks_whether_the_host_is_a_workspace(personal_token: None) -> None:
    async with OTLPReceiver() as receiver:
        exporter = unity_catalog(f"http://127.0.0.1:{receiver.port}", timeout=60)
        result = await export(exporter)
        await exporter.aclose()
    assert isinstance(result, Refused)
    assert result.reason.endswith("; is it a Databricks workspace with OpenTelemetry enabled (a preview)?")


async def test_a_403_says_which_privileges_are_needed(personal_token: None) -> None:
    async with workspace_of(traces=lambda request: Answer(403)) as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Refused(
            "403 Forbidden; these credentials need USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table", 403
        )


async def test_429_is_repeated_after_the_time_that_the_server_asks_for(personal_token: None) -> None:
    answers = iter([json_answer(429, {"message": "slow down"}, ("retry-after", "0")), None])
    async with workspace_of(traces=lambda request: next(answers)) as workspace:
        async with SpanBatcher(unity_catalog(workspace.host, timeout=60), retry=RetryPolicy(initial=0.001)) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
        statistics = batcher.statistics()
    assert (statistics.delivered, statistics.retries) == (3, 1)


async def test_the_result_of_a_429_says_how_long_to_wait(personal_token: None) -> None:
    busy = json_answer(429, {"message": "slow down"}, ("retry-after", "7"))
    async with workspace_of(traces=lambda request: busy) as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == TryLater("429 Too Many Requests: slow down", 7.0, status_code=429)


async def test_a_wrong_client_secret_is_refused_with_what_to_do(
    service_principal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "wrong-wrong-wrong")
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        result = await export(exporter)
        # The token endpoint echoes the right secret in its response, which must not be shown either.
        assert result == Refused(
            f"no credentials: the token endpoint of {workspace.host} answered invalid_client: check "
            "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
        )
        # Once it is corrected, nothing of the failure is cached.
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
        assert await export(exporter) == Delivered()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, headers=[("content-type", "text/html")], body=b"<html>down</html>"),
        Answer(503),
        Answer(200, headers=[("content-type", "application/json")], body=b"{}"),
        Answer(200, headers=[("content-type", "application/json")], body=b"no json"),
    ],
    ids=["a page", "nothing", "an empty object", "not JSON"],
)
async def test_a_malfunctioning_token_endpoint_is_asked_again_later(answer: Answer, service_principal: None) -> None:
    async with workspace_of(token_answer=answer) as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == TryLater(
            f"no credentials: the answer of the token endpoint of {workspace.host} contains neither a "
            "token nor an OAuth error code"
        )
        workspace.token_answer = None
        assert await export(exporter) == Delivered()


async def test_a_host_that_is_not_a_workspace_is_reported(service_principal: None) -> None:
    async with workspace_of(known=False) as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == TryLater(
            f"no credentials: {workspace.host} does not name its token endpoint: is it a Databricks workspace, and "
            "is it up?"
        )


async def test_without_credentials_the_error_names_the_variables_to_set() -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Refused(
            "no credentials: databricks-sdk found none: set DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and "
            "DATABRICKS_CLIENT_SECRET, or DATABRICKS_CONFIG_PROFILE"
        )


async def test_two_ways_to_authenticate_are_refused(service_principal: None, personal_token: None) -> None:
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        assert await export(exporter) == Refused(
            "no credentials: databricks-sdk found more than one method of authentication (oauth and pat): unset "
            "the variables of the others, or choose one with DATABRICKS_AUTH_TYPE"
        )


async def test_a_profile_is_read_from_the_configuration_file(tmp_path: Path) -> None:
    from databricks.sdk.core import Config

    (tmp_path / "databrickscfg").write_text(f"[prod]\ntoken = {PERSONAL_TOKEN}\n")
    async with workspace_of() as workspace:
        make_config = functools.partial(Config, host=workspace.host, profile="prod")
        async with exporter_for(workspace, make_config=make_config) as exporter:
            assert await export(exporter) == Delivered()
        async with exporter_for(workspace, make_config=functools.partial(make_config, profile="test")) as exporter:
            assert await export(exporter) == Refused(
                "no credentials: the configuration file of databricks-sdk has no profile 'test'"
            )


async def test_credentials_for_another_workspace_are_not_sent(personal_token: None) -> None:
    from databricks.sdk.core import Config

    def make_config() -> DatabricksConfig:
        return Config(host=other.host)

    async with (
        workspace_of() as workspace,
        workspace_of() as other,
        exporter_for(workspace, make_config=make_config) as exporter,
    ):
        assert await export(exporter) == Refused(
            f"no credentials: databricks-sdk has credentials for a workspace other than {workspace.host}"
        )
    assert workspace.receiver.requests == []


async def test_a_bad_table_name_is_refused_before_anything_is_accepted(personal_token: None) -> None:
    async with workspace_of() as workspace, SpanBatcher(unity_catalog(workspace.host)) as batcher:
        with pytest.raises(InvalidLocationError, match=r"^location 'agents.spans' is not a table of Unity Catalog"):
            await batcher.add_spans("agents.spans", make_spans(1))
        assert batcher.statistics().accepted == 0
    assert workspace.receiver.requests == []


async def test_the_workspace_is_taken_from_the_environment(
    personal_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workspace_of() as workspace:
        monkeypatch.setenv("DATABRICKS_HOST", f"{workspace.host}/")
        exporter = unity_catalog(timeout=60)
        assert exporter.endpoint == f"{workspace.host}/api/2.0/otel/v1/traces"
        assert await export(exporter) == Delivered()
        await exporter.aclose()


@pytest.mark.parametrize("debug_headers", [False, True])
async def test_no_secret_is_in_any_log_result_or_repr(
    debug_headers: bool, service_principal: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if debug_headers:
        monkeypatch.setenv("DATABRICKS_DEBUG_HEADERS", "true")
    caplog.set_level(logging.DEBUG)
    shown = []
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        shown += [await export(exporter), repr(exporter), repr(vars(exporter))]
        # A server that echoes the request.
        workspace.traces = lambda request: Answer(403, body=(request.header("authorization") or "").encode())
        shown.append(await export(exporter))
        workspace.accepted = set()
        shown.append(await export(exporter))
        workspace.token_answer = json_answer(400, {"error": "invalid_client", "error_description": CLIENT_SECRET})
        shown.append(await export(exporter))
    text = caplog.text + " ".join(map(repr, shown))
    assert len(workspace.issued) == 2
    for secret in (CLIENT_SECRET, *workspace.issued):
        assert secret not in text


async def test_a_token_that_cannot_be_sent_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-secret\nX-Evil: 1")
    async with workspace_of() as workspace, exporter_for(workspace) as exporter:
        result = await export(exporter)
    assert isinstance(result, Refused)
    assert result.reason.startswith("auth: the value of header 'Authorization' (not shown)")
    assert "dapi-secret" not in caplog.text + repr(result)
    assert workspace.trace_requests == []


@pytest.mark.parametrize("missing", ["databricks", "databricks.sdk"])
def test_without_databricks_sdk_the_error_says_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other packages of Databricks share the namespace, so it may exist without the SDK.
    monkeypatch.delitem(sys.modules, "databricks.sdk", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "trio-spanbatch\[databricks\]"'):
        unity_catalog("https://dbc-1.cloud.databricks.com")


def test_importing_and_making_an_exporter_does_not_import_databricks_sdk() -> None:
    program = (
        "import sys, trio_spanbatch.destinations as d; d.unity_catalog('dbc-1.cloud.databricks.com');"
        "assert not [name for name in sys.modules if name.startswith(('databricks.', 'requests'))]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("dbc-1.cloud.databricks.com", "https://dbc-1.cloud.databricks.com"),
        ("https://DBC-1.cloud.databricks.com/", "https://dbc-1.cloud.databricks.com"),
        (" https://dbc-1.cloud.databricks.com:443 ", "https://dbc-1.cloud.databricks.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_the_host_may_be_written_in_any_common_form(host: str, endpoint: str) -> None:
    assert unity_catalog(host).endpoint == f"{endpoint}/api/2.0/otel/v1/traces"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("https://w.cloud.databricks.com/api/2.0/otel/v1/traces", "host must be a workspace alone"),
        ("https://adb-1.2.azuredatabricks.net/?o=s3cret", "host must be a workspace alone"),
        ("https://user:s3cret@w.cloud.databricks.com", "user name or password"),
        ("s3cret@w.cloud.databricks.com", "user name or password"),
        ("https://user:s3cret?x@w.cloud.databricks.com", "user name or password"),
        ("https://user:s3cret/x@w.cloud.databricks.com", "user name or password"),
        ("https://user:s3cret%40w.cloud.databricks.com", "user name or password"),
        ("https://user:s3cret?x", "is not a URL"),
        ("https://user:s3cret", "is not a URL"),
        ("https://s3cret s3cret", "has an invalid host"),
        ("w w", "has an invalid host"),
        ("ftp://w.cloud.databricks.com", "must begin with http:// or https://"),
        ("https://", "must begin with http:// or https://"),
        ("", "there is no workspace: give host="),
        (None, "there is no workspace: give host="),
    ],
)
def test_an_invalid_host_is_refused_without_showing_credentials(host: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        unity_catalog(host)
    assert "s3cret" not in str(caught.value)


def test_headers_that_authenticate_are_refused_and_not_shown() -> None:
    with pytest.raises(
        ValueError, match="databricks-sdk authenticates: set DATABRICKS_TOKEN, give make_config="
    ) as caught:
        unity_catalog("https://w.cloud.databricks.com", headers={"authorization": "Bearer s3cret"})
    assert "s3cret" not in str(caught.value)


async def test_options_are_those_of_the_exporter(personal_token: None) -> None:
    async with workspace_of() as workspace:
        exporter = unity_catalog(
            workspace.host,
            headers={"X-Databricks-Org-Id": "1"},
            compression="gzip",
            timeout=60,
            transport=workspace.receiver.memory_transport(),
        )
        assert await export(exporter) == Delivered()
        await exporter.aclose()
    (request,) = workspace.trace_requests
    assert request.header("x-databricks-org-id") == "1"
    assert request.header("content-encoding") == "gzip"
