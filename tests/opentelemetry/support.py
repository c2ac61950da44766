"""Helpers for tests of the bridge to OpenTelemetry: providers, spans and threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import trio

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Tracer
from tests.support.batchers import assert_conserved
from trio_spanbatch import EncodedSpan, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter

Returned = TypeVar("Returned")


def tracer_of(*processors: SpanProcessor, **options: Any) -> Tracer:
    """Return a tracer with ``processors``."""
    return provider_of(*processors, **options).get_tracer("tests")


def provider_of(*processors: SpanProcessor, **options: Any) -> TracerProvider:
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False, **options)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def recorder_of(provider: TracerProvider) -> InMemorySpanExporter:
    """Return an exporter that records the spans of ``provider``."""
    recorder = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(recorder))
    return recorder


def end_spans(tracer: Tracer, count: int) -> None:
    for number in range(count):
        tracer.start_span(f"span {number}").end()


def names(spans: Iterable[EncodedSpan]) -> list[str]:
    return [span.to_message().name for span in spans]


def delivered_names(exporter: InMemoryExporter) -> dict[str, list[str]]:
    """Return the names of the spans that were delivered, by location."""
    return {location: names(spans) for location, spans in exporter.delivered.items()}


def delivered_places(exporter: InMemoryExporter) -> dict[str, str]:
    """Return the location of each delivered span by its name. Names must be unique."""
    places = Counter((name, location) for location, found in delivered_names(exporter).items() for name in found)
    assert all(count == 1 for count in places.values())
    by_name = dict(places.keys())
    assert len(by_name) == len(places), f"a span was delivered to two locations: {places}"
    return by_name


def drops(processor: BatcherSpanProcessor) -> Mapping[str, int]:
    """Return the nonzero counts of dropped spans."""
    return {reason: count for reason, count in processor.dropped.items() if count}


def assert_all_counted(processor: BatcherSpanProcessor, batcher: SpanBatcher) -> None:
    """Assert that every span that ended is accounted for and none is on its way."""
    counts = processor.statistics()
    assert counts.ended == counts.accepted + counts.handed_over + sum(counts.dropped.values()), counts
    assert counts.handed_over == 0
    assert counts.accepted == batcher.statistics().accepted
    assert_conserved(batcher.statistics())


def in_thread(function: Callable[[], Returned]) -> Returned:
    """Call ``function`` in a new thread, and wait for it without letting trio run."""
    returned: list[Returned] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            returned.append(function())
        except BaseException as error:  # noqa: ASYNC103  # raised again in the other thread
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the thread is stuck"
    if raised:
        raise raised[0]
    return returned[0]


def tasks_named(word: str) -> list[str]:
    """Return the names of the current run's tasks that contain ``word``."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = [root]
    named = []
    while found:
        task = found.pop()
        named += [task.name] if word in task.name else []
        found += (child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return named


class ManualClock:
    """A clock that only advances when ``now`` is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SampleByName(Sampler):
    """Decides by the span's name only, regardless of its parent: ``drop...``, ``record...``, or sampled."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> SamplingResult:
        if name.startswith("drop"):
            return SamplingResult(Decision.DROP)
        return SamplingResult(Decision.RECORD_ONLY if name.startswith("record") else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "by name"
