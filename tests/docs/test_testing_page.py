"""Everything on the page about testing runs, and is typed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.processes import run_to_end

EXAMPLE = PROJECT / "docs" / "examples" / "travel_desk"


def test_every_block_of_the_page_and_the_tests_of_the_travel_desk_pass() -> None:
    script = PROJECT / "tests" / "support" / "testing_page.py"
    ended = run_to_end([sys.executable, script, "-p", "no:cacheprovider"], environ=os.environ, together=True)
    assert ended.returncode == 0, ended.stdout
    blocks = len(re.findall("^```python", (PROJECT / "docs" / "testing.md").read_text(), re.MULTILINE))
    assert ended.stdout.startswith(f"{blocks} blocks and the travel desk"), ended.stdout
    assert len(re.findall(r"^\d+ passed in ", ended.stdout, re.MULTILINE)) == 2, ended.stdout


def test_the_travel_desk_runs_by_itself_and_says_what_it_needs() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ended = run_to_end([sys.executable, "-W", "error", EXAMPLE / "travel_desk.py"], environ=environ, together=True)
    assert (ended.returncode, ended.stdout.partition(",")[0]) == (
        1,
        "set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server",
    )


USERS_PROGRAM_OF_SPANS = """
import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import trio
from opentelemetry.sdk.trace import TracerProvider

from trio_spanbatch import (
    DROP, BatchPolicy, ConsoleExporter, FlushReport, InstrumentationScope, JSONFileExporter, Limits, Loss,
    OTLPExporter, Resource, RetryPolicy, SpanBatcher, SpanBatcherStatistics, SpanExporter, SpanKind, Spool, StatusCode,
    exit_on_sigterm, scrub,
)
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, background_batcher, span, traced, use_location
from trio_spanbatch.tracing import ActiveSpan, Tracer, current_span

hide = scrub(keys=["prompt"], patterns=["[0-9]{16}"], replacement="***")


def redact(key: str, value: Any) -> Any:
    return DROP if key == "photo" else hide(key, value)


def tell(loss: Loss) -> None:
    print(f"{loss.count} {loss.outcome}: {loss}")


async def main(folder: Path) -> None:
    exporter = JSONFileExporter(folder / "spans.jsonl", max_bytes=1_000_000, keep=3)
    spool = Spool(folder / "spool")
    with exit_on_sigterm():
        async with SpanBatcher(
            exporter, batch=BatchPolicy(max_delay=1), limits=Limits(max_exports=4), retry=RetryPolicy(initial=0.5),
            spool=spool, redact=redact, max_attribute_bytes=1000, on_loss=tell,
        ) as batcher:
            scope = InstrumentationScope("agents", version="1")
            tracer = Tracer(batcher, location="acme", resource=Resource({"service.name": "desk"}), scope=scope)

            @tracer.traced
            def work(number: int) -> str:
                return str(number)

            @tracer.traced("stream", kind=SpanKind.CLIENT, location="globex")
            async def stream(prompt: str) -> AsyncIterator[str]:
                yield prompt

            @tracer.traced
            def parts() -> Iterator[int]:
                yield 1

            with tracer.span("chat", kind=SpanKind.CLIENT, attributes={"model": "small"}) as chat:
                chat.set_attribute("tokens", 120)
                chat.set_attributes({"tools": ["a", "b"]})
                chat.add_event("first token", {"after": 0.5})
                chat.set_status(StatusCode.OK)
                current: ActiveSpan | None = current_span()
                text: str = work(3)
                answers: list[str] = [answer async for answer in stream("hello")]
                print(text, answers, list(parts()), chat.context.trace_id, current, tracer.dropped)
            report: FlushReport = await batcher.flush()
            statistics: SpanBatcherStatistics = batcher.statistics()
            print(report, statistics)


@traced
async def agent(name: str) -> int:
    with use_location("acme"), span("chat", attributes={"agent": name}) as chat:
        chat.set_attribute("tokens", 12)
    return 1


