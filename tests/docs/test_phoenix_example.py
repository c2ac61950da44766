"""docs/phoenix.md: its example runs unchanged, and sends requests that Phoenix accepts."""

from __future__ import annotations

import re
import sys

import pytest

from tests.cli.support import run_command
from tests.support.paths import PROJECT
from trio_spanbatch.testing import Answer, OTLPReceiver

pytestmark = pytest.mark.long

PAGE = PROJECT / "docs" / "phoenix.md"
KEY = "px-0123456789abcdef"


def example() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_documented_example_sends_to_a_project(key: str | None, slash: str) -> None:
    async with OTLPReceiver(location_header="X-Project-Name") as receiver:
        environ = {"PHOENIX_COLLECTOR_ENDPOINT": receiver.url.removesuffix("/v1/traces") + slash}
        environ |= {"PHOENIX_API_KEY": key or ""}
        ended = await run_command(program=[sys.executable, "-W", "error", "-c", example()], environ=environ)
    assert (ended.exit_code, ended.out, ended.err) == (0, "2 spans delivered\n", "")
    assert [span.name for span in receiver.stored["support-agent"]] == ["search", "answer"]
    (request,) = receiver.requests
    assert request.target == "/v1/traces"
    # Phoenix accepts only this content type.
    assert request.header("content-type") == "application/x-protobuf"
    assert request.header("content-encoding") == "gzip"
    assert request.header("authorization") == (f"Bearer {key}" if key else None)


async def test_the_documented_example_reports_a_wrong_key_without_showing_it() -> None:
    async with OTLPReceiver(answers=[Answer(401, body=b"Invalid token")]) as receiver:
        environ = {
            "PHOENIX_COLLECTOR_ENDPOINT": receiver.url.removesuffix("/v1/traces"),
            "PHOENIX_API_KEY": KEY,
        }
        ended = await run_command(program=[sys.executable, "-c", example()], environ=environ)
    assert ended.out == "0 spans delivered\n"
    assert "401 Unauthorized: Invalid token" in ended.err
    assert KEY not in ended.out + ended.err


async def test_the_documented_example_sends_again_when_phoenixs_queue_is_full() -> None:
    full = Answer(503, body=b"Server is at capacity and cannot process more requests")
    async with OTLPReceiver(answers=[full], location_header="X-Project-Name") as receiver:
        environ = {"PHOENIX_COLLECTOR_ENDPOINT": receiver.url.removesuffix("/v1/traces")}
        ended = await run_command(program=[sys.executable, "-c", example()], environ=environ)
    assert (ended.exit_code, ended.out) == (0, "2 spans delivered\n")
    assert len(receiver.stored["support-agent"]) == 2
