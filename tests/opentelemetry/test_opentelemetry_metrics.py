"""The batcher's own metrics follow the semantic conventions, and add up."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import attrs
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from opentelemetry.sdk.metrics import Meter, MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Metric, NumberDataPoint, Sum
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.semconv._incubating.attributes import otel_attributes
from opentelemetry.semconv._incubating.metrics import otel_metrics
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes
from tests.opentelemetry.support import end_spans, in_thread, tracer_of
from tests.spool.batchers import spooling_batcher
from tests.support.batchers import make_span, make_spans, watched_batcher
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    OTLPExporter,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch._http.auth import AuthError
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.testing import Answer, Hang, InMemoryExporter, OTLPReceiver, partial_success

QUEUE_SIZE = "otel.sdk.processor.span.queue.size"
QUEUE_CAPACITY = "otel.sdk.processor.span.queue.capacity"
PROCESSED = "otel.sdk.processor.span.processed"
INFLIGHT = "otel.sdk.exporter.span.inflight"
EXPORTED = "otel.sdk.exporter.span.exported"
DURATION = "otel.sdk.exporter.operation.duration"
UP = "trio_spanbatch.endpoint.up"
STATE_DURATION = "trio_spanbatch.endpoint.state.duration"
ATTEMPTS = "trio_spanbatch.endpoint.attempts"
NEXT_PROBE = "trio_spanbatch.endpoint.next_probe"
OWN_NAMES = {UP, STATE_DURATION, ATTEMPTS, NEXT_PROBE}
NAMES = {QUEUE_SIZE, QUEUE_CAPACITY, PROCESSED, INFLIGHT, EXPORTED, DURATION}

MEMORY = {
    "otel.component.type": "trio_spanbatch.testing._memory_exporter.InMemoryExporter",
    "otel.component.name": "trio_spanbatch.testing._memory_exporter.InMemoryExporter/0",
}
PROCESSOR = {
    "otel.component.type": "trio_spanbatch.opentelemetry.BatcherSpanProcessor",
    "otel.component.name": "trio_spanbatch.opentelemetry.BatcherSpanProcessor/0",
}


class Metrics:
    """A meter provider, and the data read from it."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def read(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        ((scope,),) = [resource.scope_metrics for resource in data.resource_metrics]
        assert scope.scope.name == "trio_spanbatch"
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        metric = self.read().get(name)
        return [] if metric is None else list(metric.data.data_points)

    def by_error(self, name: str) -> dict[str | None, float]:
        """Return a metric's values by their ``error.type``, without zeros."""
        points: list[NumberDataPoint] = self.points(name)
        values = {error_of(point): point.value for point in points}
        assert len(values) == len(points), points
        return {error: value for error, value in values.items() if value}

    def total(self, name: str) -> float:
        return sum(self.by_error(name).values())

    def assert_conserved(self, ended: int | None = None) -> None:
        processed = self.by_error(PROCESSED)
        assert processed.get(None, 0) == self.total(EXPORTED) + self.total(INFLIGHT)
        assert min(self.total(INFLIGHT), self.total(QUEUE_SIZE)) >= 0
        if ended is not None:
            assert ended == sum(processed.values()) + self.total(QUEUE_SIZE)


def error_of(point: Any) -> str | None:
    error: str | None = point.attributes.get("error.type")
    return error


def hanging() -> InMemoryExporter:
    return InMemoryExporter(delay=math.inf)


# -- names and units ---------------------------------------------------------------------------------------------

CONVENTIONS: list[tuple[str, Any, type, bool | None]] = [
    (QUEUE_SIZE, otel_metrics.create_otel_sdk_processor_span_queue_size, Sum, False),
    (QUEUE_CAPACITY, otel_metrics.create_otel_sdk_processor_span_queue_capacity, Sum, False),
    (PROCESSED, otel_metrics.create_otel_sdk_processor_span_processed, Sum, True),
    (INFLIGHT, otel_metrics.create_otel_sdk_exporter_span_inflight, Sum, False),
    (EXPORTED, otel_metrics.create_otel_sdk_exporter_span_exported, Sum, True),
    (DURATION, otel_metrics.create_otel_sdk_exporter_operation_duration, Histogram, None),
]


