"""`span` and `traced`: what OpenTelemetry's spans record, and where they go."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from tests.opentelemetry.support import delivered_places, provider_of, tracer_of
from tests.tracing.support import Recorded, attributes
from trio_spanbatch import InvalidLocationError, SpanBatcher, SpanKind
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, span, traced, use_location
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import Tracer

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="consumer's")


@attrs.frozen
class Traced:
    """A tracer of OpenTelemetry, and what was delivered."""

    otel: trace.Tracer
    exporter: InMemoryExporter
    recorded: Recorded


@asynccontextmanager
async def recording(location: Any = "default") -> AsyncIterator[Traced]:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher, location))
        yield Traced(tracer, exporter, Recorded(Tracer(batcher), exporter))


async def test_a_span_has_what_the_program_gives_it_and_is_current() -> None:
    async with recording() as program:
        with span("chat", kind=SpanKind.CLIENT, attributes={"a": 1}, tracer=program.otel) as current:
            assert trace.get_current_span() is current
            current.set_attribute("b", "c")
        with span("serve", kind=trace.SpanKind.SERVER, tracer=program.otel):
            pass
    messages = program.recorded.all()
    assert attributes(messages["chat"].attributes) == {"a": 1, "b": "c"}
    assert messages["chat"].kind == messages["chat"].SPAN_KIND_CLIENT
    assert messages["serve"].kind == messages["serve"].SPAN_KIND_SERVER


async def test_the_tracer_of_the_global_provider_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    provider: list[TracerProvider] = []
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider[0])
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        provider.append(provider_of(BatcherSpanProcessor(batcher)))
        with span("chat"):
            pass
        traced("function")(lambda: None)()
    assert delivered_places(exporter) == {"chat": "default", "function": "default"}
    assert b"trio_spanbatch" in exporter.delivered["default"][0].headers.scope


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("no such city"), "error: ValueError: no such city, ['ValueError']"),
        (KeyboardInterrupt(), "error: KeyboardInterrupt: , ['KeyboardInterrupt']"),
        (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "error: ExceptionGroup: two (2 sub-exceptions), "),
        (SilentError(), "error: SilentError, []"),
        (GeneratorExit(), "ended"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_an_exception_is_an_error_with_an_event_and_is_not_changed(error: BaseException, outcome: str) -> None:
    async with recording() as program:
        with pytest.raises(type(error)) as caught, span("work", tracer=program.otel):
            raise error
    assert caught.value is error
    assert program.recorded.outcome("work").startswith(outcome)


async def test_cancelled_work_is_marked_and_groups_are_looked_into(autojump_clock: trio.testing.MockClock) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async with recording() as program:
        with span("around the scope", tracer=program.otel), trio.move_on_after(1), span("inside", tracer=program.otel):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
        try:
            with trio.move_on_after(1), span("mixed", tracer=program.otel):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    nursery.start_soon(fail_when_cancelled)
        except* ValueError:
            pass
    assert program.recorded.outcome("inside") == "cancelled"
    assert program.recorded.outcome("around the scope") == "ended"
    assert program.recorded.outcome("mixed").startswith("error: ExceptionGroup: ")


# -- parents and locations -----------------------------------------------------------------------------------------


async def test_a_location_is_that_of_the_span_and_of_all_inside() -> None:
    async with recording() as program:
        with span("agent", location="acme", tracer=program.otel):
            with span("tool", tracer=program.otel):
                program.otel.start_span("plain").end()
            program.otel.start_span("new trace", context=context.Context()).end()
        with pytest.raises(InvalidLocationError), span("wrong", location="", tracer=program.otel):
            pass
    places = delivered_places(program.exporter)
    assert places == {"agent": "acme", "tool": "acme", "plain": "acme", "new trace": "acme"}


@pytest.mark.parametrize("set_by", ["span", "use_location", "processor"])
async def test_a_location_that_differs_from_the_parents_begins_a_trace_of_its_own(
    set_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with recording("acme" if set_by == "processor" else "default") as program:
        otel = program.otel
        where = use_location("acme") if set_by == "use_location" else nullcontext()
        with where, span("outer", location="acme" if set_by == "span" else None, tracer=otel):
            with span("of globex", location="globex", tracer=otel), span("child", tracer=otel):
                assert trace.get_current_span().is_recording()
            with span("of acme too", location="acme", tracer=otel):
                pass
    parents = program.recorded.parents()
    assert [parents[name] for name in ("child", "of globex", "of acme too", "outer")] == [
        "of globex",
        None,
        "outer",
        None,
    ]
    places = delivered_places(program.exporter)
    assert (places["child"], places["of globex"], places["of acme too"]) == ("globex", "globex", "acme")
    assert not caplog.records


async def test_a_new_trace_keeps_the_baggage() -> None:
    async with recording() as program:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        with span("a", location="acme", tracer=program.otel), span("b", location="globex", tracer=program.otel):
            assert baggage.get_baggage("tenant") == "acme"
        context.detach(token)
    assert program.recorded.parents() == {"a": None, "b": None}


async def test_a_span_that_has_ended_is_never_a_parent() -> None:
    async with recording() as program:
        ended = program.otel.start_span("ended")
        token = context.attach(trace.set_span_in_context(ended))
        ended.end()
        with span("next", tracer=program.otel):
            pass
        context.detach(token)
        remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1)))
        token = context.attach(trace.set_span_in_context(remote))
        with span("of a remote parent", tracer=program.otel) as current:
            assert current.get_span_context().trace_id == 1
        context.detach(token)
    assert program.recorded.all()["next"].parent_span_id == b""


# -- traced --------------------------------------------------------------------------------------------------------


async def test_all_kinds_of_functions_can_be_traced(caplog: pytest.LogCaptureFixture) -> None:
    async with recording() as program:
        otel = program.otel

        @traced(tracer=otel)
        def function(value: int) -> int:
            return value

        @traced("coroutine", location="acme", kind=SpanKind.CLIENT, attributes={"a": 1}, arguments=True, tracer=otel)
        async def coroutine(value: int) -> int:
            await trio.lowlevel.checkpoint()
            return value

        @traced(tracer=otel)
        def generator(value: int) -> Generator[int]:
            VARIABLE.set("generator's")
            yield value

        @traced(location="globex", tracer=otel)
        async def async_generator(value: int) -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            VARIABLE.set("generator's")
            with span("inside", tracer=otel):
                yield value  # noqa: ASYNC119  # it is traced
                yield value  # noqa: ASYNC119  # it is traced

        assert (function(1), await coroutine(2)) == (1, 2)
        for _ in generator(3):
            assert not trace.get_current_span().is_recording()
        async with aclosing(async_generator(4)) as items:
            async for _ in items:
                assert not trace.get_current_span().is_recording()
                assert VARIABLE.get() == "consumer's"
                program.otel.start_span("consumer").end()
                break
    assert delivered_places(program.exporter) == {
        "function": "default",
        "coroutine": "acme",
        "generator": "default",
        "async_generator": "globex",
        "inside": "globex",
        "consumer": "default",
    }
    assert program.recorded.parents()["inside"] == "async_generator"
    assert program.recorded.outcome("async_generator") == program.recorded.outcome("inside") == "ended"
    assert attributes(program.recorded.all()["coroutine"].attributes) == {"a": 1, "argument.value": 2}
    # For instance that a context could not be detached.
    assert not caplog.records


async def test_a_traced_generator_that_is_left_early_leaves_nothing_behind() -> None:
    async with recording() as program:

        @traced(location="acme", tracer=program.otel)
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            yield 1

        async def read_one() -> None:
            async for _ in generator():
                break

        with pytest.warns(ResourceWarning, match="garbage collected"):
            await read_one()
        program.otel.start_span("next").end()
        await trio.testing.wait_all_tasks_blocked()
    assert delivered_places(program.exporter) == {"next": "default", "generator": "acme"}
    assert program.recorded.parents() == {"next": None, "generator": None}
