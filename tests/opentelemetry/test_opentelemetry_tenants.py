"""A span never goes to another tenant: regardless of how it ends and of what other code leaves behind."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
import trio

from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer
from tests.cli.support import run_command
from tests.opentelemetry.support import SampleByName, assert_all_counted, delivered_places, drops, in_thread, tracer_of
from tests.support.batchers import make_span, watched_batcher
from tests.support.paths import PROJECT
from trio_spanbatch import BatchPolicy, InvalidLocationError, SpanBatch, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.opentelemetry import _location as location_module
from trio_spanbatch.opentelemetry import _tally as tally_module
from trio_spanbatch.opentelemetry import _use_location as use_location_module
from trio_spanbatch.opentelemetry._use_location import used_location
from trio_spanbatch.testing import InMemoryExporter

DOCS = PROJECT / "docs"


class EndedByFinalizer:
    """Garbage in a reference cycle, like a wrapper of a stream, that ends a span when it is collected."""

    def __init__(self, span: trace.Span, finalize: Callable[[trace.Span], object] = trace.Span.end) -> None:
        self.span = span
        self.finalize = finalize
        self.myself = self

    def __del__(self) -> None:
        self.finalize(self.span)


def end(span: trace.Span) -> None:
    span.end()


def collect_as(tenant: str) -> None:
    """Run the garbage collector while another tenant's code runs."""
    token = context.attach(baggage.set_baggage("tenant", tenant))
    with use_location(tenant):
        gc.collect()
    context.detach(token)


@pytest.fixture(autouse=True)
def no_collection_but_ours() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def places_of(
    program: Callable[[Tracer], object], location: Any = "default", *, wrapper: Any = None, **options: Any
) -> tuple[dict[str, str], BatcherSpanProcessor]:
    """Run a program; return the locations of its spans."""
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher, location=location)
        program(tracer_of(wrapper(processor) if wrapper else processor, **options))
    assert_all_counted(processor, batcher)
    return delivered_places(exporter), processor


class Wrapper(SpanProcessor):
    """Passes on another ``ReadableSpan``, like processors that filter or change spans."""

    def __init__(self, inner: SpanProcessor, change: Callable[[SpanContext], SpanContext] = copy.copy) -> None:
        self.inner = inner
        self.change = change
        self.held: list[ReadableSpan] = []
        self.holds = False

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        self.inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        changed = ReadableSpan(
            span.name,
            self.change(span.context),
            span.parent,
            span.resource,
            span.attributes,
            start_time=span.start_time,
            end_time=span.end_time,
        )
        self.held.append(changed)
        if not self.holds:
            self.pass_on()

    def pass_on(self) -> None:
        held, self.held = self.held, []
        for span in held:
            self.inner.on_end(span)


def made_again(original: SpanContext) -> SpanContext:
    return SpanContext(original.trace_id, original.span_id, is_remote=False, trace_flags=original.trace_flags)


# -- spans that finalizers end -----------------------------------------------------------------------------------


async def test_a_span_that_a_finalizer_ends_goes_where_it_started(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            for number in range(50):
                EndedByFinalizer(tracer.start_span(f"of acme {number}"), end)
        with use_location("initech"), tracer.start_as_current_span("of initech"):
            EndedByFinalizer(tracer.start_span("child of initech"), end)
        collect_as("globex")

    places, _ = await places_of(program)
    assert places.pop("of initech") == places.pop("child of initech") == "initech"
    assert places == {f"of acme {number}": "acme" for number in range(50)}


async def test_any_number_of_spans_can_be_ended_by_finalizers_in_one_collection(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location_module, "MAX_GONE", 3)
    monkeypatch.setattr(location_module, "MAX_TRACES", 3)

    def program(tracer: Tracer) -> None:
        for number in range(50):
            with use_location(f"tenant {number}"):
                EndedByFinalizer(tracer.start_span(f"{number}"), end)
        collect_as("globex")

    places, _ = await places_of(program)
    assert places == {f"{number}": f"tenant {number}" for number in range(50)}


async def test_a_span_with_a_remote_parent_that_a_finalizer_ends_goes_where_it_started(autojump_clock: object) -> None:
    remote = NonRecordingSpan(SpanContext(5, 7, is_remote=True, trace_flags=TraceFlags(1)))

    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("of acme", context=trace.set_span_in_context(remote)), end)
        collect_as("globex")

    places, _ = await places_of(program)
    assert places == {"of acme": "acme"}


