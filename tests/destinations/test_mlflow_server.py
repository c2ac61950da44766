"""mlflow() against a real MLflow server, which stores the sent traces span for span."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.cli.support import run_command
from tests.destinations.mlflow_support import (
    MLflowServer,
    experiment_of,
    running_mlflow,
    stored_spans,
    wait_in_real_time,
)
from tests.destinations.mlflow_traces import TraceMaker, assert_stored
from tests.support.paths import PROJECT
from trio_spanbatch import BatchPolicy, Delivered, Loss, Refused, RetryPolicy, Span, SpanBatcher
from trio_spanbatch._http.responses import interpret_response
from trio_spanbatch.destinations import mlflow

pytestmark = pytest.mark.long

_TRACE_IDS = itertools.count(1)
RETRY = RetryPolicy(initial=0.2, maximum=1.0, attempt_timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


def assert_all_stored(server: MLflowServer, experiment: str, traces: Sequence[Sequence[Span]]) -> None:
    for spans in traces:
        trace = server.trace(spans[0].context.trace_id)
        assert experiment_of(trace) == experiment
        assert_stored(stored_spans(trace), spans)


def all_of(traces: Sequence[Sequence[Span]]) -> list[Span]:
    return [span for spans in traces for span in spans]


async def test_traces_in_two_experiments_are_stored_span_for_span(server: MLflowServer) -> None:
    experiments = [server.create_experiment("first"), server.create_experiment("second")]
    maker = TraceMaker(1)
    sent = {experiment: maker.traces(25) for experiment in experiments}
    batch = BatchPolicy(max_spans=100, max_delay=0.2)
    async with SpanBatcher(mlflow(server.uri, environ={}), batch=batch, retry=RETRY) as batcher:
        for number in range(25):
            for experiment in experiments:
                await batcher.add_spans(experiment, sent[experiment][number])
        report = await batcher.flush()
    assert report.delivered == sum(len(all_of(traces)) for traces in sent.values()) > 250
    for experiment, traces in sent.items():
        assert_all_stored(server, experiment, traces)


async def test_nothing_is_lost_when_the_server_is_killed_and_restarted_half_way(server: MLflowServer) -> None:
    experiments = [server.create_experiment("killed"), server.create_experiment("killed too")]
    maker = TraceMaker(2)
    sent = {experiment: maker.traces(20) for experiment in experiments}
    batch = BatchPolicy(max_spans=20, max_delay=0.1)
    exporter = mlflow(server.uri, environ={})
    try:
        async with SpanBatcher(exporter, batch=batch, retry=RETRY, shutdown_timeout=240) as batcher:
            for experiment, traces in sent.items():
                await batcher.add_spans(experiment, all_of(traces[:10]))
            await wait_in_real_time(lambda: batcher.statistics().delivered > 0)
            server.kill()
            for experiment, traces in sent.items():
                await batcher.add_spans(experiment, all_of(traces[10:]))
            await wait_in_real_time(lambda: batcher.statistics().retries > 0)
            server.start()
    finally:
        server.start()
        server.wait_ready()
    statistics = batcher.statistics()
    assert statistics.delivered == statistics.accepted == sum(len(all_of(traces)) for traces in sent.values())
    for experiment, traces in sent.items():
        assert_all_stored(server, experiment, traces)


async def test_an_experiment_is_found_by_its_name(server: MLflowServer) -> None:
    names = ["support agents / été 東京", "100% & more? #1 + 2"]
    experiments = [server.create_experiment(name) for name in names]
    traces = [TraceMaker(number).traces(2) for number in (3, 4)]
    exporter = mlflow(server.uri, experiments="name", environ={})
    async with SpanBatcher(exporter, retry=RETRY) as batcher:
        for name, spans in zip(names, map(all_of, traces), strict=True):
            await batcher.add_spans(name, spans)
    for experiment, sent in zip(experiments, traces, strict=True):
        assert_all_stored(server, experiment, sent)


async def test_the_workspace_of_the_environment_selects_the_experiment_of_a_name(server: MLflowServer) -> None:
    server.create_workspace("team-a")
    experiments = {workspace: server.create_experiment("agents", workspace) for workspace in ("default", "team-a")}
    assert len(set(experiments.values())) == 2
    for number, (workspace, experiment) in enumerate(experiments.items()):
        traces = TraceMaker(10 + number).traces(2)
        exporter = mlflow(server.uri, experiments="name", environ={"MLFLOW_WORKSPACE": workspace})
        async with SpanBatcher(exporter, retry=RETRY) as batcher:
            await batcher.add_spans("agents", all_of(traces))
        assert batcher.statistics().rejected == 0
        for spans in traces:
            trace = server.trace(spans[0].context.trace_id, workspace)
            assert experiment_of(trace) == experiment
            assert_stored(stored_spans(trace), spans)
    # Ids do not find experiments of another workspace.
    async with SpanBatcher(mlflow(server.uri, environ={}), retry=RETRY) as batcher:
        await batcher.add_spans(experiments["team-a"], all_of(traces))
    assert batcher.statistics().rejected == len(all_of(traces))


async def test_default_is_the_experiment_of_the_environment(server: MLflowServer) -> None:
    experiment = server.create_experiment("of the environment")
    traces = TraceMaker(5).traces(2)
    exporter = mlflow(environ={"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_ID": experiment})
    async with SpanBatcher(exporter, retry=RETRY) as batcher:
        await batcher.add_spans("default", all_of(traces))
    assert_all_stored(server, experiment, traces)


@pytest.mark.parametrize(
    ("experiments", "location", "reason"),
    [
        ("id", "123456", "No Experiment with id=123456 exists; create it, or correct the location"),
        ("name", "nobody", "no experiment named 'nobody': create it, or correct the location"),
        ("name", "in the trash", "the experiment named 'in the trash' .* is deleted: restore it"),
    ],
)
async def test_spans_for_an_experiment_that_is_not_there_are_rejected_with_the_reason(
    server: MLflowServer, experiments: str, location: str, reason: str
) -> None:
    if location == "in the trash":
        server.delete_experiment(server.create_experiment(location))
    losses: list[Loss] = []
    exporter = mlflow(server.uri, experiments="id" if experiments == "id" else "name", environ={})
    async with SpanBatcher(exporter, retry=RETRY, on_loss=losses.append) as batcher:
        await batcher.add_spans(location, TraceMaker(6).trace(3))
    (loss,) = losses
    assert (loss.outcome, loss.count) == ("rejected", 3)
    assert re.search(reason, loss.reason)


def span_message(**fields: bytes) -> bytes:
    """Return a request of one span with ``fields`` in place of good ones."""
    # Each in a new trace: for a trace that it knows, the server ignores the experiment.
    span = {"trace_id": next(_TRACE_IDS).to_bytes(16, "big"), "span_id": b"\x07" * 8, "name": "work", **fields}
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(**span)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("experiment", "body", "status"),
    [
        (None, span_message(), 422),
        ("123456", span_message(), 404),
        ("seven", span_message(), 400),
        ("known", b"", 400),
        ("known", b"\xff", 400),
        ("known", span_message(trace_id=b""), 422),
        ("known", span_message(span_id=b"\x07" * 9), 422),
        # The server accepts an 8-byte trace id, so only we can refuse it.
        ("known", span_message(trace_id=b"\x07" * 8), 200),
        ("known", span_message(), 200),
    ],
    ids=["no experiment", "unknown", "not a number", "no spans", "unreadable", "no trace id", "long", "short", "good"],
)
async def test_the_server_answers_as_our_table_of_destinations_says(
    server: MLflowServer, experiment: str | None, body: bytes, status: int
) -> None:
    headers = {"content-type": "application/x-protobuf"}
    if experiment is not None:
        headers["x-mlflow-experiment-id"] = "0" if experiment == "known" else experiment
    async with httpx.AsyncClient(base_url=server.uri, timeout=60) as client:
        response = await client.post("/v1/traces", content=body, headers=headers)
    assert response.status_code == status
    result = interpret_response(status, response.headers, response.content, now=0)
    assert isinstance(result, Delivered if status == 200 else Refused)


async def test_a_span_that_arrives_again_is_stored_once(server: MLflowServer) -> None:
    experiment = server.create_experiment("repeated")
    spans = TraceMaker(8).trace(5)
    async with SpanBatcher(mlflow(server.uri, environ={}), retry=RETRY) as batcher:
        for _ in range(2):
            await batcher.add_spans(experiment, spans)
            assert (await batcher.flush()).delivered == 5
    assert_all_stored(server, experiment, [spans])


async def test_the_documented_example_runs(server: MLflowServer) -> None:
    page = (PROJECT / "docs" / "mlflow.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:1]
    server.create_experiment("support-agent")
    ended = await run_command(
        program=[sys.executable, "-W", "error", "-c", example], environ={"MLFLOW_TRACKING_URI": server.uri}
    )
    assert (ended.exit_code, ended.err) == (0, "")
    trace_id = int(ended.out.rpartition("tr-")[2], 16)
    assert [span.name for span in stored_spans(server.trace(trace_id))] == ["answer", "search"]
