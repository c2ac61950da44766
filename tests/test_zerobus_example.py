"""The examples for Databricks run as they stand, against a workspace and a Zerobus endpoint of the test's own."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from cli_support import Ended, run_command
from databricks_support import CLIENT_ID, CLIENT_SECRET, FakeWorkspace, json_answer, workspace_of
from exporter_support import batch_of

from trio_spanbatch import Delivered, InvalidLocationError, Refused, TryLater
from trio_spanbatch.otlp.auth import Auth
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "destinations"
TABLES = ["main.agents.a_otel_spans", "main.agents.b_otel_spans"]
HEADER = "x-databricks-zerobus-table-name"


def environment(workspace: FakeWorkspace, zerobus: OTLPReceiver | None = None) -> dict[str, str]:
    return {
        "DATABRICKS_HOST": workspace.host,
        "DATABRICKS_WORKSPACE_ID": "1234567890123456",
        "DATABRICKS_CLIENT_ID": CLIENT_ID,
        "DATABRICKS_CLIENT_SECRET": CLIENT_SECRET,
        # Whatever this machine knows of Databricks besides; empty is unset.
        "DATABRICKS_TOKEN": "",
        "DATABRICKS_CONFIG_PROFILE": "",
        "ZEROBUS_ENDPOINT": "" if zerobus is None else zerobus.url.removesuffix("/v1/traces"),
    }


async def run_example(name: str, *arguments: str, environ: dict[str, str]) -> Ended:
    return await run_command(*arguments, program=[sys.executable, "-W", "error", str(EXAMPLES / name)], environ=environ)


async def test_the_example_of_unity_catalog_delivers_its_span() -> None:
    async with workspace_of(tables=set(TABLES)) as workspace:
        ended = await run_example("unity_catalog.py", TABLES[0], environ=environment(workspace))
    assert (ended.exit_code, ended.out, ended.err) == (0, "delivered: 1\n", "")
    assert [span.name for span in workspace.receiver.stored[TABLES[0]]] == ["nap"]


async def test_the_example_of_unity_catalog_tells_of_a_table_that_is_not_there() -> None:
    async with workspace_of(tables=set()) as workspace:
        ended = await run_example("unity_catalog.py", TABLES[0], environ=environment(workspace))
    assert ended.out == "delivered: 0\n"
    assert f"{TABLES[0]}: 1 rejected: 404 Not Found: TABLE_DOES_NOT_EXIST" in ended.err


async def test_the_example_of_zerobus_sends_to_each_table_with_a_token_of_its_own() -> None:
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        ended = await run_example("zerobus.py", *TABLES, environ=environment(workspace, zerobus))
    assert (ended.exit_code, ended.out, ended.err) == (0, "delivered: 2\n", "")
    assert {table: len(spans) for table, spans in zerobus.stored.items()} == dict.fromkeys(TABLES, 1)
    tokens = {request.location: request.header("authorization") for request in zerobus.requests}
    assert sorted(tokens.values(), key=str) == [f"Bearer {token}" for token in sorted(workspace.issued)]
    assert len(set(tokens.values())) == 2
    for form in workspace.token_requests:
        assert form["grant_type"] == "client_credentials"
        assert form["resource"] == "api://databricks/workspaces/1234567890123456/zerobusDirectWriteApi"
    details = sorted((json.loads(form["authorization_details"]) for form in workspace.token_requests), key=str)
    assert details == [
        [
            {
                "type": "unity_catalog_privileges",
                "object_type": "CATALOG",
                "object_full_path": "main",
                "privileges": ["USE CATALOG"],
            },
            {
                "type": "unity_catalog_privileges",
                "object_type": "SCHEMA",
                "object_full_path": "main.agents",
                "privileges": ["USE SCHEMA"],
            },
            {
                "type": "unity_catalog_privileges",
                "object_type": "TABLE",
                "object_full_path": table,
                "privileges": ["SELECT", "MODIFY"],
            },
        ]
        for table in TABLES
    ]


@pytest.fixture
def example() -> ModuleType:
    """The example as a module, to look at its parts."""
    specification = importlib.util.spec_from_file_location("zerobus_example", EXAMPLES / "zerobus.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Setup:
    """The example's exporter, its tokens from a workspace and its spans to a receiver, both on the mock clock."""

    def __init__(self, example: ModuleType, workspace: FakeWorkspace, zerobus: OTLPReceiver) -> None:
        self.workspace = workspace
        self.zerobus = zerobus
        self.client = httpx.AsyncClient(
            auth=(CLIENT_ID, CLIENT_SECRET), transport=workspace.receiver.memory_transport(), timeout=10
        )
        self.tokens = example.TableTokens(self.client, "http://workspace.test", "123")
        self.exporter = example.ZerobusExporter(
            zerobus.url, location_header=HEADER, auth=self.tokens, transport=zerobus.memory_transport()
        )

    async def export(self, table: str = TABLES[0]) -> Any:
        return await self.exporter.export(batch_of(1, table))

    async def close(self) -> None:
        await self.exporter.aclose()
        await self.client.aclose()

    def tokens_used(self) -> list[str]:
        return [(request.header("authorization") or "").rpartition("-")[2] for request in self.zerobus.requests]