async def test_a_span_that_a_finalizer_ends_goes_to_the_location_that_baggage_named_at_its_start(
    autojump_clock: object,
) -> None:
    def program(tracer: Tracer) -> None:
        for tenant in ("acme", "initech"):
            request = baggage.set_baggage("tenant", tenant)
            EndedByFinalizer(tracer.start_span(f"of {tenant}", context=request), end)
        collect_as("globex")

    places, _ = await places_of(program, lambda _, ctx: str(baggage.get_baggage("tenant", ctx)))
    assert places == {"of acme": "acme", "of initech": "initech"}


async def test_children_that_a_finalizer_starts_belong_where_their_parent_does(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        def finalize(span: trace.Span) -> None:
            with trace.use_span(span, end_on_exit=True):
                tracer.start_span("close of acme").end()

        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("of acme"), finalize)
        collect_as("globex")

    places, _ = await places_of(program)
    assert places == {"of acme": "acme", "close of acme": "acme"}


async def test_an_abandoned_async_generator_in_a_cycle_ends_its_span_where_it_started() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)

        async def stream(cycle: list[Any]) -> AsyncGenerator[int]:
            span = tracer.start_span("of acme")
            await trio.lowlevel.checkpoint()
            try:
                yield len(cycle)
            finally:
                span.end()

        async def read_one() -> None:
            cycle: list[Any] = []
            cycle.append(generator := stream(cycle))
            cycle.append(cycle)
            await anext(generator)

        with use_location("acme"):
            await read_one()
        with use_location("globex"), pytest.warns(ResourceWarning, match="was garbage collected"):
            gc.collect()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
    assert_all_counted(processor, batcher)
    assert delivered_places(exporter) == {"of acme": "acme"}


async def test_finalizers_of_weakref_end_spans_where_they_started(autojump_clock: object) -> None:
    class Stream:
        pass

    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            stream: Any = Stream()
            stream.myself = stream
            weakref.finalize(stream, tracer.start_span("of acme").end)
            del stream
        collect_as("globex")

    places, _ = await places_of(program)
    assert places == {"of acme": "acme"}


async def test_a_collection_in_another_thread_changes_nothing(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("of acme"), end)
        in_thread(lambda: collect_as("globex"))

    places, _ = await places_of(program)
    assert places == {"of acme": "acme"}


async def test_each_processor_finds_the_location_of_a_span_that_a_finalizer_ends(autojump_clock: object) -> None:
    exporters = [InMemoryExporter(), InMemoryExporter()]
    async with watched_batcher(exporters[0]) as one, watched_batcher(exporters[1]) as two:
        tracer = tracer_of(BatcherSpanProcessor(one), BatcherSpanProcessor(two, lambda *_: str(used_location()) + " 2"))
        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("used"), end)
        EndedByFinalizer(tracer.start_span("given"), end)
        collect_as("globex")
    assert [delivered_places(exporter) for exporter in exporters] == [
        {"used": "acme", "given": "default"},
        {"used": "acme", "given": "None 2"},
    ]


@pytest.mark.parametrize("change", [copy.copy, copy.deepcopy, made_again], ids=["copy", "deepcopy", "made again"])
@pytest.mark.parametrize("number", [1, 200])
async def test_processors_in_between_that_create_another_span_do_not_change_locations(
    autojump_clock: object, change: Any, number: int
) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            for index in range(number):
                EndedByFinalizer(tracer.start_span(f"of acme {index}"), end)
        with use_location("initech"):
            tracer.start_span("of initech").end()
        collect_as("globex")

    places, _ = await places_of(program, wrapper=lambda inner: Wrapper(inner, change))
    assert places.pop("of initech") == "initech"
    assert places == {f"of acme {index}": "acme" for index in range(number)}


