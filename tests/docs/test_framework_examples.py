"""The examples on real frameworks run as a user would run them, and a real server gets their spans."""

from __future__ import annotations

import ast
import sys

import pytest
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.docs.support import EXAMPLES, LOCATION_HEADER, assert_one_trace_is_one_location, expected, run_example, trees
from trio_spanbatch.testing import OTLPReceiver

pytestmark = pytest.mark.long

PROGRAMS = ["agents_trio.py", "agents_anyio.py", "agents_pydantic_ai.py", "mcp_two_tenants.py", "web_service.py"]


async def spans_of(example: str) -> dict[str, list[SpanMessage]]:
    """Run an example that ends by itself. Return the received spans by location."""
    async with OTLPReceiver(location_header=LOCATION_HEADER) as receiver:
        ended = await run_example(example, receiver)
    count = sum(map(len, receiver.stored.values()))
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out == f"delivered: {count}\n"
    assert_one_trace_is_one_location(receiver.stored)
    return receiver.stored


async def test_every_example_says_what_it_needs() -> None:
    async def say(example: str) -> None:
        ended = await run_example(example, None)
        assert (ended.exit_code, ended.out) == (1, "")
        (line,) = ended.err.splitlines()
        assert line.startswith("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server")

    async with trio.open_nursery() as nursery:
        for example in PROGRAMS:
            nursery.start_soon(say, example)


# -- agents --------------------------------------------------------------------------------------------------------

AGENTS = {
    "main.europe.spans": """
        invoke_agent europe
          chat
          execute_tool weather
            GET /Paris
          execute_tool weather
            GET /Rome
        """,
    "main.asia.spans": """
        invoke_agent asia
          chat
          execute_tool weather
            GET /Tokyo
        """,
    # Spans that were open at the deadline say so. The chat never began.
    "main.legends.spans": """
        invoke_agent legends CANCELLED
          execute_tool weather CANCELLED
            GET /Atlantis CANCELLED
          execute_tool weather CANCELLED
            GET /Avalon CANCELLED
        """,
}


# The library on anyio knows no `trio_spanbatch`, and marks its spans in its own way.
@pytest.mark.parametrize(
    ("example", "mark"), [("agents_trio.py", " cancelled"), ("agents_anyio.py", " failed: cancelled, cancelled")]
)
async def test_each_agents_spans_are_at_its_location_including_those_of_a_cancelled_agent(
    example: str, mark: str
) -> None:
    stored = await spans_of(example)
    assert {location: trees(spans) for location, spans in stored.items()} == {
        location: expected(tree.replace(" CANCELLED", mark)) for location, tree in AGENTS.items()
    }


def test_the_library_of_the_anyio_example_imports_neither_trio_nor_the_batcher_nor_the_sdk() -> None:
    tree = ast.parse((EXAMPLES / "anyio_agents.py").read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    others = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"anyio", "httpx", "opentelemetry.trace"}


# -- pydantic-ai, on asyncio ---------------------------------------------------------------------------------------


async def test_each_agent_of_pydantic_ai_is_traced_at_its_tenants_location() -> None:
    stored = await spans_of("agents_pydantic_ai.py")
    tree = """
        invoke_agent forecaster
          chat simulated
          chat simulated
          execute_tool weather
        """
    assert {location: trees(spans) for location, spans in stored.items()} == {
        "main.acme.spans": expected(tree),
        "main.globex.spans": expected(tree),
    }
    # What the model was asked and what it answered is not recorded.
    assert not any("sunny" in str(span) or "Paris" in str(span) for spans in stored.values() for span in spans)


# -- MCP -----------------------------------------------------------------------------------------------------------

INITIALIZE = """
    MCP send initialize
      initialize (remote parent)
    """
INITIALIZED = "notifications/initialized\n"


def calls(*cities: str) -> str:
    """Return the trace of an agent that asks an MCP server for the weather, with the spans of both sides."""
    lines = ["invoke_agent"]
    for city in cities:
        lines += [
            "  MCP send tools/call weather",
            "    tools/call weather (remote parent)",
            f"      GET /{city}",
        ]
    lines += ["  MCP send tools/list", "    tools/list (remote parent)"]
    return "\n".join(lines) + "\n"


async def test_an_mcp_server_and_its_clients_trace_each_tenant_at_its_location() -> None:
    stored = await spans_of("mcp_two_tenants.py")
    assert {location: trees(spans) for location, spans in stored.items()} == {
        "main.acme.spans": expected(INITIALIZE, INITIALIZED, calls("Paris", "Rome")),
        "main.globex.spans": expected(INITIALIZE, INITIALIZED, calls("Tokyo")),
        "main.strangers.spans": expected(INITIALIZE, INITIALIZED, calls("Oslo")),
    }