async def test_tokens_of_the_recipe_are_kept_for_each_table_until_a_minute_before_they_end(
    example: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        setup = Setup(example, workspace, zerobus)
        assert isinstance(setup.tokens, Auth)
        for table in (*TABLES, *TABLES):
            assert await setup.export(table) == Delivered()
        assert setup.tokens_used() == ["1", "2", "1", "2"]
        await trio.sleep(3600 - 60 - 1)
        assert await setup.export() == Delivered()
        await trio.sleep(2)
        assert await setup.export() == Delivered()
        assert setup.tokens_used()[4:] == ["1", "3"]
        await setup.close()


async def test_exports_of_one_table_share_a_token_in_the_recipe(
    example: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        setup = Setup(example, workspace, zerobus)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(setup.export)
        assert setup.tokens_used() == ["1"] * 4
        await setup.close()


async def test_the_recipe_replaces_a_token_once_after_a_401(
    example: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    def answers(request: ReceivedRequest) -> Answer | None:
        return Answer(401) if (request.header("authorization") or "").endswith(revoked) else None

    revoked = "-1"
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER, answers=answers) as zerobus:
        setup = Setup(example, workspace, zerobus)
        assert await setup.export() == Delivered()
        assert setup.tokens_used() == ["1", "2"]
        revoked = ""
        assert await setup.export() == Refused("401 Unauthorized", 401)
        assert setup.tokens_used() == ["1", "2", "2", "3"]
        # Another export had the same token.
        setup.tokens.invalidate(TABLES[0], {"Authorization": "Bearer old"})
        await setup.close()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (json_answer(401, {}), Refused(f"no credentials: the token endpoint answered 401 for {TABLES[0]}")),
        (json_answer(429, {}), TryLater(f"no credentials: the token endpoint answered 429 for {TABLES[0]}")),
        (json_answer(503, {}), TryLater(f"no credentials: the token endpoint answered 503 for {TABLES[0]}")),
        (json_answer(200, {}), TryLater("no credentials: the token endpoint's answer has no token in it")),
        (json_answer(200, []), TryLater("no credentials: the token endpoint's answer has no token in it")),
        (Answer(200), TryLater("no credentials: the token endpoint's answer has no token in it")),
    ],
)
async def test_the_recipe_tells_a_token_endpoint_that_refuses_from_one_that_is_ill(
    answer: Answer, result: object, example: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    async with workspace_of(token_answer=answer) as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        setup = Setup(example, workspace, zerobus)
        assert await setup.export() == result
        assert zerobus.requests == []
        await setup.close()


async def test_the_recipe_shows_no_secret(
    example: ModuleType, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        setup = Setup(example, workspace, zerobus)
        results = [await setup.export()]
        workspace.token_answer = json_answer(400, {"error_description": CLIENT_SECRET})
        results.append(await setup.export(TABLES[1]))
        await setup.close()
    for secret in (CLIENT_SECRET, *workspace.issued):
        assert secret not in caplog.text + repr(results)


async def test_the_recipe_turns_away_what_is_no_table(example: ModuleType) -> None:
    async with workspace_of() as workspace, OTLPReceiver(location_header=HEADER) as zerobus:
        setup = Setup(example, workspace, zerobus)
        with pytest.raises(InvalidLocationError):
            setup.exporter.check_location("agents.spans")
        await setup.close()
