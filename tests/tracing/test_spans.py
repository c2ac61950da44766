"""`Tracer.span`: what is recorded, how spans end, and what their parents and locations are."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags

from tests.tracing.support import attributes, recording
from trio_spanbatch import (
    InstrumentationScope,
    InvalidLocationError,
    Resource,
    SpanBatcher,
    SpanContext,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import ActiveSpan, Tracer, current_span


async def test_a_span_has_what_the_program_gives_it() -> None:
    link = SpanLink(SpanContext(7, 8))
    async with recording(
        location="agents", resource=Resource({"service.name": "shop"}), scope=InstrumentationScope("shop", "2")
    ) as recorded:
        with recorded.tracer.span("chat", kind=SpanKind.CLIENT, attributes={"model": "small"}, links=[link]) as span:
            span.set_attribute("tokens", 5)
            span.set_attributes({"model": "large", "tools": ["a", "b"]})
            span.add_event("first token", {"after": 0.5}, timestamp=77)
            span.add_event("last token")
            span.set_status(StatusCode.ERROR, "refused")
    message = recorded.all()["chat"]
    assert attributes(message.attributes) == {"model": "large", "tokens": 5, "tools": ["a", "b"]}
    assert [(event.name, attributes(event.attributes)) for event in message.events] == [
        ("first token", {"after": 0.5}),
        ("last token", {}),
    ]
    assert message.events[0].time_unix_nano == 77
    assert message.start_time_unix_nano <= message.events[1].time_unix_nano <= message.end_time_unix_nano
    assert (message.kind, message.status.message) == (message.SPAN_KIND_CLIENT, "refused")
    assert [each.trace_id for each in message.links] == [(7).to_bytes(16)]
    (encoded,) = recorded.exporter.delivered["agents"]
    assert b"shop" in encoded.headers.resource
    assert b"shop" in encoded.headers.scope


async def test_the_context_of_a_span_has_the_ids_that_are_sent_and_says_sampled() -> None:
    async with recording() as recorded:
        with recorded.tracer.span("chat") as span:
            context = span.context
    message = recorded.all()["chat"]
    assert (message.trace_id, message.span_id) == (context.trace_id.to_bytes(16), context.span_id.to_bytes(8))
    assert context.trace_flags == 1


async def test_ids_repeat_with_the_same_rng_and_differ_without() -> None:
    async with recording() as recorded:
        batcher = recorded.tracer.batcher
        twice = [Tracer(batcher, rng=random.Random(1)).span("a").context for _ in range(2)]
        others = {recorded.tracer.span("a").context.trace_id for _ in range(100)}
    assert twice[0] == twice[1]
    assert len(others) == 100


# -- how a span ends -----------------------------------------------------------------------------------------------


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("no such city"), "error: ValueError: no such city, ['ValueError']"),
        (KeyboardInterrupt(), "error: KeyboardInterrupt: , ['KeyboardInterrupt']"),
        (SilentError(), "error: tests.tracing.test_spans.SilentError: <its message raised RuntimeError>, "),
        (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "error: ExceptionGroup: two (2 sub-exceptions), "),
        (GeneratorExit(), "ended"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_an_exception_is_an_error_with_an_event_and_is_not_changed(error: BaseException, outcome: str) -> None:
    async with recording() as recorded:
        with pytest.raises(type(error)) as caught, recorded.tracer.span("work"):
            fail(error)
    assert caught.value is error
    assert recorded.outcome("work").startswith(outcome)


async def test_the_event_of_an_exception_has_its_traceback() -> None:
    async with recording() as recorded:
        with pytest.raises(ValueError, match="bad"), recorded.tracer.span("work"):
            fail(ValueError("bad"))
    (event,) = recorded.all()["work"].events
    details = attributes(event.attributes)
    assert details["exception.message"] == "bad"
    assert re.search(r"in fail\n.*\nValueError: bad", details["exception.stacktrace"], re.DOTALL)


async def test_a_status_of_ok_stays_if_an_exception_follows() -> None:
    async with recording() as recorded:
        with pytest.raises(ValueError, match="late"), recorded.tracer.span("work") as span:
            span.set_status(Status(StatusCode.OK))
            fail(ValueError("late"))
    assert recorded.all()["work"].status.code == 1


async def test_a_recorded_exception_does_not_change_the_status() -> None:
    async with recording() as recorded:
        with recorded.tracer.span("work") as span:
            span.record_exception(ValueError("handled"), {"attempt": 1})
    message = recorded.all()["work"]
    assert not message.status.code
    assert attributes(message.events[0].attributes)["attempt"] == 1


async def test_cancelled_work_is_marked_and_its_status_is_unset(autojump_clock: trio.testing.MockClock) -> None:
    async with recording() as recorded:
        with recorded.tracer.span("around the scope"), trio.move_on_after(1), recorded.tracer.span("inside"):
            await trio.sleep_forever()
    assert recorded.outcome("inside") == "cancelled"
    assert recorded.outcome("around the scope") == "ended"


async def test_a_group_of_only_cancelled_is_cancelled_and_a_mixed_one_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async with recording() as recorded:
        tracer = recorded.tracer
        for name, children in (("all", [trio.sleep_forever] * 2), ("mixed", [trio.sleep_forever, fail_when_cancelled])):
            try:
                with trio.move_on_after(1), tracer.span(name):
                    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
                        for child in children:
                            nursery.start_soon(child)
                        outer.start_soon(trio.sleep_forever)
            except* ValueError:
                pass
    assert recorded.outcome("all") == "cancelled"
    assert recorded.outcome("mixed").startswith("error: ")
    message = recorded.all()["mixed"]
    details = attributes(message.events[0].attributes)
    assert "on the way out" in details["exception.stacktrace"]


async def test_a_span_that_ends_on_a_cancelled_path_is_accepted_without_a_checkpoint() -> None:
    async with recording() as recorded:
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.testing.assert_no_checkpoints(), recorded.tracer.span("work"):
                pass
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
    assert recorded.outcome("work") == "ended"


# -- parents and locations -----------------------------------------------------------------------------------------


async def test_spans_nest_and_tasks_inherit_their_parent() -> None:
    async with recording(location="agents") as recorded:
        tracer = recorded.tracer

        async def tool(name: str) -> None:
            with tracer.span(name):
                await trio.lowlevel.checkpoint()

        assert current_span() is None
        with tracer.span("agent") as agent:
            assert current_span() is agent
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tool, "one")
                nursery.start_soon(tool, "two")
            with tracer.span("chat"):
                with tracer.span("request"):
                    pass
                assert current_span() is not agent
            assert current_span() is agent
        assert current_span() is None
    assert recorded.parents() == {"one": "agent", "two": "agent", "request": "chat", "chat": "agent", "agent": None}
    assert set(recorded.places().values()) == {"agents"}


async def test_a_child_has_its_parents_location() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer
        with tracer.span("agent", location="acme"), tracer.span("tool"), tracer.span("named", location="acme"):
            pass
    assert recorded.places() == {"agent": "acme", "tool": "acme", "named": "acme"}
    assert recorded.parents() == {"agent": None, "tool": "agent", "named": "tool"}


async def test_a_location_that_differs_from_the_parents_begins_a_trace_of_its_own() -> None:
    async with recording() as recorded:
        with recorded.tracer.span("of acme", location="acme"):
            with recorded.tracer.span("of globex", location="globex"), recorded.tracer.span("child"):
                pass
            with recorded.tracer.span("of acme too"):
                pass
    assert recorded.places() == {"child": "globex", "of globex": "globex", "of acme too": "acme", "of acme": "acme"}
    assert recorded.parents() == {"child": "of globex", "of globex": None, "of acme too": "of acme", "of acme": None}
    spans = recorded.all()
    assert spans["of acme"].trace_id != spans["of globex"].trace_id
    assert not spans["of globex"].links


async def test_a_span_that_has_ended_is_never_a_parent() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer
        may_start = trio.Event()

        async def outlives_its_span() -> None:
            await may_start.wait()
            with tracer.span("late"):
                pass

        async with trio.open_nursery() as nursery:
            with tracer.span("outer"), tracer.span("request", location="acme"):
                nursery.start_soon(outlives_its_span)
            may_start.set()
    assert recorded.parents()["late"] is None
    # Not that of the span that has ended: it could be another tenant's.
    assert recorded.places()["late"] == "default"


async def test_a_task_that_outlives_its_span_has_the_nearest_span_that_has_not_ended_as_parent() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer
        may_start = trio.Event()

        async def outlives_its_span() -> None:
            await may_start.wait()
            with tracer.span("late"):
                pass

        with tracer.span("outer"):
            async with trio.open_nursery() as nursery:
                with tracer.span("inner"):
                    nursery.start_soon(outlives_its_span)
                may_start.set()
    assert recorded.parents() == {"inner": "outer", "late": "outer", "outer": None}


async def test_a_parent_in_another_process_continues_its_trace() -> None:
    remote = SpanContext(5, 6, is_remote=True, trace_state="a=b")
    async with recording(location="default") as recorded:
        tracer = recorded.tracer
        with (
            tracer.span("around", location="acme"),
            tracer.span("server", parent=remote) as span,
            tracer.span("inside"),
        ):
            pass
    message = recorded.all()["server"]
    assert (message.trace_id, message.parent_span_id) == ((5).to_bytes(16), (6).to_bytes(8))
    assert message.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    assert (span.context.trace_state, recorded.places()["server"]) == ("a=b", "default")
    assert recorded.all()["inside"].trace_id == message.trace_id


async def test_tracers_of_the_same_batcher_share_parents_and_those_of_another_do_not() -> None:
    async with recording() as one, recording() as other:
        second = Tracer(one.tracer.batcher, scope=InstrumentationScope("second"))
        with one.tracer.span("a"), other.tracer.span("b"), second.span("c"), other.tracer.span("d"):
            pass
    assert one.parents() == {"a": None, "c": "a"}
    assert other.parents() == {"b": None, "d": "b"}


async def test_a_thread_of_the_program_inherits_the_span_and_its_spans_arrive() -> None:
    async with recording() as recorded:

        def work() -> None:
            with recorded.tracer.span("in a thread"):
                pass

        with recorded.tracer.span("around"):
            await trio.to_thread.run_sync(work)
        assert recorded.tracer.dropped == 0
        assert recorded.tracer.batcher.statistics().accepted == 2
    assert recorded.parents()["in a thread"] == "around"


# -- bare spans in generators --------------------------------------------------------------------------------------


async def test_a_bare_span_that_a_generator_leaves_behind_is_no_parent_once_it_has_ended() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        def tokens() -> Generator[int]:
            with tracer.span("stream", location="acme"):
                yield 1
                yield 2

        stream = tokens()
        next(stream)
        stream.close()
        assert current_span() is None
        with tracer.span("prompt"):
            pass
    assert recorded.parents() == {"stream": None, "prompt": None}
    assert recorded.places() == {"stream": "acme", "prompt": "default"}
    assert recorded.outcome("stream") == "ended"


async def test_bare_spans_that_end_in_another_order_do_not_hide_each_other() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        def tokens() -> Generator[int]:
            with tracer.span("stream"):
                yield 1

        stream = tokens()
        next(stream)
        with tracer.span("consumer") as consumer:
            assert next(stream, None) is None
            assert current_span() is consumer
        assert current_span() is None


async def test_a_span_in_a_context_manager_of_the_program_is_current_inside() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        @contextmanager
        def outer() -> Generator[None]:
            with tracer.span("outer"):
                yield

        @asynccontextmanager
        async def inner() -> AsyncIterator[None]:
            with tracer.span("inner"):
                yield  # noqa: ASYNC119  # a context manager is left where it was entered

        with outer():
            async with inner():
                with tracer.span("body"):
                    await trio.lowlevel.checkpoint()
        assert current_span() is None
    assert recorded.parents() == {"body": "inner", "inner": "outer", "outer": None}


async def test_tasks_that_each_start_the_next_one_inside_a_span_do_not_keep_each_others_spans() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        async def next_one(left: int, has_begun: trio.Event) -> None:
            with tracer.span(f"{left}"):
                has_begun.set()
                if left:
                    # The next span begins inside this one, which ends first.
                    next_has_begun = trio.Event()
                    nursery.start_soon(next_one, left - 1, next_has_begun)
                    await next_has_begun.wait()
                else:
                    await trio.testing.wait_all_tasks_blocked()
                    gc.collect()
                    alive = [each for each in gc.get_objects() if isinstance(each, ActiveSpan)]
                    assert len(alive) <= 3

        async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # a task inherits the context
            nursery.start_soon(next_one, 50, trio.Event())


# -- mistakes ------------------------------------------------------------------------------------------------------

TRACER_MISTAKES: list[tuple[Callable[[SpanBatcher], object], type[Exception], str]] = [
    (lambda _: Tracer("batcher"), TypeError, "batcher is 'batcher'; it must be a SpanBatcher"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b, location=""), InvalidLocationError, "location must be a non-empty str"),
    (lambda b: Tracer(b, resource={"a": "b"}), TypeError, "resource is {'a': 'b'}; it must be a Resource"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b, scope="shop"), TypeError, "scope is 'shop'; it must be an InstrumentationScope"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b, rng=5), TypeError, "rng is 5; it must be a Random"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b).span(5), TypeError, "name is 5; it must be a str"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b).span("a", location=5), InvalidLocationError, "location must be a str"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b).span("a", kind="client"), TypeError, "kind is 'client'; it must be a SpanKind"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b).span("a", attributes=["b"]), TypeError, "attributes is ['b']; it must be a Mapping"),  # type: ignore[arg-type]  # the mistake
    (
        lambda b: Tracer(b).span("a", parent=Tracer(b).span("b")),  # type: ignore[arg-type]  # the mistake
        TypeError,
        "the context of a span is span.context",
    ),
    (lambda b: Tracer(b).span("a").set_status("error"), TypeError, "status is 'error'; it must be a StatusCode"),  # type: ignore[arg-type]  # the mistake
    (lambda b: Tracer(b).traced(5), TypeError, "traced is used on 5; it must be used on a function"),  # type: ignore[call-overload]  # the mistake
    (lambda b: Tracer(b).traced(dict), TypeError, "traced is used on <class 'dict'>"),
]


@pytest.mark.parametrize(("make", "kind", "message"), TRACER_MISTAKES, ids=[each[2] for each in TRACER_MISTAKES])
def test_a_mistake_is_named_with_its_value_and_its_remedy(
    make: Callable[[SpanBatcher], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        make(SpanBatcher(InMemoryExporter()))


async def test_a_span_is_entered_once_and_an_unentered_one_costs_nothing() -> None:
    async with recording() as recorded:
        recorded.tracer.span("never")
        with recorded.tracer.span("once") as span:
            pass
        with pytest.raises(RuntimeError, match=r"the span 'once' was entered before; call tracer.span\(\) again"):
            span.__enter__()
    assert set(recorded.all()) == {"once"}


async def test_the_repr_of_a_span_says_its_state() -> None:
    async with recording() as recorded:
        span = recorded.tracer.span("a")
        assert repr(span) == "<ActiveSpan 'a' at 'default', not entered>"
        with span:
            assert repr(span) == "<ActiveSpan 'a' at 'default', active>"
        assert repr(span) == "<ActiveSpan 'a' at 'default', ended>"
        assert repr(recorded.tracer).startswith("<Tracer for <SpanBatcher, open")