def on_asyncio() -> None:
    provider = TracerProvider()
    with background_batcher(ConsoleExporter(color=False), location="acme", strict=True) as processor:
        kept: BatcherSpanProcessor = processor
        provider.add_span_processor(kept)
        number: int = asyncio.run(agent("a"))
        print(number, kept.dropped, kept.batcher.statistics())


def made() -> tuple[SpanExporter, SpanExporter]:
    return mlflow("http://localhost:5000"), OTLPExporter.from_env(location_header="X-Scope-OrgID")


if __name__ == "__main__":
    trio.run(main, Path("."))
    on_asyncio()
"""

USERS_PROGRAM = """
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from trio_spanbatch import Delivered, Refused, Span, SpanBatch, SpanBatcher, SpanContext, TryLater
from trio_spanbatch.testing import (
    Answer, Drip, ExportedSpans, Hang, InMemoryExporter, MemoryNetwork, MemoryTransport, OTLPReceiver, Outcome,
    ReceivedRequest, Reset, SpanDicts, exporting_to, outage, partial_success, poison, rate_limited, slow,
)


@pytest.fixture
def desk(span_batcher: SpanBatcher) -> Iterator[SpanBatcher]:
    yield span_batcher


@pytest.mark.span_batcher(allow_losses=True, allow_unused_answers=True)
async def test_all(
    desk: SpanBatcher,
    otlp_receiver: OTLPReceiver,
    exported_spans: ExportedSpans,
    autojump_clock: trio.testing.MockClock,
) -> None:
    def answer(request: ReceivedRequest) -> Outcome | int | None:
        return 503 if request.header("x-tenant") else None

    otlp_receiver.set_answers([503, None, Answer(429), Reset(), Hang(), Drip([b""]), outage(1), slow(2)])
    otlp_receiver.set_answers(answer)
    otlp_receiver.set_answers(poison(lambda span: span.name == "bad"))
    otlp_receiver.set_answers((partial_success(1, "no"), rate_limited(2)))
    otlp_receiver.set_answers(None)
    desk.add_span_nowait("acme", Span("chat", SpanContext(1, 1), start_time=1, end_time=2))
    await desk.flush()
    otlp_receiver.assert_delivered("acme", ["chat"])
    otlp_receiver.assert_answers_used()
    spans: SpanDicts = exported_spans.at("acme")
    names: list[str] = [span["name"] for span in spans] + exported_spans.locations
    trees = spans.tree("status"), exported_spans.tree()["acme"], names
    network: MemoryNetwork = otlp_receiver.network
    transport: MemoryTransport = otlp_receiver.memory_transport()
    print(trees, network, transport)


def step(batch: SpanBatch) -> Delivered | Refused | None:
    return Refused("no") if batch.location == "acme" else None


def test_without_pytest() -> None:
    async def program() -> None:
        async with SpanBatcher():
            pass

    for exporter in (InMemoryExporter(step), InMemoryExporter([TryLater("503"), ValueError(), Hang(), None])):
        with exporting_to(exporter) as programs:
            trio.run(program)
        programs.assert_no_losses()
    with OTLPReceiver(listen=False, answers=[503]) as receiver, exporting_to(receiver.exporter):
        trio.run(program)
"""


@pytest.mark.long
def test_mypy_and_pyright_find_nothing_in_a_users_program_that_uses_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_users_program.py").write_text(USERS_PROGRAM)
    (tmp_path / "users_program.py").write_text(USERS_PROGRAM_OF_SPANS)
    for name in ("travel_desk.py", "test_travel_desk.py"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text())
    binaries = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    (tmp_path / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "strict", "extraPaths": ["{PROJECT}"]}}')
    for command in ([binaries / "mypy", "--strict", "."], [binaries / "pyright", "."]):
        ended = run_to_end(command, folder=tmp_path, environ=environ, together=True)
        assert ended.returncode == 0, ended.stdout
