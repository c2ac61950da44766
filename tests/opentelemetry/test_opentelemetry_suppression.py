"""The batcher's own requests are not traced, even if httpx is instrumented; those of the program are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping

import httpx
import pytest
import trio

from opentelemetry import context as otel_context
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled, is_instrumentation_enabled
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.opentelemetry.support import in_thread, provider_of, recorder_of
from tests.support.batchers import make_span, watched_batcher
from tests.support.processes import DEADLINE
from trio_spanbatch import BatchPolicy, ExportResult, Loss, OTLPExporter, Refused, SpanBatch, SpanBatcher
from trio_spanbatch._runtime import suppression
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter, OTLPReceiver

# Kinds in protobuf.
CLIENT = 3


@pytest.fixture
def instrumented() -> Iterator[TracerProvider]:
    """Instrument all of httpx; yield the provider that receives the spans."""
    provider = provider_of()
    HTTPXClientInstrumentor().instrument(tracer_provider=provider)
    yield provider
    HTTPXClientInstrumentor().uninstrument()


def urls_of(recorder: InMemorySpanExporter) -> list[object]:
    """Return the URLs that were traced."""
    spans = recorder.get_finished_spans()
    return [(span.attributes or {}).get("http.url") or (span.attributes or {}).get("url.full") for span in spans]


def assert_enabled(*, everything: bool) -> None:
    assert is_instrumentation_enabled() is everything
    assert is_http_instrumentation_enabled() is everything


# -- with httpx instrumented -------------------------------------------------------------------------------------


async def test_with_httpx_instrumented_the_exporters_requests_are_not_traced_and_the_programs_are(
    instrumented: TracerProvider,
) -> None:
    async with OTLPReceiver(path=None) as receiver:
        async with watched_batcher(OTLPExporter(receiver.url), BatchPolicy(max_spans=2, max_delay=0.01)) as batcher:
            instrumented.add_span_processor(BatcherSpanProcessor(batcher))
            tracer = instrumented.get_tracer("program")
            for _ in range(5):
                with tracer.start_as_current_span("agent"):
                    async with httpx.AsyncClient() as client:
                        await client.get(receiver.url.replace("/v1/traces", "/tool"))
                await batcher.flush()
        assert batcher.statistics().accepted == 10
        ours = [request for request in receiver.requests if request.target == "/v1/traces"]
        tools = [request for request in receiver.requests if request.target == "/tool"]
    assert len(ours) >= 5
    # No context is propagated with requests that are not traced.
    assert [request.header("traceparent") for request in ours] == [None] * len(ours)
    assert all(request.header("traceparent") for request in tools)
    stored = receiver.stored["default"]
    assert sorted(span.name for span in stored) == ["GET"] * 5 + ["agent"] * 5
    assert [span.kind for span in stored if span.name == "GET"] == [CLIENT] * 5


async def test_requests_are_not_traced_without_the_processor_either(instrumented: TracerProvider) -> None:
    recorder = recorder_of(instrumented)
    async with OTLPReceiver() as receiver:
        with instrumented.get_tracer("program").start_as_current_span("around everything"):
            async with watched_batcher(OTLPExporter(receiver.url)) as batcher:
                batcher.add_span_nowait("default", make_span())
                await batcher.flush()
                batcher.add_span_nowait("other", make_span())
    assert len(receiver.requests) == 2
    assert [span.name for span in recorder.get_finished_spans()] == ["around everything"]


async def test_requests_of_an_individually_instrumented_client_are_not_traced() -> None:
    provider = provider_of()
    recorder = recorder_of(provider)
    async with OTLPReceiver() as receiver, httpx.AsyncClient(trust_env=False) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
        async with watched_batcher(OTLPExporter(receiver.url, client=client)) as batcher:
            batcher.add_span_nowait("default", make_span())
            await batcher.flush()
            assert urls_of(recorder) == []
            await client.post(receiver.url)
    assert urls_of(recorder) == [receiver.url]


async def test_requests_of_auth_and_on_loss_are_not_traced(instrumented: TracerProvider) -> None:
    recorder = recorder_of(instrumented)
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    requests: list[str] = []

    async def auth(location: str) -> Mapping[str, str]:
        async with OTLPReceiver() as tokens, httpx.AsyncClient() as client:
            await client.get(tokens.url)
        await trio.to_thread.run_sync(assert_all_suppressed)
        requests.append("auth")
        return {"Authorization": "Bearer token"}

    def on_loss(loss: Loss) -> None:
        client = httpx.Client(transport=transport)
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=instrumented)
        client.get("http://pager.test/")
        requests.append(loss.outcome)

    def assert_all_suppressed() -> None:
        assert_enabled(everything=False)

    async with OTLPReceiver(answers=lambda _: None, path="/elsewhere") as receiver:
        exporter = OTLPExporter(receiver.url.replace("/elsewhere", "/v1/traces"), auth=auth)
        async with watched_batcher(exporter, on_loss=on_loss) as batcher:
            batcher.add_span_nowait("default", make_span())
    assert requests == ["auth", "rejected"]
    assert urls_of(recorder) == []


# -- where tracing is suppressed ---------------------------------------------------------------------------------


async def test_tracing_is_suppressed_in_all_tasks_of_the_batcher_and_nowhere_else(autojump_clock: object) -> None:
    seen: list[str] = []

    class Exporter:
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.lowlevel.checkpoint()
            assert_enabled(everything=False)
            seen.append("export")
            return Refused("no")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            assert_enabled(everything=False)
            seen.append("aclose")

    def on_loss(loss: Loss) -> None:
        assert_enabled(everything=False)
        seen.append("on_loss")

    async def task() -> None:
        await trio.sleep(1)
        assert_enabled(everything=True)
        seen.append("task")

    assert_enabled(everything=True)
    async with watched_batcher(Exporter(), on_loss=on_loss) as batcher, trio.open_nursery() as nursery:
        assert_enabled(everything=True)
        nursery.start_soon(task)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
        assert_enabled(everything=True)
    assert_enabled(everything=True)
    assert seen == ["export", "on_loss", "task", "aclose"]


def test_all_suppression_keys_that_packages_read_are_set() -> None:
    """New packages read the keys of the API, old ones the plain key, and those for HTTP a third one."""
    keys = (
        otel_context._SUPPRESS_INSTRUMENTATION_KEY,
        otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY,
        "suppress_instrumentation",
    )

    def suppressed() -> list[object]:
        suppression.suppress_instrumentation()
        return [otel_context.get_value(key) for key in keys]

    assert in_thread(suppressed) == [True] * 3
    assert [otel_context.get_value(key) for key in keys] == [None] * 3


async def test_a_batcher_entered_in_a_context_with_suppressed_tracing_keeps_it(autojump_clock: object) -> None:
    token = otel_context.attach(otel_context.set_value("suppress_instrumentation", True))
    async with watched_batcher(InMemoryExporter()):
        assert not is_instrumentation_enabled()
    assert not is_instrumentation_enabled()
    otel_context.detach(token)


def test_an_older_api_without_a_key_for_http_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def suppressed() -> tuple[bool, bool]:
        suppression.suppress_instrumentation()
        monkeypatch.undo()
        return is_instrumentation_enabled(), bool(
            otel_context.get_value(otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY)
        )

    monkeypatch.delattr(otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
    assert in_thread(suppressed) == (False, False)


# -- without OpenTelemetry ---------------------------------------------------------------------------------------

WITHOUT = """
import sys