@pytest.mark.parametrize(("name", "create", "kind", "is_monotonic"), CONVENTIONS, ids=[row[0] for row in CONVENTIONS])
async def test_names_units_and_kinds_are_those_of_the_semantic_conventions(
    autojump_clock: MockClock, name: str, create: Any, kind: type, is_monotonic: bool | None
) -> None:
    theirs = InMemoryMetricReader()
    instrument = create(MeterProvider([theirs], shutdown_on_exit=False).get_meter("theirs"))
    record = getattr(instrument, "add", None) or instrument.record
    record(1)
    data: Any = theirs.get_metrics_data()
    expected = data.resource_metrics[0].scope_metrics[0].metrics[0]
    metrics = Metrics()
    async with watched_batcher(InMemoryExporter()) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
    metric = metrics.read()[name]
    assert (metric.name, metric.unit) == (expected.name, expected.unit) == (name, expected.unit)
    assert type(metric.data) is type(expected.data) is kind
    assert getattr(metric.data, "is_monotonic", None) is getattr(expected.data, "is_monotonic", None) is is_monotonic
    assert metric.description


async def test_there_are_no_other_metrics_than_those_of_the_conventions_and_of_the_endpoint_and_no_other_attributes(
    autojump_clock: MockClock,
) -> None:
    allowed = {
        otel_attributes.OTEL_COMPONENT_NAME,
        otel_attributes.OTEL_COMPONENT_TYPE,
        error_attributes.ERROR_TYPE,
        server_attributes.SERVER_ADDRESS,
        server_attributes.SERVER_PORT,
        http_attributes.HTTP_RESPONSE_STATUS_CODE,
    }
    metrics = Metrics()
    async with OTLPReceiver(listen=False, answers=[None, Answer(400), partial_success(1)]) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        async with watched_batcher(exporter) as batcher:
            processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
            for number in range(5):
                with use_location(f"location {number}"):
                    end_spans(tracer_of(processor), 1)
                await batcher.flush()
    read = metrics.read()
    assert set(read) == (NAMES | OWN_NAMES) - {NEXT_PROBE}
    for metric in read.values():
        for point in metric.data.data_points:
            attributes = point.attributes or {}
            assert set(attributes) <= allowed
            assert not any("location" in str(value) for value in attributes.values())
    # Despite many locations, there are only as many series as outcomes.
    assert len(metrics.points(EXPORTED)) == 3


