"""The examples on making spans and on redaction print what the pages say."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from opentelemetry import trace

from tests.cli.support import run_command
from tests.opentelemetry.support import provider_of
from tests.support.paths import PROJECT
from trio_spanbatch import SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter

DOCS = PROJECT / "docs"


@pytest.mark.parametrize(
    ("page", "example"),
    [("tracing.md", "tracing"), ("tracing.md", "traced_generators"), ("privacy.md", "redaction")],
)
async def test_the_output_of_an_example_is_that_of_its_page(page: str, example: str) -> None:
    text = (DOCS / page).read_text()
    assert f"{{literalinclude}} examples/{example}.py" in text
    marker = f"<!-- {example}: compared by tests/docs/test_tracing_examples.py -->\n"
    (expected,) = re.findall(re.escape(marker) + r"```text\n(.*?)```", text, re.DOTALL)
    ended = await run_command(program=[sys.executable, "-W", "error", str(DOCS / "examples" / f"{example}.py")])
    assert (ended.exit_code, ended.err, ended.out) == (0, "", expected)


def test_the_short_example_on_redaction_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "privacy.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["batcher"], SpanBatcher)


async def test_the_example_with_span_and_traced_of_opentelemetry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        provider = provider_of(BatcherSpanProcessor(batcher))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        page = (DOCS / "opentelemetry.md").read_text()
        (code,) = re.findall(
            r"<!-- span: run by tests/docs/test_tracing_examples.py -->\n```python\n(.*?)```", page, re.DOTALL
        )
        names: dict[str, Any] = {}
        exec(code, names)
        await names["agent"]("acme")
    chat, agent = (span.to_message() for span in exporter.delivered["acme"])
    assert (chat.name, agent.name, chat.parent_span_id) == ("chat", "invoke_agent", agent.span_id)
    assert [event.name for event in agent.events] == ["It", "depends"]