@pytest.mark.parametrize("change", [copy.copy, made_again], ids=["copy", "made again"])
async def test_a_processor_that_passes_spans_on_later_does_not_change_their_locations(
    autojump_clock: object, change: Any
) -> None:
    """Like a processor that samples complete traces: the span objects no longer exist by then."""
    wrappers: list[Wrapper] = []

    def wrapped(inner: SpanProcessor) -> Wrapper:
        wrappers.append(wrapper := Wrapper(inner, change))
        wrapper.holds = True
        return wrapper

    def program(tracer: Tracer) -> None:
        for tenant in ("acme", "initech"):
            with use_location(tenant):
                tracer.start_span(f"of {tenant}").end()
        gc.collect()
        with use_location("globex"):
            wrappers[0].pass_on()

    places, _ = await places_of(program, wrapper=wrapped)
    assert places == {"of acme": "acme", "of initech": "initech"}


async def test_a_span_whose_context_cannot_have_attributes_goes_where_it_started(autojump_clock: object) -> None:
    class Bare(SpanContext):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]  # like __slots__
            raise AttributeError("__dict__")

    async with watched_batcher(exporter := InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        contexts = {name: Bare(1, number, False, TraceFlags(1)) for number, name in enumerate(("a", "b", "c"), 1)}
        for name, bare in contexts.items():
            span: Any = ReadableSpan(name, bare, start_time=1, end_time=2)
            with use_location(f"place of {name}"):
                processor.on_start(span)
        for name, bare in contexts.items():
            with use_location("globex"):
                processor.on_end(ReadableSpan(name, bare, start_time=1, end_time=2))
    assert_all_counted(processor, batcher)
    assert delivered_places(exporter) == {name: f"place of {name}" for name in contexts}


async def test_the_number_of_remembered_spans_without_a_context_is_bounded(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location_module, "MAX_GONE", 3)

    def program(tracer: Tracer) -> None:
        for number in range(20):
            tracer.start_span(f"never ended {number}")
        gc.collect()

    _, processor = await places_of(program)
    locations = processor._locations
    assert (len(locations._by_ids), len(locations._gone)) == (0, 3)
    assert all(not entry.open for entry in locations._traces.values())


async def test_the_context_of_a_span_can_be_pickled_and_leads_back_in_this_process(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            parent = tracer.start_span("parent")
        pickled = pickle.dumps(parent.get_span_context())
        assert b"trio_spanbatch." not in pickled
        again = pickle.loads(pickled)
        assert again == parent.get_span_context()
        tracer.start_span("child", context=trace.set_span_in_context(NonRecordingSpan(again))).end()
        parent.end()

    places, _ = await places_of(program)
    assert places == {"parent": "acme", "child": "acme"}


class SameIds(IdGenerator):
    def generate_trace_id(self) -> int:
        return 1

    def generate_span_id(self) -> int:
        return 1


async def test_a_span_with_the_ids_of_another_span_never_goes_to_its_tenant(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        for tenant in ("acme", "globex"):
            with use_location(tenant):
                tracer.start_span(f"first of {tenant}").end()
        spans = []
        for tenant in ("acme", "globex"):
            with use_location(tenant):
                spans.append(tracer.start_span(f"second of {tenant}"))
        for span in spans:
            span.end()

    places, _ = await places_of(program, id_generator=SameIds())
    assert places == {f"{nth} of {tenant}": tenant for nth in ("first", "second") for tenant in ("acme", "globex")}
    # The ids alone do not identify the span.
    places, processor = await places_of(
        program, id_generator=SameIds(), wrapper=lambda inner: Wrapper(inner, made_again)
    )
    assert places == {f"first of {tenant}": tenant for tenant in ("acme", "globex")}
    assert drops(processor) == {"invalid": 2}


async def test_a_span_that_shares_a_context_with_another_span_never_goes_to_its_tenant(autojump_clock: object) -> None:
    shared = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))

    async with watched_batcher(exporter := InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        spans: list[Any] = [ReadableSpan(name, shared, start_time=1, end_time=2) for name in ("acme", "globex")]
        for span in spans:
            with use_location(span.name):
                processor.on_start(span)
        for span in spans:
            processor.on_end(span)
    assert_all_counted(processor, batcher)
    assert drops(processor) == {"invalid": 2}
    assert exporter.delivered == {}


async def test_adding_a_processor_twice_does_not_change_locations(autojump_clock: object) -> None:
    async with watched_batcher(exporter := InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor, processor)
        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("of acme"), end)
        collect_as("globex")
    assert_all_counted(processor, batcher)
    assert list(exporter.delivered) == ["acme"]


async def test_a_finalizer_that_ends_a_span_inside_the_core_hands_it_over(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched_batcher(exporter := InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        handed_over = []

        def check_location(_: object, location: str) -> None:
            if location == "globex":
                gc.collect()
                handed_over.append(processor.statistics().handed_over)

        monkeypatch.setattr(
            batcher._scheduler, "_check_location", lambda location: check_location(None, location), raising=True
        )
        with use_location("acme"):
            EndedByFinalizer(tracer.start_span("of acme"), end)
        with use_location("globex"):
            tracer.start_span("of globex").end()
    # Two, as the span whose adding was interrupted is also on its way.
    assert handed_over == [2]
    assert_all_counted(processor, batcher)
    assert delivered_places(exporter) == {"of acme": "acme", "of globex": "globex"}


# -- generators that are left early ------------------------------------------------------------------------------


async def let_trio_close() -> None:
    """Let trio close abandoned async generators."""
    for _ in range(5):
        await trio.lowlevel.checkpoint()


@contextmanager
def quiet_opentelemetry() -> Iterator[None]:
    """Ignore the errors that OpenTelemetry logs for tokens detached in another context, as must happen here."""
    logger = logging.getLogger("opentelemetry.context")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


async def leave_early(tracer: Tracer, tenant: str = "acme") -> None:
    """Leave the span and the location of an async generator in the current context, and close it."""

    async def tokens() -> AsyncGenerator[int]:
        await trio.lowlevel.checkpoint()
        with use_location(tenant), tracer.start_as_current_span(f"stream of {tenant}"):
            yield 1  # noqa: ASYNC119  # the tested mistake

    await abandon(tokens())


async def abandon(*generators: AsyncGenerator[int]) -> None:
    """Read one item of generators without other references, and let trio close them."""
    remaining = list(generators)
    del generators
    while remaining:
        await anext(remaining[-1])
        with pytest.warns(ResourceWarning, match="was garbage collected"):
            remaining.pop()
    await let_trio_close()


async def test_a_parent_that_has_ended_does_not_overrule_use_location(caplog: pytest.LogCaptureFixture) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        with quiet_opentelemetry():
            await leave_early(tracer)
        with use_location("globex"), tracer.start_as_current_span("prompt of globex"):
            tracer.start_span("child of globex").end()
    assert_all_counted(processor, batcher)
    places = delivered_places(exporter)
    assert places == {"stream of acme": "acme", "prompt of globex": "globex", "child of globex": "globex"}
    assert processor.statistics().overruled == 0
    assert caplog.text == ""


async def test_a_parent_that_has_ended_does_not_overrule_a_location_function() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher, lambda _, ctx: str(baggage.get_baggage("tenant", ctx))))
        first = tracer.start_span("of acme", context=baggage.set_baggage("tenant", "acme"))
        first.end()
        late = baggage.set_baggage("tenant", "globex", trace.set_span_in_context(first))
        tracer.start_span("of globex", context=late).end()
    assert delivered_places(exporter) == {"of acme": "acme", "of globex": "globex"}


@pytest.mark.parametrize("known_by", ["context", "ids"])
async def test_the_context_of_a_parent_that_has_ended_does_not_overrule_use_location(
    autojump_clock: object, known_by: str
) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"), tracer.start_as_current_span("root of acme"):
            parent = tracer.start_span("of acme")
            parent.end()
            ids = parent.get_span_context()
            stale = trace.set_span_in_context(NonRecordingSpan(ids if known_by == "context" else made_again(ids)))
            with use_location("globex"):
                tracer.start_span("of globex", context=stale).end()

    places, processor = await places_of(program)
    assert places == {"root of acme": "acme", "of acme": "acme", "of globex": "globex"}
    assert processor.statistics().overruled == 0


async def test_a_parent_that_was_not_sampled_overrules_nothing_once_its_trace_has_ended(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            root = tracer.start_span("root of acme")
        dropped = tracer.start_span("drop", context=trace.set_span_in_context(root))
        stale = trace.set_span_in_context(dropped)
        with use_location("globex"):
            tracer.start_span("of acme", context=stale).end()
            root.end()
            tracer.start_span("of globex", context=stale).end()

    places, processor = await places_of(program, sampler=SampleByName())
    assert places == {"root of acme": "acme", "of acme": "acme", "of globex": "globex"}
    assert processor.statistics().overruled == 1


async def test_a_parent_that_is_recorded_only_overrules_nothing_once_it_has_ended(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            parent = tracer.start_span("record")
        stale = trace.set_span_in_context(NonRecordingSpan(parent.get_span_context()))
        parent.end()
        with use_location("globex"):
            tracer.start_span("of globex", context=stale).end()

    places, _ = await places_of(program, sampler=SampleByName())
    assert places == {"of globex": "globex"}


async def test_a_parent_whose_end_a_filter_withholds_overrules_nothing_once_it_has_ended(
    autojump_clock: object,
) -> None:
    class Filter(Wrapper):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name != "filtered":
                self.inner.on_end(span)

    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            parent = tracer.start_span("filtered")
        parent.end()
        with use_location("globex"):
            tracer.start_span("of globex", context=trace.set_span_in_context(parent)).end()

    places, _ = await places_of(program, wrapper=Filter)
    assert places == {"of globex": "globex"}


@pytest.mark.parametrize("known_by", ["context", "ids"])
async def test_a_parent_whose_end_a_filter_withholds_overrules_nothing_once_it_is_gone(
    autojump_clock: object, known_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Filter(Wrapper):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name != "filtered":
                self.inner.on_end(span)

    def program(tracer: Tracer) -> None:
        with use_location("acme"):
            parent = tracer.start_span("filtered")
        parent.end()
        context = parent.get_span_context()
        del parent
        gc.collect()
        stale = NonRecordingSpan(context if known_by == "context" else made_again(context))
        del context
        with use_location("globex"):
            tracer.start_span("of globex", context=trace.set_span_in_context(stale)).end()
        tracer.start_span("where nobody says anything", context=trace.set_span_in_context(stale)).end()

    places, processor = await places_of(program, wrapper=Filter)
    assert places == {"of globex": "globex", "where nobody says anything": "acme"}
    assert processor.statistics().overruled == 0
    assert caplog.text == ""


async def test_siblings_below_a_dropped_root_each_keep_the_location_of_their_start(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def program(tracer: Tracer) -> None:
        with tracer.start_as_current_span("drop: the loop of a worker"):
            with use_location("acme"):
                job = tracer.start_span("job of acme")
            with use_location("globex"):
                tracer.start_span("job of globex").end()
            tracer.start_span("of nobody").end()
            with trace.use_span(job, end_on_exit=True):
                tracer.start_span("child of acme").end()
            tracer.start_span("of nobody, later").end()

    places, processor = await places_of(program, sampler=SampleByName())
    assert places == {
        "job of acme": "acme",
        "job of globex": "globex",
        "of nobody": "default",
        "child of acme": "acme",
        "of nobody, later": "default",
    }
    assert processor.statistics().overruled == 0
    assert caplog.text == ""


async def test_a_span_that_is_not_sampled_is_not_warned_about(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def program(tracer: Tracer) -> None:
        acme, globex = use_location("acme"), use_location("globex")
        with acme, tracer.start_as_current_span("root of acme"), globex, tracer.start_as_current_span("record"):
            assert processor_of(tracer).statistics().overruled == 0
            tracer.start_span("child of acme").end()

    def processor_of(tracer: Any) -> BatcherSpanProcessor:
        processor = tracer.span_processor._span_processors[0]
        assert isinstance(processor, BatcherSpanProcessor)
        return processor

    places, processor = await places_of(program, sampler=SampleByName())
    assert places == {"root of acme": "acme", "child of acme": "acme"}
    assert processor.statistics().overruled == len(caplog.records) == 1


async def test_a_use_location_overruled_by_a_live_parent_is_logged_once_for_each_pair(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("acme"), tracer.start_as_current_span("root"):
            for number in range(3):
                with use_location("globex"):
                    tracer.start_span(f"globex {number}").end()
            with use_location("initech"):
                tracer.start_span("initech").end()
            with use_location("acme"):
                tracer.start_span("the same").end()

    places, processor = await places_of(program)
    assert set(places.values()) == {"acme"}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "use_location('globex') goes to 'acme'" in warnings[0]
    assert "use_location('initech') goes to 'acme'" in warnings[1]
    assert processor.statistics().overruled == 4


@pytest.mark.parametrize("closed_by", ["leaving", "shutdown"])
async def test_a_processor_whose_batcher_was_left_does_not_warn_about_locations(
    autojump_clock: object, closed_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Providers keep processors after their batchers were left."""
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        if closed_by == "shutdown":
            processor.shutdown()
    tracer = tracer_of(processor)
    with use_location("acme"), tracer.start_as_current_span("root"), use_location("globex"):
        tracer.start_span("child").end()
    assert drops(processor) == {"already_shutdown": 2}
    assert processor.statistics().overruled == 0
    assert "use_location" not in caplog.text


async def test_pairs_that_are_warned_about_are_bounded(
    autojump_clock: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally_module, "MAX_PAIRS", 3)

    def program(tracer: Tracer) -> None:
        with tracer.start_as_current_span("root"):
            for number in range(20):
                with use_location(f"{number} {'x' * 1_000}"):
                    tracer.start_span(str(number)).end()

    _, processor = await places_of(program)
    assert len(caplog.records) == 3
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert len(processor._tally._pairs) == 3
    assert processor.statistics().overruled == 20


async def test_tasks_that_outlive_the_span_they_were_started_in_keep_their_location(autojump_clock: object) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))

        async def background() -> None:
            await trio.sleep(5)
            with tracer.start_as_current_span("background"):
                tracer.start_span("its child").end()

        async with trio.open_nursery() as nursery:
            with use_location("acme"), tracer.start_as_current_span("request"):
                nursery.start_soon(background)
            with use_location("globex"), tracer.start_as_current_span("next request"):
                await trio.sleep(10)
    places = delivered_places(exporter)
    assert places == {"request": "acme", "background": "acme", "its child": "acme", "next request": "globex"}


async def test_a_use_location_left_behind_by_a_closed_generator_does_not_apply() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))
        with use_location("globex"):
            with quiet_opentelemetry():
                for _ in range(3):
                    await leave_early(tracer)
            assert used_location() == "globex"
            tracer.start_span("of globex").end()
        assert used_location() is None
        tracer.start_span("of nobody", context=Context()).end()
    places = {name: location for location, names in named(exporter).items() for name in names}
    assert places == {"stream of acme": "acme", "of globex": "globex", "of nobody": "default"}


def named(exporter: InMemoryExporter) -> dict[str, set[str]]:
    return {location: {span.to_message().name for span in spans} for location, spans in exporter.delivered.items()}


async def test_a_task_that_a_generator_started_keeps_its_location_when_the_generator_is_closed() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))

        async with trio.open_nursery() as nursery:

            async def background() -> None:
                for number in range(3):
                    await let_trio_close()
                    tracer.start_span(f"background {number}", context=Context()).end()

            async def tokens() -> AsyncGenerator[int]:
                await trio.lowlevel.checkpoint()
                with use_location("acme"):
                    nursery.start_soon(background)
                    yield 1  # noqa: ASYNC119  # the tested mistake

            with use_location("globex"):
                await abandon(tokens())
                tracer.start_span("of globex").end()
    places = delivered_places(exporter)
    assert places.pop("of globex") == "globex"
    assert set(places.values()) == {"acme"}
    assert len(places) == 3


def test_closing_a_generator_inside_another_use_location_does_not_end_that_one() -> None:
    def tokens(tenant: str) -> Generator[int]:
        with use_location(tenant):
            yield 1

    acme, initech = tokens("acme"), tokens("initech")
    next(acme)
    next(initech)
    with use_location("globex"):
        acme.close()
        assert used_location() == "globex"
        initech.close()
        assert used_location() == "globex"
    assert used_location() is None


def test_tasks_do_not_inherit_what_a_closed_generator_left_behind_once_it_was_noticed() -> None:
    def tokens() -> Generator[int]:
        with use_location("acme"):
            yield 1

    generator = tokens()
    next(generator)
    copy_context().run(generator.close)
    assert used_location() is None
    assert copy_context().run(used_location) is None


def test_generators_that_are_left_early_do_not_lengthen_the_chain() -> None:
    def tokens() -> Generator[int]:
        with use_location("acme"):
            yield 1

    previous = tokens()
    next(previous)
    for _ in range(100):
        generator = tokens()
        next(generator)
        copy_context().run(previous.close)
        previous = generator
    assert length_of_chain() <= 3
    previous.close()
    assert used_location() is None


def length_of_chain() -> int:
    from trio_spanbatch.opentelemetry._use_location import _innermost

    use, length = _innermost.get(), 0
    while use is not None:
        use, length = use.outer, length + 1
    return length


def test_a_generator_of_an_ended_task_does_not_end_the_use_location_of_another_task() -> None:
    acme = use_location("acme")

    def tokens() -> Generator[int]:
        with acme:
            yield 1

    generator = tokens()
    copy_context().run(next, generator)
    gc.collect()
    with use_location("globex"), acme:
        copy_context().run(generator.close)
        assert used_location() == "acme"


def test_a_use_location_shared_by_several_generators_does_not_apply_once_all_are_closed() -> None:
    acme = use_location("acme")

    def tokens() -> Generator[int]:
        with acme:
            yield 1

    generators = [tokens(), tokens(), tokens()]
    for generator in generators:
        next(generator)
    for generator in generators:
        assert used_location() == "acme"
        copy_context().run(generator.close)
    assert used_location() is None
    with acme:
        assert used_location() == "acme"
    assert used_location() is None


def test_a_collection_while_a_use_location_is_entered_or_left_does_not_change_the_location() -> None:
    def tokens() -> Generator[int]:
        with use_location("acme"):
            yield 1

    def location_after(allocations: int) -> str | None:
        generator = tokens()
        next(generator)
        EndedByFinalizer(trace.INVALID_SPAN, lambda _, generator=generator: generator.close())  # type: ignore[misc]  # bound now
        del generator
        thresholds = gc.get_threshold()
        try:
            gc.set_threshold(gc.get_count()[0] + allocations, 1, 1)
            gc.enable()
            with use_location("globex"):
                pass
        finally:
            gc.disable()
            gc.set_threshold(*thresholds)
        gc.collect()
        return used_location()

    assert {copy_context().run(location_after, allocations) for allocations in range(1, 30)} == {None}


def test_code_that_interrupts_used_location_gets_the_right_location(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler or a finalizer can do so anywhere."""

    class Interrupted:
        def __init__(self, variable: ContextVar[None]) -> None:
            self.variable = variable
            self.set = variable.set
            self.is_first = True

        def reset(self, token: Any) -> None:
            self.variable.reset(token)
            if self.is_first:
                self.is_first = False
                answers.append(used_location())

    def tokens() -> Generator[int]:
        with use_location("acme"):
            yield 1

    answers: list[str | None] = []
    with use_location("globex"):
        generator = tokens()
        next(generator)
        copy_context().run(generator.close)
        monkeypatch.setattr(use_location_module, "_here", Interrupted(use_location_module._here))
        assert used_location() == "globex"
    assert used_location() is None
    assert answers == ["globex"]


def test_tasks_that_start_the_next_one_inside_use_location_do_not_lengthen_the_chain() -> None:
    task = copy_context()

    def work() -> Any:
        with use_location("acme"):
            return copy_context()

    for _ in range(100):
        task = task.run(work)
    assert task.run(used_location) == "acme"
    assert task.run(length_of_chain) == 1


async def test_one_use_location_can_be_entered_by_many_tasks_at_once(autojump_clock: object) -> None:
    acme = use_location("acme")

    async def work(seconds: float) -> None:
        with acme:
            await trio.sleep(seconds)
            assert used_location() == "acme"
            with acme:
                await trio.sleep(seconds)
            assert used_location() == "acme"
        assert used_location() is None

    async with trio.open_nursery() as nursery:
        for seconds in (3, 1, 2):
            nursery.start_soon(work, seconds)


def test_a_context_that_was_left_is_not_kept_alive() -> None:
    class Request:
        pass

    current_request: ContextVar[Request | None] = ContextVar("current_request", default=None)

    def handle() -> Any:
        request = Request()
        current_request.set(request)
        with use_location(location):
            task = copy_context()
        task.run(current_request.set, None)
        assert task.run(used_location) == location
        return weakref.ref(request), task

    location = "acme"
    reference, task = copy_context().run(handle)
    assert reference() is None
    assert task.run(used_location) == location


async def test_the_documented_way_to_stream_keeps_tenants_apart() -> None:
    page = (DOCS / "opentelemetry.md").read_text()
    assert "{literalinclude} examples/streaming.py" in page
    ended = await run_command(program=[sys.executable, "-W", "error", str(DOCS / "examples" / "streaming.py")])
    assert (ended.exit_code, ended.err) == (0, "")
    expected = page.partition(
        "<!-- streaming: compared by tests/opentelemetry/test_opentelemetry_tenants.py -->\n```text\n"
    )[2]
    assert ended.out == expected.partition("```")[0]


# -- subclasses of str -------------------------------------------------------------------------------------------


class Disguised(str):
    """A string whose own methods claim that it is another string."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("globex")

    def __str__(self) -> str:
        return "globex"

    def __repr__(self) -> str:
        return "'globex'"

    def __len__(self) -> int:
        return 0

    def encode(self, *_: object, **__: object) -> bytes:
        return b"globex"


async def test_a_str_subclass_with_its_own_equality_is_converted_to_plain_text(autojump_clock: object) -> None:
    policies = []

    def policy(location: str) -> BatchPolicy:
        policies.append(type(location))
        return BatchPolicy(max_delay=100)

    async with watched_batcher(exporter := InMemoryExporter(), policy) as batcher:
        batcher.add_span_nowait("globex", make_span())
        batcher.add_span_nowait(Disguised("acme"), make_span())
        batcher.add_spans_nowait(Disguised("acme"), [make_span(), make_span()])
        await batcher.add_span(Disguised("acme"), make_span())
        await batcher.add_spans(Disguised("acme"), [make_span()])
        report = await batcher.flush(Disguised("acme"))
        assert report.delivered == 5
        assert batcher.statistics().locations["globex"].queued == 1
    counts = {location: counts.delivered for location, counts in batcher.statistics().locations.items()}
    assert counts == {"globex": 1, "acme": 5}
    assert {location: len(spans) for location, spans in exporter.delivered.items()} == counts
    assert {type(location) for location in counts} == set(policies) == {str}


async def test_the_bridge_converts_a_str_subclass_with_its_own_equality_to_plain_text(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        tracer.start_span("given").end()
        with use_location(Disguised("initech")):
            tracer.start_span("used").end()
        with use_location("globex"):
            tracer.start_span("of globex").end()

    places, _ = await places_of(program, Disguised("acme"))
    assert places == {"given": "acme", "used": "initech", "of globex": "globex"}
    places, _ = await places_of(program, lambda *_: Disguised("acme"))
    assert places == {"given": "acme", "used": "initech", "of globex": "globex"}


def test_the_location_of_a_batch_is_plain_text() -> None:
    assert type(SpanBatch(Disguised("acme"), ()).location) is str
    assert SpanBatch(Disguised("acme"), ()).location == "acme"


async def test_an_object_that_only_claims_to_be_a_str_is_rejected_everywhere(autojump_clock: object) -> None:
    class Claims:
        @property  # type: ignore[misc]  # it lies about its class
        def __class__(self) -> Any:
            return str

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("globex")

    wrong: Any = Claims()
    async with watched_batcher(InMemoryExporter()) as batcher:
        batcher.add_span_nowait("globex", make_span())
        for add in (batcher.add_span_nowait, lambda location, span: batcher.add_spans_nowait(location, [span])):
            with pytest.raises(InvalidLocationError, match="location must be a str, not Claims"):
                add(wrong, make_span())
        with pytest.raises(InvalidLocationError):
            batcher.add_spans_nowait(wrong, [])
        with pytest.raises(InvalidLocationError):
            await batcher.add_span(wrong, make_span())
        with pytest.raises(InvalidLocationError):
            await batcher.flush(wrong)
    for refuses in (
        use_location,
        lambda location: BatcherSpanProcessor(SpanBatcher(InMemoryExporter()), location),
        lambda location: SpanBatch(location, ()),
    ):
        with pytest.raises(InvalidLocationError, match="location must be a str, not Claims"):
            refuses(wrong)
