"""The examples for Databricks run unchanged, with a workspace and a Zerobus server that the test starts."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.cli.support import Ended, run_command
from tests.destinations.databricks_support import CLIENT_ID, CLIENT_SECRET, FakeWorkspace, bearer_of, workspace_of
from tests.destinations.zerobus_support import Zerobus, status_of, zerobus_for
from tests.support.paths import PROJECT

pytestmark = pytest.mark.long

EXAMPLES = PROJECT / "docs" / "examples" / "destinations"
TABLES = ["main.agents.a_otel_spans", "main.agents.b_otel_spans"]


async def run_example(name: str, workspace: FakeWorkspace, zerobus: Zerobus | None, *tables: str) -> Ended:
    environ = {
        "DATABRICKS_HOST": workspace.host,
        "DATABRICKS_CLIENT_ID": CLIENT_ID,
        "DATABRICKS_CLIENT_SECRET": CLIENT_SECRET,
        # Hide other Databricks settings of this machine; an empty variable counts as unset.
        "DATABRICKS_TOKEN": "",
        "DATABRICKS_CONFIG_PROFILE": "",
        "DATABRICKS_WORKSPACE_ID": "",
        "ZEROBUS_ENDPOINT": "" if zerobus is None else zerobus.endpoint,
    }
    return await run_command(*tables, program=[sys.executable, "-W", "error", str(EXAMPLES / name)], environ=environ)


async def test_the_example_of_unity_catalog_delivers_its_span() -> None:
    async with workspace_of(tables=set(TABLES)) as workspace:
        ended = await run_example("unity_catalog.py", workspace, None, TABLES[0])
    assert (ended.exit_code, ended.out, ended.err) == (0, "delivered: 1\n", "")
    assert [span.name for span in workspace.receiver.stored[TABLES[0]]] == ["nap"]


async def test_the_example_of_unity_catalog_reports_a_missing_table() -> None:
    async with workspace_of(tables=set()) as workspace:
        ended = await run_example("unity_catalog.py", workspace, None, TABLES[0])
    assert ended.out == "delivered: 0\n"
    assert f"{TABLES[0]}: 1 rejected: 404 Not Found: TABLE_DOES_NOT_EXIST" in ended.err


async def test_the_example_of_zerobus_sends_to_each_table_with_its_own_token() -> None:
    async with workspace_of(tables=set(TABLES)) as workspace, zerobus_for(workspace) as zerobus:
        ended = await run_example("zerobus.py", workspace, zerobus, *TABLES)
    assert (ended.exit_code, ended.out, ended.err) == (0, "delivered: 2\n", "")
    assert {table: zerobus.stored(table) for table in TABLES} == dict.fromkeys(TABLES, 1)
    assert len({bearer_of(request) for request in zerobus.receiver.requests}) == 2
    assert workspace.trace_requests == []


async def test_the_example_of_zerobus_reports_a_missing_table() -> None:
    async with workspace_of(tables=set()) as workspace, zerobus_for(workspace) as zerobus:
        ended = await run_example("zerobus.py", workspace, zerobus, TABLES[0])
    assert ended.out == "delivered: 0\n"
    assert f"{TABLES[0]}: 1 rejected: 404 Not Found: NOT_FOUND" in ended.err


@pytest.mark.parametrize("fails", [False, True])
async def test_the_example_that_prefers_zerobus_delivers_even_if_zerobus_fails(fails: bool) -> None:
    async with workspace_of(tables=set(TABLES)) as workspace, zerobus_for(workspace) as zerobus:
        if fails:
            zerobus.answers = status_of(403)
        ended = await run_example("prefer_zerobus.py", workspace, zerobus, *TABLES)
        ways = workspace.receiver.stored, zerobus.receiver.stored
    assert (ended.exit_code, ended.out) == (0, "delivered: 2\n")
    # On a busy machine there may be no token in time, and then a batch goes to the workspace.
    warnings = [line for line in ended.err.splitlines() if "no token for Zerobus in time" not in line]
    assert len(warnings) == fails
    assert all("Zerobus does not accept spans (403 Forbidden" in line for line in warnings)
    stored = {table: [span for way in ways for span in way.get(table, ())] for table in TABLES}
    assert [len(spans) for spans in stored.values()] == [1, 1]
    if warnings == ended.err.splitlines():
        assert set(ways[not fails]) == set(TABLES)
    (attribute,) = stored[TABLES[0]][0].attributes
    assert attribute.value == AnyValue(int_value=20)
