"""The location of a span of OpenTelemetry is fixed when it starts, by the first rule that applies."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer
from tests.opentelemetry.support import (
    SampleByName,
    assert_all_counted,
    delivered_places,
    drops,
    in_thread,
    provider_of,
    tracer_of,
)
from tests.support.batchers import watched_batcher
from trio_spanbatch import InvalidLocationError, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.opentelemetry import _location as location_module
from trio_spanbatch.opentelemetry._use_location import used_location
from trio_spanbatch.testing import InMemoryExporter


def start_remote(tracer: Tracer, name: str, *, trace_id: int = 5) -> trace.Span:
    """Start a span that continues a trace of another process."""
    parent = SpanContext(trace_id, 7, is_remote=True, trace_flags=TraceFlags(1))
    return tracer.start_span(name, context=trace.set_span_in_context(NonRecordingSpan(parent)))


def under(span: trace.Span) -> Context:
    """Return a context that has only the ids of a span, as other threads receive it."""
    return trace.set_span_in_context(NonRecordingSpan(span.get_span_context()))


async def places_of(
    program: Callable[[Tracer], object], location: Any = "default", **options: Any
) -> tuple[dict[str, str], BatcherSpanProcessor]:
    """Run a program; return the locations of its spans."""
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher, location=location)
        program(tracer_of(processor, **options))
    assert_all_counted(processor, batcher)
    return delivered_places(exporter), processor


# -- the local parent --------------------------------------------------------------------------------------------


async def test_a_child_has_the_location_of_its_live_local_parent_despite_other_rules(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("parents"):
            root = tracer.start_span("root")
        with trace.use_span(root, end_on_exit=True), use_location("other"), tracer.start_as_current_span("child"):
            tracer.start_span("grandchild").end()

    places, _ = await places_of(program, lambda span, _: f"function for {span.name}")
    assert places == {"root": "parents", "child": "parents", "grandchild": "parents"}


async def test_the_location_is_that_of_the_start_wherever_the_span_ends(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("start"):
            span = tracer.start_span("span")
        with use_location("end"):
            in_thread(span.end)

    places, _ = await places_of(program)
    assert places == {"span": "start"}


async def test_without_another_location_that_of_a_parent_that_has_ended_is_used(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("parents"):
            parent = tracer.start_span("parent")
        parent.end()
        tracer.start_span("child", context=trace.set_span_in_context(parent)).end()

    places, _ = await places_of(program)
    assert places == {"parent": "parents", "child": "parents"}


async def test_a_local_parent_can_be_known_by_its_ids_only(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("parents"):
            parent = tracer.start_span("parent")
        tracer.start_span("child", context=under(parent)).end()
        parent.end()

    places, _ = await places_of(program)
    assert places == {"parent": "parents", "child": "parents"}


async def test_without_its_local_parent_a_span_has_the_location_of_its_trace(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("parents"):
            parent = tracer.start_span("parent")
        parent.end()
        context = under(parent)
        del parent
        gc.collect()
        tracer.start_span("child", context=context).end()

    places, processor = await places_of(program)
    assert len(processor._locations._by_ids) == 0
    assert places == {"parent": "parents", "child": "parents"}


@pytest.mark.parametrize("between", ["drop", "record"])
async def test_a_parent_that_is_not_sampled_does_not_split_the_trace(autojump_clock: object, between: str) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("roots"):
            root = tracer.start_span("root")
        with trace.use_span(root, end_on_exit=True), tracer.start_as_current_span(between), use_location("other"):
            tracer.start_span("grandchild").end()

    places, _ = await places_of(program, sampler=SampleByName())
    assert places == {"root": "roots", "grandchild": "roots"}


async def test_a_remote_parent_has_no_location_here(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("inner"):
            start_remote(tracer, "continued").end()
        start_remote(tracer, "alone", trace_id=6).end()

    places, _ = await places_of(program, "given")
    assert places == {"continued": "inner", "alone": "given"}


async def test_a_trace_that_enters_the_process_for_two_tenants_keeps_them_apart(autojump_clock: object) -> None:
    """A client and a server in one process: the same trace, each at the location of its tenant."""

    def program(tracer: Tracer) -> None:
        for tenant in ("one", "two"):
            with use_location(tenant):
                server = start_remote(tracer, tenant)
                with trace.use_span(server, end_on_exit=True), tracer.start_as_current_span("drop"):
                    tracer.start_span(f"of {tenant}").end()
        with use_location("one"), tracer.start_as_current_span("drop", context=known_by_trace()):
            tracer.start_span("of one again").end()

    def known_by_trace() -> Context:
        return trace.set_span_in_context(NonRecordingSpan(SpanContext(5, 9, is_remote=False)))

    places, _ = await places_of(program, sampler=SampleByName())
    assert places == {"one": "one", "of one": "one", "two": "two", "of two": "two", "of one again": "one"}


async def test_the_number_of_remembered_traces_is_bounded(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location_module, "MAX_TRACES", 3)

    def program(tracer: Tracer) -> None:
        for number in range(20):
            tracer.start_span(str(number)).end()

    _, processor = await places_of(program)
    assert len(processor._locations._traces) == 3


# -- use_location ------------------------------------------------------------------------------------------------


async def test_the_innermost_use_location_applies(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        with use_location("outer"):
            tracer.start_span("first").end()
            with use_location("inner"):
                tracer.start_span("second").end()
            tracer.start_span("third").end()
        tracer.start_span("fourth").end()

    places, _ = await places_of(program)
    assert places == {"first": "outer", "second": "inner", "third": "outer", "fourth": "default"}


async def test_use_location_is_inherited_by_tasks_started_inside(autojump_clock: object) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))

        async def work(name: str) -> None:
            await trio.sleep(1)
            with tracer.start_as_current_span(name):
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            with use_location("a"):
                nursery.start_soon(work, "in a")
                with use_location("b"):
                    nursery.start_soon(work, "in b")
            nursery.start_soon(work, "outside")
    assert delivered_places(exporter) == {"in a": "a", "in b": "b", "outside": "default"}


async def test_use_location_is_inherited_by_anyios_tasks_and_by_worker_threads() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))

        async def work() -> None:
            await anyio.lowlevel.checkpoint()
            tracer.start_span("anyio task").end()

        async with anyio.create_task_group() as group:
            with use_location("a"):
                group.start_soon(work)
        with use_location("b"):
            await anyio.to_thread.run_sync(lambda: tracer.start_span("anyio thread").end())
            await trio.to_thread.run_sync(lambda: tracer.start_span("trio thread").end())
    assert delivered_places(exporter) == {"anyio task": "a", "anyio thread": "b", "trio thread": "b"}


async def test_tasks_that_use_locations_at_the_same_time_do_not_disturb_each_other(autojump_clock: object) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))

        async def agent(number: int) -> None:
            with use_location(f"location {number}"):
                for step in range(5):
                    await trio.sleep(0.1)
                    tracer.start_span(f"{number}.{step}").end()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(agent, number)
    places = delivered_places(exporter)
    assert len(places) == 50
    assert all(location == f"location {name.partition('.')[0]}" for name, location in places.items())


@pytest.mark.parametrize("wrong", ["", None, 5, b"bytes", ["a"]])
def test_use_location_validates_its_argument_immediately(wrong: Any) -> None:
    with pytest.raises(InvalidLocationError, match=r"location must be a (non-empty )?str"):
        use_location(wrong)


def test_use_location_is_left_after_an_exception_and_can_be_entered_again() -> None:
    used = use_location("a")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), used, used:
            assert used_location() == "a"
            raise ZeroDivisionError
        assert used_location() is None
    assert repr(used) == "use_location('a')"


def test_leaving_use_location_in_another_context_does_not_raise() -> None:
    """As happens if other code closes an async generator."""
    used = use_location("a")
    copy_context().run(used.__enter__)
    used.__exit__(None, None, None)


async def test_use_location_in_an_async_context_manager_applies_to_its_body(autojump_clock: object) -> None:
    @asynccontextmanager
    async def tenant(name: str) -> AsyncGenerator[None]:
        with use_location(name):
            yield

    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))
        async with tenant("a"):
            tracer.start_span("inside").end()
        tracer.start_span("outside").end()
    assert delivered_places(exporter) == {"inside": "a", "outside": "default"}


# -- location= ---------------------------------------------------------------------------------------------------


async def test_the_default_location_is_default(autojump_clock: object) -> None:
    places, _ = await places_of(lambda tracer: tracer.start_span("span").end())
    assert places == {"span": "default"}


async def test_location_can_be_a_string_and_use_location_takes_precedence(autojump_clock: object) -> None:
    def program(tracer: Tracer) -> None:
        tracer.start_span("given").end()
        with use_location("used"):
            tracer.start_span("used").end()

    places, _ = await places_of(program, "given")
    assert places == {"given": "given", "used": "used"}


async def test_location_can_be_a_function_of_the_started_span_and_its_parent_context(autojump_clock: object) -> None:
    asked: list[str] = []

    def tenant(span: ReadableSpan, parent_context: Context) -> str:
        asked.append(span.name)
        assert isinstance(parent_context, Context)
        assert span.attributes is not None
        return f"{baggage.get_baggage('tenant', parent_context)}.{span.attributes.get('kind')}"

    def program(tracer: Tracer) -> None:
        context = baggage.set_baggage("tenant", "acme")
        with tracer.start_as_current_span("explicit", context=context, attributes={"kind": "agent"}):
            tracer.start_span("child").end()
        copy_context().run(with_current_context, tracer)
        with use_location("used"):
            tracer.start_span("used").end()

    def with_current_context(tracer: Tracer) -> None:
        attach(baggage.set_baggage("tenant", "current"))
        tracer.start_span("implicit").end()

    places, _ = await places_of(program, tenant)
    assert places == {"explicit": "acme.agent", "child": "acme.agent", "implicit": "current.None", "used": "used"}
    assert asked == ["explicit", "implicit"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda *_: 1 / 0, "location() raised ZeroDivisionError"),
        (lambda: "takes no arguments", "location() raised TypeError"),
        (lambda *_: None, "location() returned None: location must be a str, not NoneType"),
        (lambda *_: b"bytes", "location() returned b'bytes': location must be a str, not bytes"),
        (lambda *_: "", "location() returned '': location must be a non-empty str"),
        (lambda *_: "x" * 1025, "has 1025 characters; at most 1024 are allowed"),
    ],
)
async def test_errors_of_a_location_function_never_reach_the_program(
    autojump_clock: object, caplog: pytest.LogCaptureFixture, function: Any, said: str
) -> None:
    def program(tracer: Tracer) -> None:
        with tracer.start_as_current_span("root"):
            pass
        with use_location("used"):
            tracer.start_span("well").end()

    places, processor = await places_of(program, function)
    assert places == {"well": "used"}
    assert drops(processor) == {"invalid": 1}
    assert said in caplog.text


async def test_the_children_of_a_span_without_a_location_are_dropped_with_it(autojump_clock: object) -> None:
    """Each of them could get another location, which would split the trace."""
    locations = iter(["wrong", "one", "two"])

    def location(*_: object) -> str:
        found = next(locations)
        if found == "wrong":
            raise ValueError("no tenant")
        return found

    def program(tracer: Tracer) -> None:
        with tracer.start_as_current_span("root"):
            for name in ("child", "other child"):
                tracer.start_span(name).end()
        tracer.start_span("next trace").end()

    places, processor = await places_of(program, location)
    assert places == {"next trace": "one"}
    assert drops(processor) == {"invalid": 3}


@pytest.mark.parametrize("wrong", ["", None, 5, b"bytes"])
def test_an_invalid_location_is_rejected_when_the_processor_is_created(wrong: Any) -> None:
    with pytest.raises(InvalidLocationError, match=r"location must be a (non-empty )?str"):
        BatcherSpanProcessor(SpanBatcher(InMemoryExporter()), location=wrong)


async def test_a_location_that_the_exporter_rejects_is_invalid(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = OTLPExporter("http://receiver.test/v1/traces", location_header="X-Scope-OrgID")
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        with use_location("line\nbreak"):
            tracer_of(processor).start_span("span").end()
    assert_all_counted(processor, batcher)
    assert drops(processor) == {"invalid": 1}
    assert "printable ASCII" in caplog.text


# -- remembered spans --------------------------------------------------------------------------------------------


async def test_spans_that_never_end_leak_nothing(autojump_clock: object) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        spans = [tracer.start_span("never ended") for _ in range(100)]
        assert len(processor._locations._by_ids) == 100
        del spans
        gc.collect()
        assert len(processor._locations._by_ids) == 0
        assert processor.statistics().ended == 0


@pytest.mark.parametrize("location", ["given", lambda *_: str(baggage.get_baggage("tenant"))])
async def test_a_span_whose_start_was_not_seen_is_invalid_and_its_location_not_guessed(
    autojump_clock: object, caplog: pytest.LogCaptureFixture, location: Any
) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        provider = provider_of()
        tracer = provider.get_tracer("tests")
        early = tracer.start_span("early")
        server = start_remote(tracer, "remote")
        processor = BatcherSpanProcessor(batcher, location)
        provider.add_span_processor(processor)
        with use_location("used"):
            early.end()
            server.end()
            tracer.start_span("seen").end()
    assert_all_counted(processor, batcher)
    assert delivered_places(exporter) == {"seen": "used"}
    assert drops(processor) == {"invalid": 2}
    assert "did not see it start" in caplog.text
    assert "add the processor to the TracerProvider before spans start" in caplog.text


async def test_two_processors_determine_the_location_of_a_span_independently(autojump_clock: object) -> None:
    exporters = [InMemoryExporter(), InMemoryExporter()]
    async with watched_batcher(exporters[0]) as one, watched_batcher(exporters[1]) as two:
        tracer = tracer_of(BatcherSpanProcessor(one, "one"), BatcherSpanProcessor(two, lambda *_: "two"))
        with tracer.start_as_current_span("root"):
            tracer.start_span("child").end()
    assert [delivered_places(exporter) for exporter in exporters] == [
        {"root": "one", "child": "one"},
        {"root": "two", "child": "two"},
    ]