class NotThere:
    def find_spec(self, name, path=None, target=None):
        if name in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotThere())
"""


def run_without(missing: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    source = WITHOUT.format(missing=missing) + program
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=DEADLINE)


def test_without_opentelemetrys_api_a_batcher_works() -> None:
    program = """
import trio
from trio_spanbatch import Span, SpanBatcher, SpanContext
from trio_spanbatch.testing import InMemoryExporter

async def main():
    async with SpanBatcher(InMemoryExporter()) as batcher:
        batcher.add_span_nowait("default", Span("work", SpanContext(1, 1), start_time=1, end_time=2))
    print(batcher.statistics().delivered)

trio.run(main)
assert "opentelemetry.context" not in sys.modules
"""
    ended = run_without(("opentelemetry.context",), program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.sdk.trace"])
def test_without_the_extra_the_bridge_says_how_to_install_it(missing: str) -> None:
    ended = run_without((missing,), "import trio_spanbatch.opentelemetry\n")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: trio_spanbatch.opentelemetry needs OpenTelemetry's SDK: "
        "pip install 'trio-spanbatch[opentelemetry]'"
    )


def test_the_batcher_does_not_import_the_sdk() -> None:
    ended = run_without(("opentelemetry.sdk",), "import trio_spanbatch, trio_spanbatch.testing\n")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_batcher_needs_no_bridge() -> None:
    assert SpanBatcher(InMemoryExporter())._shared.feeders == []