async def test_without_a_meter_provider_there_are_none(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        BatcherSpanProcessor(batcher)
        assert batcher._runtime.observers == []


# -- the queue ---------------------------------------------------------------------------------------------------


async def test_queue_size_counts_waiting_spans_and_capacity_the_most_that_may_wait(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    limits = Limits(max_queued_spans=10, location_idle_timeout=20)
    async with watched_batcher(InMemoryExporter(), limits=limits) as batcher:
        processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        tracer = tracer_of(processor)
        (size,), (capacity,) = metrics.points(QUEUE_SIZE), metrics.points(QUEUE_CAPACITY)
        assert (size.value, size.attributes) == (0, PROCESSOR)
        assert (capacity.value, capacity.attributes) == (10, PROCESSOR)
        end_spans(tracer, 3)
        batcher.add_spans_nowait("other", make_spans(2))
        in_thread(lambda: end_spans(tracer, 4))
        assert metrics.total(QUEUE_SIZE) == 3 + 2 + 4
        # Each location has a separate queue.
        assert metrics.total(QUEUE_CAPACITY) == 20
        metrics.assert_conserved(ended=9)
        await batcher.flush()
        assert metrics.total(QUEUE_SIZE) == 0
        await trio.sleep(30)
        assert metrics.total(QUEUE_CAPACITY) == 10
    metrics.assert_conserved(ended=9)


async def test_spans_are_processed_when_their_batch_is_passed_to_the_exporter(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    async with watched_batcher(InMemoryExporter(delay=5), BatchPolicy(max_spans=3, max_delay=9)) as batcher:
        processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        end_spans(tracer_of(processor), 4)
        assert metrics.by_error(PROCESSED) == {}
        await trio.testing.wait_all_tasks_blocked()
        assert metrics.by_error(PROCESSED) == {None: 3}
        (inflight,) = metrics.points(INFLIGHT)
        assert (inflight.value, inflight.attributes) == (3, MEMORY)
        assert (metrics.total(EXPORTED), metrics.total(QUEUE_SIZE)) == (0, 1)
        await trio.sleep(5)
        await trio.testing.wait_all_tasks_blocked()
        assert (metrics.total(EXPORTED), metrics.total(INFLIGHT)) == (3, 0)
        metrics.assert_conserved(ended=4)
    assert metrics.by_error(PROCESSED) == metrics.by_error(EXPORTED) == {None: 4}


async def test_dropped_spans_are_processed_with_the_reason_as_error_type(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    batcher = SpanBatcher(hanging(), limits=Limits(max_queued_spans=2), shutdown_timeout=0)
    processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
    tracer = tracer_of(processor)
    async with batcher:
        end_spans(tracer, 7)
        tracer.start_span("wrong", start_time=-1).end()
    end_spans(tracer, 3)
    processed = metrics.by_error(PROCESSED)
    assert {error: count for error, count in processed.items() if error in processor.dropped} == {
        "queue_full": 5,
        "invalid": 1,
        "already_shutdown": 3,
    }
    metrics.assert_conserved(ended=11)


async def test_spans_handed_back_from_the_queue_are_processed_as_undelivered_and_never_exported(
    autojump_clock: MockClock,
) -> None:
    metrics = Metrics()
    limits = Limits(max_exports=1)
    async with watched_batcher(hanging(), BatchPolicy(max_spans=2), limits=limits, shutdown_timeout=1) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_spans_nowait("hangs", make_spans(2))
        await trio.testing.wait_all_tasks_blocked()
        batcher.add_spans_nowait("waits", make_spans(3))
    assert batcher.statistics().undelivered == 5
    assert metrics.by_error(PROCESSED) == {None: 2, "undelivered": 3}
    assert metrics.by_error(EXPORTED) == {"timeout": 2}
    metrics.assert_conserved(ended=5)


# -- exports -----------------------------------------------------------------------------------------------------


async def test_each_span_is_exported_once_and_rejected_ones_carry_an_error_type(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    results: list[ExportResult] = [
        Delivered(),
        Delivered(rejected=1, message="too old"),
        Refused("no", 403),
        Refused("no"),
        TryLater("busy", status_code=503),
        Delivered(),
    ]
    async with watched_batcher(InMemoryExporter(results)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        for _ in range(5):
            batcher.add_spans_nowait("default", make_spans(3))
            await batcher.flush()
            metrics.assert_conserved()
    assert metrics.by_error(EXPORTED) == {None: 3 + 2 + 3, "rejected": 1 + 3, "403": 3}


async def test_exhausted_retries_have_the_last_status_as_error_type(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    exporter = InMemoryExporter(lambda _: TryLater("busy", status_code=503))
    async with watched_batcher(exporter, retry=RetryPolicy(max_elapsed=5)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
    assert metrics.by_error(EXPORTED) == {"503": 1}
    (point,) = metrics.points(DURATION)
    assert (error_of(point), point.attributes["http.response.status_code"], point.count) == ("503", 503, 1)


async def test_isolation_exports_each_span_once(autojump_clock: MockClock) -> None:
    metrics = Metrics()

    def poisoned(batch: SpanBatch) -> ExportResult:
        bad = any(span.to_message().name == "bad" for span in batch.spans)
        return Refused("bad span", 400, isolate=True) if bad else Delivered()

    async with watched_batcher(InMemoryExporter(poisoned)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_spans_nowait("default", [*make_spans(5), make_span("bad"), *make_spans(4)])
        await batcher.flush()
        assert metrics.by_error(EXPORTED) == {None: 9, "400": 1}
        metrics.assert_conserved()
    # It was one export operation, despite several requests.
    (point,) = metrics.points(DURATION)
    assert (error_of(point), point.count) == ("400", 1)


# -- durations ---------------------------------------------------------------------------------------------------


async def test_duration_is_that_of_the_whole_operation_recorded_once(autojump_clock: MockClock) -> None:
    """The conventions: from the first attempt to the end of the last one, backoff included."""
    metrics = Metrics()
    results: list[ExportResult] = [TryLater("busy", after=7), TryLater("busy", after=3), Delivered(), Delivered()]
    async with watched_batcher(InMemoryExporter(results, delay=2)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        for _ in range(2):
            batcher.add_span_nowait("default", make_span())
            await batcher.flush()
    (point,) = metrics.points(DURATION)
    assert point.attributes == MEMORY
    assert (point.count, point.min, point.max) == (2, 2, 2 + 7 + 2 + 3 + 2)


async def test_duration_has_the_status_of_the_last_response_and_the_cause_of_a_failure(
    autojump_clock: MockClock,
) -> None:
    metrics = Metrics()
    answers = [Answer(503), Answer(204), Answer(403), partial_success(1), Answer(200)]
    async with OTLPReceiver(listen=False, answers=answers) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        async with watched_batcher(exporter) as batcher:
            BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
            for _ in range(4):
                batcher.add_span_nowait("default", make_span())
                await batcher.flush()
    found = {
        (point.attributes.get("http.response.status_code"), error_of(point)): point.count
        for point in metrics.points(DURATION)
    }
    assert found == {(204, None): 1, (403, "403"): 1, (200, "rejected"): 1, (200, None): 1}
    assert metrics.by_error(EXPORTED) == {None: 2, "403": 1, "rejected": 1}


async def test_an_operation_without_a_response_has_no_status(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    async with watched_batcher(InMemoryExporter([OSError("a bug"), Hang()]), shutdown_timeout=10) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
        batcher.add_span_nowait("default", make_span())
    bug, hang = metrics.points(DURATION)
    assert bug.attributes == {**MEMORY, "error.type": "OSError"}
    assert (bug.count, bug.max) == (1, 0)
    assert hang.attributes == {**MEMORY, "error.type": "timeout"}
    assert (hang.count, hang.max) == (1, 9)
    assert metrics.by_error(EXPORTED) == {"OSError": 1, "timeout": 1}


class Broken(httpx.AsyncBaseTransport):
    """A server that fails to answer in the given way."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._error is None:
            await trio.sleep_forever()
        assert self._error is not None
        await trio.lowlevel.checkpoint()
        raise self._error


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (httpx.ConnectError("refused"), "ConnectError"),
        (httpx.ReadError("reset"), "ReadError"),
        (httpx.RemoteProtocolError("no HTTP"), "RemoteProtocolError"),
        (httpx.LocalProtocolError("a header"), "LocalProtocolError"),
        (httpx.ConnectTimeout("slow"), "timeout"),
        (None, "timeout"),
    ],
)
async def test_the_error_type_of_an_export_is_the_cause_of_the_last_attempt(
    autojump_clock: MockClock, error: Exception | None, error_type: str
) -> None:
    metrics = Metrics()
    exporter = OTLPExporter("http://collector.test/v1/traces", transport=Broken(error), timeout=5)
    async with watched_batcher(exporter, retry=RetryPolicy(max_elapsed=3)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
    assert metrics.by_error(EXPORTED) == {error_type: 1}
    assert [error_of(point) for point in metrics.points(DURATION)] == [error_type]


@pytest.mark.parametrize(
    ("results", "error_type"),
    [
        ([TryLater("busy", status_code=503), TryLater("refused", cause="ConnectError")], "ConnectError"),
        ([TryLater("refused", cause="ConnectError"), TryLater("busy", status_code=503)], "503"),
        ([TryLater("refused", cause="ConnectError"), Hang()], "timeout"),
        ([TryLater("refused", cause="ConnectError"), OSError("a bug")], "OSError"),
        ([TryLater("refused", cause="ConnectError"), trio.TooSlowError()], "timeout"),
        ([TryLater("refused", cause="ConnectError"), TimeoutError()], "timeout"),
        (
            [TryLater("refused"), ExceptionGroup("a nursery", [ExceptionGroup("another", [OSError("a bug")])])],
            "OSError",
        ),
        (
            [TryLater("refused"), ExceptionGroup("a nursery", [OSError("a bug"), ValueError("another")])],
            "ExceptionGroup",
        ),
        ([TryLater("refused", cause="ConnectError"), Refused("no", 403)], "403"),
        ([TryLater("refused", cause="ConnectError"), Refused("no", cause="AuthError")], "AuthError"),
        ([TryLater("refused", cause="ConnectError"), TryLater("an exporter that says nothing")], "undelivered"),
    ],
)
async def test_of_several_attempts_the_last_one_gives_the_error_type(
    autojump_clock: MockClock, results: list[Any], error_type: str
) -> None:
    first, then = results
    metrics = Metrics()
    exporter = InMemoryExporter(itertools.chain([first], itertools.repeat(then)))
    retry = RetryPolicy(initial=1, max_elapsed=4, attempt_timeout=10)
    async with watched_batcher(exporter, retry=retry) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
    assert metrics.by_error(EXPORTED) == {error_type: 1}


async def test_the_error_type_of_an_exporter_that_returns_none_is_type_error(autojump_clock: MockClock) -> None:
    class ReturnsNothing(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> Any:
            await trio.lowlevel.checkpoint()

    metrics = Metrics()
    async with watched_batcher(ReturnsNothing()) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
    assert metrics.by_error(EXPORTED) == {"TypeError": 1}


@pytest.mark.parametrize(("failure", "error_type"), [(AuthError("no token"), "AuthError"), (None, "timeout")])
async def test_the_error_type_of_an_export_without_credentials_is_that_of_its_auth(
    autojump_clock: MockClock, failure: Exception | None, error_type: str
) -> None:
    async def auth(_: str) -> dict[str, str]:
        if failure is None:
            await trio.sleep_forever()
        assert failure is not None
        await trio.lowlevel.checkpoint()
        raise failure

    metrics = Metrics()
    exporter = OTLPExporter("http://collector.test/v1/traces", auth=auth, transport=Broken(None), timeout=5)
    async with watched_batcher(exporter, retry=RetryPolicy(max_elapsed=3)) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
        await batcher.flush()
    assert metrics.by_error(EXPORTED) == {error_type: 1}


async def test_an_attempt_that_the_drain_cuts_short_is_a_timeout_and_one_before_it_keeps_its_cause(
    autojump_clock: MockClock,
) -> None:
    steps: list[tuple[Any, str]] = [
        (Hang(), "timeout"),
        (TryLater("refused", after=100, cause="ConnectError"), "ConnectError"),
    ]
    for step, error_type in steps:
        metrics = Metrics()
        async with watched_batcher(InMemoryExporter([step]), shutdown_timeout=1) as batcher:
            BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
            batcher.add_spans_nowait("default", make_spans(2))
        assert metrics.by_error(EXPORTED) == {error_type: 2}


async def test_exporters_cause_at_most_a_hundred_error_types(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    exporter = InMemoryExporter([Refused("no", cause=f"{number} {'x' * 1000}") for number in range(200)])
    async with watched_batcher(exporter) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        for _ in range(200):
            batcher.add_span_nowait("default", make_span())
            await batcher.flush()
    found = metrics.by_error(EXPORTED)
    assert len(found) == 100
    assert found["_OTHER"] > 100
    assert sum(found.values()) == 200
    assert max(len(str(error)) for error in found) <= 100


async def test_spans_that_go_back_to_the_spool_are_not_undelivered(autojump_clock: MockClock) -> None:
    """They are in flight again with the next delivery, and processed once."""
    metrics = Metrics()
    exporter = InMemoryExporter(
        lambda batch: TryLater("busy", status_code=429) if trio.current_time() < 60 else Delivered()
    )
    batcher = spooling_batcher(exporter, batch=BatchPolicy(max_delay=0.1), retry=RetryPolicy(max_elapsed=5, maximum=1))
    async with batcher:
        processor = BatcherSpanProcessor(batcher, location="default", meter_provider=metrics.provider)
        end_spans(tracer_of(processor), 4)
        await trio.sleep(15)
        assert batcher.statistics().delivered == 0
        assert metrics.by_error(EXPORTED) == {}
        assert metrics.by_error(PROCESSED) == {None: 4}
        assert metrics.total(INFLIGHT) in (0, 4)
        await trio.sleep(100)
        assert batcher.statistics().delivered == 4
        assert metrics.by_error(EXPORTED) == metrics.by_error(PROCESSED) == {None: 4}
        metrics.assert_conserved(4)


async def test_durations_have_no_buckets_unless_a_view_adds_them(autojump_clock: MockClock) -> None:
    for views, boundaries in (
        ((), ()),
        ((View(instrument_name=DURATION, aggregation=ExplicitBucketHistogramAggregation([1, 2])),), (1, 2)),
    ):
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False, views=views)
        async with watched_batcher(InMemoryExporter()) as batcher:
            BatcherSpanProcessor(batcher, meter_provider=provider)
            batcher.add_span_nowait("default", make_span())
        data: Any = reader.get_metrics_data()
        found = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        (point,) = found[DURATION].data.data_points
        assert tuple(point.explicit_bounds) == boundaries


async def test_durations_work_with_a_meter_that_does_not_support_bucket_advice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Meter.create_histogram

    def create_histogram(self: Meter, name: str, unit: str = "", description: str = "") -> Any:
        return create(self, name, unit, description)

    monkeypatch.setattr(Meter, "create_histogram", create_histogram)
    metrics = Metrics()
    async with watched_batcher(InMemoryExporter()) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        batcher.add_span_nowait("default", make_span())
    (point,) = metrics.points(DURATION)
    assert point.count == 1


async def test_a_failing_meter_does_not_affect_a_delivery(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("broken")

    metrics = Metrics()
    async with watched_batcher(InMemoryExporter()) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        (observer,) = batcher._runtime.observers
        monkeypatch.setattr(observer._duration, "record", fail)  # type: ignore[attr-defined]  # of BatcherMetrics
        batcher.add_span_nowait("default", make_span())
        assert (await batcher.flush()).delivered == 1
    assert "recording otel.sdk.exporter.operation.duration failed" in caplog.text


# -- components ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "server"),
    [
        ("http://collector.test/v1/traces", {"server.address": "collector.test", "server.port": 80}),
        ("https://collector.test/v1/traces", {"server.address": "collector.test", "server.port": 443}),
        ("http://[::1]:4318/v1/traces", {"server.address": "::1", "server.port": 4318}),
    ],
)
def test_an_otlp_exporter_is_named_by_the_conventions_with_its_server(
    endpoint: str, server: Mapping[str, object]
) -> None:
    metrics = Metrics()
    BatcherSpanProcessor(SpanBatcher(OTLPExporter(endpoint)), meter_provider=metrics.provider)
    (inflight,) = metrics.points(INFLIGHT)
    assert inflight.attributes == {
        "otel.component.type": otel_attributes.OtelComponentTypeValues.OTLP_HTTP_SPAN_EXPORTER.value,
        "otel.component.name": "trio_spanbatch.OTLPExporter/0",
        **server,
    }


def test_the_exporter_of_a_destination_is_an_otlp_exporter_too() -> None:
    metrics = Metrics()
    exporter = mlflow("http://mlflow.test:5000", experiment_id="1")
    BatcherSpanProcessor(SpanBatcher(exporter), meter_provider=metrics.provider)
    (inflight,) = metrics.points(INFLIGHT)
    assert inflight.attributes["otel.component.type"] == "otlp_http_span_exporter"
    assert (inflight.attributes["server.address"], inflight.attributes["server.port"]) == ("mlflow.test", 5000)


@attrs.define
class WithEndpoint:
    """A custom exporter, with an arbitrary endpoint."""

    endpoint: object

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("endpoint", [None, 5, "", "nowhere", "http://[half", "http://host:port"])
def test_an_invalid_endpoint_is_left_out(endpoint: object) -> None:
    metrics = Metrics()
    BatcherSpanProcessor(SpanBatcher(WithEndpoint(endpoint)), meter_provider=metrics.provider)
    (inflight,) = metrics.points(INFLIGHT)
    assert set(inflight.attributes) == {"otel.component.type", "otel.component.name"}


def test_components_of_a_meter_provider_have_distinct_names() -> None:
    metrics = Metrics()
    batchers = [SpanBatcher(InMemoryExporter()) for _ in range(3)]
    for batcher in batchers:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
    for name in (QUEUE_SIZE, INFLIGHT):
        found = [point.attributes["otel.component.name"] for point in metrics.points(name)]
        assert [each.rpartition("/")[2] for each in found] == ["0", "1", "2"]


async def test_counts_outlive_their_batcher_but_do_not_keep_it_alive(autojump_clock: MockClock) -> None:
    """A program may read its metrics for the last time after everything else is gone."""
    metrics = Metrics()
    assert (await use_a_batcher_and_drop_it(metrics))() is None
    assert metrics.by_error(EXPORTED) == {None: 1}
    assert metrics.by_error(PROCESSED) == {None: 1, "already_shutdown": 1}
    assert metrics.points(QUEUE_SIZE) == []


async def use_a_batcher_and_drop_it(metrics: Metrics) -> weakref.ref[SpanBatcher]:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        end_spans(tracer_of(processor), 1)
    end_spans(tracer_of(processor), 1)
    gone = weakref.ref(batcher)
    del batcher, processor
    gc.collect()
    return gone


# -- adding up -----------------------------------------------------------------------------------------------------

RESULTS = st.one_of(
    st.just(Delivered()),
    st.builds(Delivered, rejected=st.integers(0, 3)),
    st.builds(Refused, st.just("no"), st.sampled_from([None, 400, 403]), isolate=st.booleans()),
    st.builds(TryLater, st.just("later"), after=st.sampled_from([None, 0.5]), ambiguous=st.booleans()),
    st.builds(Hang),
    st.builds(OSError),
)


@given(st.lists(RESULTS, max_size=8), st.lists(st.integers(1, 6), max_size=12), st.integers(1, 8))
def test_the_metrics_add_up_at_every_moment(results: list[Any], ends: list[int], max_queued: int) -> None:
    metrics = Metrics()

    async def main() -> None:
        exporter = InMemoryExporter(results, delay=0.3)
        retry = RetryPolicy(attempt_timeout=1, max_elapsed=5)
        limits = Limits(max_queued_spans=max_queued, max_exports=2)
        async with watched_batcher(
            exporter, BatchPolicy(max_spans=3, max_delay=1), limits=limits, retry=retry, shutdown_timeout=3
        ) as batcher:
            processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
            tracer = tracer_of(processor)
            for number, count in enumerate(ends):
                with use_location(f"location {number % 3}"):
                    end_spans(tracer, count)
                metrics.assert_conserved(ended=processor.statistics().ended)
                await trio.sleep(0.25)
                metrics.assert_conserved(ended=processor.statistics().ended)
        metrics.assert_conserved(ended=sum(ends))
        statistics = batcher.statistics()
        assert metrics.total(QUEUE_SIZE) == metrics.total(INFLIGHT) == 0
        assert metrics.by_error(EXPORTED).get(None, 0) == statistics.delivered
        lost = sum(count for error, count in metrics.by_error(EXPORTED).items() if error is not None)
        handed_back = metrics.by_error(PROCESSED).get("undelivered", 0)
        assert lost + handed_back == statistics.rejected + statistics.undelivered

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_reader_in_another_thread_sees_consistent_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """It reads while locations come and go, and never sees an impossible number."""
    metrics = Metrics()
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            for name in (QUEUE_SIZE, INFLIGHT, EXPORTED, PROCESSED):
                wrong.extend(point for point in metrics.points(name) if point.value < 0)

    limits = Limits(max_locations=20)
    async with watched_batcher(InMemoryExporter(), limits=limits) as batcher:
        processor = BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        tracer = tracer_of(processor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read)
            for number in range(300):
                with use_location(f"location {number}"):
                    end_spans(tracer, 2)
                await batcher.flush()
            stop.set()
    assert wrong == []
    assert caplog.records == []
    metrics.assert_conserved(ended=600)
