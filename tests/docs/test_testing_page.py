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
def test_mypy_and_pyright_find_nothing_in_a_users_program_that_uses_all_of_the_kit(tmp_path: Path) -> None:
    (tmp_path / "test_users_program.py").write_text(USERS_PROGRAM)
    for name in ("travel_desk.py", "test_travel_desk.py"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text())
    binaries = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    (tmp_path / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "strict", "extraPaths": ["{PROJECT}"]}}')
    for command in ([binaries / "mypy", "--strict", "."], [binaries / "pyright", "."]):
        ended = run_to_end(command, folder=tmp_path, environ=environ, together=True)
        assert ended.returncode == 0, ended.stdout
