"""Messages that arrive through the bridge equal those of the SDK's own OTLP exporter for the same spans.

`test_encoding_against_sdk` tests the encoder alone. Here spans go from a ``TracerProvider`` through the processor and
the batcher over HTTP, with all values that Hypothesis finds and the SDK can encode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from tests.opentelemetry.support import SampleByName, recorder_of
from tests.support.batchers import watched_batcher
from tests.support.span_strategies import SPAN_IDS, TRACE_IDS, WELL_FORMED_TEXTS
from tests.unit.spans.support import assert_same
from tests.unit.spans.test_encoding_against_sdk import LIMITS, PROGRAMS, without_what_the_sdk_leaves_out
from trio_spanbatch import BatchPolicy, OTLPExporter
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import OTLPReceiver

Program = Callable[[TracerProvider], object]


async def what_arrives(provider: TracerProvider, program: Program, **options: Any) -> ExportTraceServiceRequest:
    """Run ``program`` with a batcher behind ``provider``; return the one request that arrives."""
    async with OTLPReceiver(listen=False) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport(), **options)
        async with watched_batcher(exporter, BatchPolicy(max_spans=2048)) as batcher:
            processor = BatcherSpanProcessor(batcher)
            provider.add_span_processor(processor)
            program(provider)
        assert sum(processor.dropped.values()) == 0
        messages = [request.message for request in receiver.requests]
    if not messages:
        return ExportTraceServiceRequest()
    (message,) = messages
    assert message is not None
    return without_what_the_sdk_leaves_out(message)


# -- over real HTTP, against the SDK's own exporter --------------------------------------------------------------


def all_programs(provider: TracerProvider) -> None:
    tracers = (
        provider.get_tracer("bare"),
        provider.get_tracer("scope", "1.0", "https://schema/scope", {"scope.attribute": ["a", 1]}),
    )
    for tracer in tracers:
        assert isinstance(tracer, Tracer)
        for program in PROGRAMS:
            program(tracer)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
async def test_the_request_equals_that_of_the_sdks_own_exporter(
    limits: SpanLimits | None, compression: str | None
) -> None:
    resource = Resource({"service.name": "x", "list": ["a", "b"], "nested": {"a": [1, {"b": None}]}}, "https://schema")
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
    recorder = recorder_of(provider)
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url, compression=compression)
        async with watched_batcher(exporter, BatchPolicy(max_spans=2048)) as batcher:
            provider.add_span_processor(BatcherSpanProcessor(batcher))
            all_programs(provider)
        theirs = OTLPSpanExporter(receiver.url)
        await trio.to_thread.run_sync(theirs.export, recorder.get_finished_spans())
        await trio.to_thread.run_sync(theirs.shutdown)
    ours_arrived, theirs_arrived = receiver.requests
    assert ours_arrived.message is not None
    assert without_what_the_sdk_leaves_out(ours_arrived.message) == theirs_arrived.message
    assert len(theirs_arrived.spans) == len(recorder.get_finished_spans()) > 20


async def test_the_sdks_encoder_produces_what_its_exporter_sends() -> None:
    """The other tests here compare with the encoder, as it needs no socket."""
    provider = TracerProvider(shutdown_on_exit=False)
    recorder = recorder_of(provider)
    all_programs(provider)
    async with OTLPReceiver() as receiver:
        theirs = OTLPSpanExporter(receiver.url)
        await trio.to_thread.run_sync(theirs.export, recorder.get_finished_spans())
        await trio.to_thread.run_sync(theirs.shutdown)
    (request,) = receiver.requests
    assert request.message is not None
    assert without_what_the_sdk_leaves_out(request.message) == encode_spans(recorder.get_finished_spans())


@pytest.mark.parametrize(
    "sampler",
    [ALWAYS_ON, TraceIdRatioBased(0.5), ParentBased(TraceIdRatioBased(0.5)), SampleByName()],
    ids=["always", "ratio", "parent", "by name"],
)
async def test_the_sampling_of_the_sdk_is_kept(autojump_clock: MockClock, sampler: Sampler) -> None:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    recorder = recorder_of(provider)

    def program(provider: TracerProvider) -> None:
        tracer = provider.get_tracer("tests")
        for number in range(40):
            names = [f"{kind} {number}" for kind in ("sample", "record", "drop")]
            with ExitStack() as stack:
                for name in names[number % 3 :] + names:
                    stack.enter_context(tracer.start_as_current_span(name))

    arrived = await what_arrives(provider, program)
    spans = recorder.get_finished_spans()
    assert arrived == encode_spans(spans)
    assert all(span.context is not None and span.context.trace_flags.sampled for span in spans)
    assert len(spans) > 0


async def test_spans_of_several_providers_keep_their_resources(autojump_clock: MockClock) -> None:
    recorder = InMemorySpanExporter()
    providers = [
        TracerProvider(resource=Resource({"service.name": name}, schema), shutdown_on_exit=False)
        for name, schema in (("one", ""), ("two", ""), ("one", "https://schema"))
    ]

    def program(first: TracerProvider) -> None:
        (processor,) = first._active_span_processor._span_processors
        for provider in providers:
            provider.add_span_processor(SimpleSpanProcessor(recorder))
            if provider is not first:
                provider.add_span_processor(processor)
        for _ in range(3):
            for provider in providers:
                provider.get_tracer("tests").start_span("span").end()

    arrived = await what_arrives(providers[0], program)
    assert arrived == encode_spans(recorder.get_finished_spans())
    assert len(arrived.resource_spans) == 3


# -- all values that the SDK can encode --------------------------------------------------------------------------

TIMES = st.integers(0, 2**64 - 1)
# The types of attributes according to the SDK. It converts all others to text.
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        WELL_FORMED_TEXTS,
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.binary(max_size=50),
        st.none(),
        st.decimals(allow_nan=False),
    ),
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), values, max_size=4),
    ),
    max_leaves=6,
)
ATTRIBUTES: st.SearchStrategy[Any] = st.none() | st.dictionaries(st.text(max_size=10), VALUES, max_size=5)
TRACE_STATES = st.builds(
    lambda entries: TraceState(list(entries.items())),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True)
    ),
)
CONTEXTS = st.builds(
    SpanContext, TRACE_IDS, SPAN_IDS, st.booleans(), st.sampled_from([TraceFlags(0), TraceFlags(1)]), TRACE_STATES
)
NOWHERE = st.builds(
    SpanContext, TRACE_IDS | st.just(0), SPAN_IDS | st.just(0), st.booleans(), st.just(TraceFlags(0)), TRACE_STATES
)


@attrs.frozen
class Planned:
    """The data of a span for a test to start, fill and end."""

    name: str
    kind: SpanKind
    start_time: int
    end_time: int
    attributes: Mapping[str, Any] | None
    more_attributes: Mapping[str, Any] | None
    parent: SpanContext | None
    links: list[tuple[SpanContext, Mapping[str, Any] | None]]
    more_links: list[tuple[SpanContext, Mapping[str, Any] | None]]
    events: list[tuple[str, Mapping[str, Any] | None, int]]
    status: Status | None
    exception: Exception | None
    scope: int

    def run(self, tracers: list[trace.Tracer]) -> None:
        context = None if self.parent is None else trace.set_span_in_context(NonRecordingSpan(self.parent))
        span = tracers[self.scope % len(tracers)].start_span(
            self.name,
            context=context,
            kind=self.kind,
            attributes=self.attributes,
            links=[Link(*link) for link in self.links],
            start_time=self.start_time,
        )
        span.set_attributes(self.more_attributes or {})
        for link in self.more_links:
            span.add_link(*link)
        for event in self.events:
            span.add_event(*event)
        if self.exception is not None:
            span.record_exception(self.exception)
        if self.status is not None:
            span.set_status(self.status)
        span.end(self.end_time)


LINKS = st.lists(st.tuples(CONTEXTS | NOWHERE, ATTRIBUTES), max_size=3)
PLANNED = st.builds(
    Planned,
    name=WELL_FORMED_TEXTS,
    kind=st.sampled_from(SpanKind),
    start_time=TIMES,
    end_time=TIMES,
    attributes=ATTRIBUTES,
    more_attributes=ATTRIBUTES,
    parent=st.none() | CONTEXTS,
    links=LINKS,
    more_links=LINKS,
    events=st.lists(st.tuples(WELL_FORMED_TEXTS, ATTRIBUTES, TIMES), max_size=3),
    status=st.none()
    | st.builds(Status, st.sampled_from(StatusCode))
    | st.builds(Status, st.just(StatusCode.ERROR), WELL_FORMED_TEXTS),
    exception=st.none() | st.builds(ValueError, WELL_FORMED_TEXTS),
    scope=st.integers(0, 2),
)
LIMIT = st.none() | st.integers(0, 3)
SPAN_LIMITS = st.builds(
    SpanLimits,
    max_events=LIMIT,
    max_links=LIMIT,
    max_span_attributes=LIMIT,
    max_event_attributes=LIMIT,
    max_link_attributes=LIMIT,
    max_attribute_length=LIMIT,
    max_span_attribute_length=LIMIT,
)
SCOPES = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=5), st.none() | st.text(max_size=3), st.none() | st.text(max_size=3), ATTRIBUTES
    ),
    min_size=1,
    max_size=3,
)
RESOURCES = st.builds(Resource, ATTRIBUTES.map(lambda attributes: attributes or {}), st.text(max_size=5))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=60)
@given(st.lists(PLANNED, max_size=6), SCOPES, RESOURCES, SPAN_LIMITS)
def test_every_value_that_the_sdk_can_encode_arrives_in_the_same_message(
    planned: list[Planned], scopes: list[tuple[Any, ...]], resource: Resource, limits: SpanLimits
) -> None:
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
    recorder = recorder_of(provider)

    def program(provider: TracerProvider) -> None:
        tracers = [provider.get_tracer(*scope) for scope in scopes]
        for span in planned:
            span.run(tracers)

    # The SDK warns about each value that it converts or truncates.
    logging.disable(logging.WARNING)
    try:
        arrived = trio.run(what_arrives, provider, program, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)
    spans: list[ReadableSpan] = list(recorder.get_finished_spans())
    assert_same(arrived, encode_spans(spans))
