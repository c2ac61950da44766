"""``send --to zerobus``: where spans are sent, and one-line errors that name the problem and the remedy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cli.support import (
    Ended,
    give_up_after_the_first_failure,
    request_line,
    run_command,
    run_in_process,
    span_document,
)
from tests.destinations.databricks_support import (
    CLIENT_ID,
    CLIENT_SECRET,
    PERSONAL_TOKEN,
    TABLE,
    FakeWorkspace,
    forget_databricks,
    json_answer,
    workspace_of,
)
from tests.destinations.zerobus_support import HEADER as ZEROBUS_HEADER
from tests.destinations.zerobus_support import OTHER_TABLE, Zerobus, status_of, zerobus_for
from tests.support.processes import reserved_port
from trio_spanbatch.cli import commands


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_databricks(monkeypatch, tmp_path)
    monkeypatch.delenv("ZEROBUS_ENDPOINT", raising=False)


@pytest.fixture(autouse=True)
def gives_up_after_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_after_the_first_failure(monkeypatch)


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(
        request_line(span_document(1, tenant=TABLE), span_document(2, tenant=TABLE))
        + request_line(span_document(3, tenant=OTHER_TABLE))
    )
    return path


@asynccontextmanager
async def servers(**options: Any) -> AsyncIterator[tuple[FakeWorkspace, Zerobus]]:
    async with (
        workspace_of(**{"tables": {TABLE, OTHER_TABLE}, **options}) as workspace,
        zerobus_for(workspace) as zerobus,
    ):
        yield workspace, zerobus


async def send(
    spans: Path, workspace: FakeWorkspace, zerobus: Zerobus | None, *arguments: object, **environ: str
) -> Ended:
    credentials = {"DATABRICKS_CLIENT_ID": CLIENT_ID, "DATABRICKS_CLIENT_SECRET": CLIENT_SECRET}
    if not arguments:
        arguments = ("--location", TABLE)
    if zerobus is not None:
        arguments = (*arguments, "--endpoint", zerobus.endpoint)
    return await run_in_process(
        *("send", spans, "--to", "zerobus", *arguments),
        environ={"DATABRICKS_HOST": workspace.host, **(environ or credentials)},
    )


def only_line(ended: Ended) -> str:
    """The one line on stderr of a command that failed."""
    assert ended.exit_code == 1
    (line,) = ended.err.splitlines()
    assert "Traceback" not in line
    return line


async def test_spans_go_to_tables_through_zerobus(spans: Path) -> None:
    async with servers() as (workspace, zerobus):
        ended = await send(
            *(spans, workspace, zerobus, "--location-attribute", "tenant", "--compression", "gzip", "--json"),
            *("--header", "X-Team=agents"),
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert (zerobus.stored(TABLE), zerobus.stored(OTHER_TABLE)) == (2, 1)
    assert ended.document["delivered"] == 3
    for request in zerobus.receiver.requests:
        assert request.header("content-encoding") == "gzip"
        assert request.header("x-team") == "agents"


async def test_the_endpoint_may_be_in_a_variable(spans: Path) -> None:
    async with servers() as (workspace, zerobus):
        ended = await run_command(
            *("send", spans, "--to", "zerobus", "--location", TABLE),
            environ={
                "DATABRICKS_HOST": workspace.host,
                "DATABRICKS_CLIENT_ID": CLIENT_ID,
                "DATABRICKS_CLIENT_SECRET": CLIENT_SECRET,
                "ZEROBUS_ENDPOINT": zerobus.endpoint,
            },
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert zerobus.stored() == 3


ENDPOINT = ("--endpoint", "https://1.zerobus.us-west-2.cloud.databricks.com")


@pytest.mark.parametrize(
    ("arguments", "host", "error"),
    [
        (ENDPOINT, "w.com", "--to zerobus needs a table: name it with --location <catalog>.<schema>.<table>, or name"),
        (("--location", "agents.spans"), "w.com", "location 'agents.spans' is not a table of Unity Catalog: it has 2"),
        (("--location", TABLE), "", "--to zerobus needs a workspace that issues tokens: set DATABRICKS_HOST"),
        (("--location", TABLE), "https://w.com/s3cret", ": DATABRICKS_HOST must be a workspace alone"),
        (("--location", TABLE, "--location-header", "X"), "w.com", "it is x-databricks-zerobus-table-name"),
        (("--location", TABLE, "--header", "authorization=s3cret"), "w.com", "databricks-sdk authenticates"),
        (
            ("--location", TABLE, "--header", f"{ZEROBUS_HEADER}=a.b.c"),
            "w.com",
            f"--header {ZEROBUS_HEADER}= cannot be used with --to zerobus: --location or --location-attribute names",
        ),
        (
            ("--location", TABLE, "--endpoint", "https://1.zerobus.r.azuredatabricks.net/s3cret"),
            "w.com",
            "--endpoint must be a host alone, as in https://1.zerobus.r.azuredatabricks.net; remove the rest",
        ),
        (
            ("--location", TABLE, "--endpoint", "http://1.zerobus.r.azuredatabricks.net"),
            "w.com",
            "--endpoint http://1.zerobus.r.azuredatabricks.net must begin with https://, because tokens are sent",
        ),
        (("--location", TABLE, "--endpoint", "https://s3cret@w.com"), "w.com", "--endpoint \\(not shown\\) contains"),
    ],
)
def test_options_that_cannot_be_combined_are_a_one_line_error(
    arguments: tuple[str, ...], host: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", host)
    result = CliRunner().invoke(commands.cli, ["send", "-", "--to", "zerobus", *arguments], prog_name="trio-spanbatch")
    assert result.exit_code == 2
    assert re.search(error, result.stderr)
    assert len(result.stderr.splitlines()) == 1
    assert "s3cret" not in result.stderr


def test_an_error_about_an_endpoint_in_a_variable_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", "w.com")
    monkeypatch.setenv("ZEROBUS_ENDPOINT", "http://1.zerobus.r.azuredatabricks.net")
    result = CliRunner().invoke(commands.cli, ["send", "-", "--to", "zerobus", "--location", TABLE])
    assert result.exit_code == 2
    assert "send: ZEROBUS_ENDPOINT http://1.zerobus.r.azuredatabricks.net must begin with https://" in result.stderr


async def test_a_personal_access_token_is_a_one_line_error_that_says_what_to_use_instead(spans: Path) -> None:
    async with servers() as (workspace, zerobus):
        ended = await send(spans, workspace, zerobus, DATABRICKS_TOKEN=PERSONAL_TOKEN)
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no credentials: Zerobus accepts only service principals, and databricks-sdk found pat: "
        "set DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or send to Unity Catalog without Zerobus"
    )


async def test_a_wrong_client_secret_is_reported_in_one_line(spans: Path) -> None:
    async with servers() as (workspace, zerobus):
        ended = await send(
            *(spans, workspace, zerobus), DATABRICKS_CLIENT_ID=CLIENT_ID, DATABRICKS_CLIENT_SECRET="s3cret-s3cret"
        )
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no credentials: the token endpoint of {workspace.host} answered 401 invalid_client: "
        "check DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
    )


async def test_missing_permission_for_a_table_is_reported_in_one_line(spans: Path) -> None:
    async with servers(table_answers={TABLE: json_answer(403, {"error": "access_denied"})}) as (workspace, zerobus):
        ended = await send(spans, workspace, zerobus)
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no credentials: the token endpoint of {workspace.host} answered 403 access_denied: does "
        "the table exist, with USE CATALOG, USE SCHEMA, SELECT, MODIFY for the service principal?"
    )


async def test_an_unknown_table_is_reported_in_one_line(spans: Path) -> None:
    async with servers(tables=set()) as (workspace, zerobus):
        ended = await send(spans, workspace, zerobus)
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: 404 Not Found: NOT_FOUND: Table '{TABLE}' not found; create the table, or correct its "
        "name"
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Zerobus does not accept this token"),
        (403, "the service principal needs USE CATALOG"),
        (404, "is it the endpoint"),
    ],
)
async def test_a_refusal_of_zerobus_is_reported_in_one_line(status: int, words: str, spans: Path) -> None:
    async with servers() as (workspace, zerobus):
        zerobus.answers = status_of(status)
        ended = await send(spans, workspace, zerobus)
    assert only_line(ended).startswith(f"{TABLE}: 3 rejected: {status} ")
    assert words in only_line(ended)


async def test_a_metastore_that_names_no_host_of_zerobus_is_reported_in_one_line(spans: Path) -> None:
    async with servers(metastore={"cloud": "mars", "region": "r"}) as (workspace, _):
        ended = await send(spans, workspace, None)
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no endpoint of Zerobus: the cloud and region in the metastore summary of "
        f"{workspace.host} are not those of a Zerobus host; set ZEROBUS_ENDPOINT, or give the endpoint"
    )


async def test_an_endpoint_without_a_server_is_reported_with_advice(spans: Path) -> None:
    with reserved_port() as port:
        async with servers() as (workspace, _):
            ended = await send(
                *(spans, workspace, None, "--location", TABLE, "--endpoint", f"http://127.0.0.1:{port}"),
            )
    assert ended.exit_code == 1
    assert "Traceback" not in ended.err
    assert f"cannot connect to 127.0.0.1:{port}" in ended.err
    assert "set DATABRICKS_HOST to the right workspace, or name Zerobus' endpoint with --endpoint" in ended.err
