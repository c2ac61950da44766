"""`Tracer.traced`: functions and generators of all kinds, and the contexts of generators."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import pytest
import trio
import trio.testing

from tests.tracing.support import attributes, recording
from trio_spanbatch import SpanKind
from trio_spanbatch.tracing import current_span

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="consumer's")


def assert_untouched() -> None:
    """Assert that no generator has changed this context."""
    assert VARIABLE.get() == "consumer's"
    assert current_span() is None


async def test_all_kinds_of_functions_can_be_traced() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        @tracer.traced
        def function(value: int) -> int:
            assert current_span() is not None
            return value

        @tracer.traced
        async def coroutine(value: int) -> int:
            await trio.lowlevel.checkpoint()
            return value

        @tracer.traced
        def generator(value: int) -> Generator[int, int, str]:
            received = yield value
            yield received
            return "result"

        @tracer.traced
        async def async_generator(value: int) -> AsyncGenerator[int, int]:
            received = yield value
            await trio.lowlevel.checkpoint()
            yield received

        assert (function(1), await coroutine(2)) == (1, 2)
        stream = generator(3)
        assert (next(stream), stream.send(4)) == (3, 4)
        with pytest.raises(StopIteration, match="result"):
            next(stream)
        async with aclosing(async_generator(5)) as items:
            assert (await anext(items), await items.asend(6)) == (5, 6)
            assert [item async for item in items] == []
    assert [recorded.outcome(name) for name in ("function", "coroutine", "generator", "async_generator")] == [
        "ended"
    ] * 4
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert (function.__name__, function.__doc__) == ("function", None)


async def test_traced_takes_the_words_of_span() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        @tracer.traced("chat", location="acme", kind=SpanKind.CLIENT, attributes={"model": "small"})
        async def ask() -> None:  # noqa: ASYNC124  # its kind matters
            span = current_span()
            assert span is not None
            span.set_attribute("tokens", 5)

        @tracer.traced()
        def plain() -> None:
            pass

        await ask()
        plain()
    message = recorded.all()["chat"]
    assert attributes(message.attributes) == {"model": "small", "tokens": 5}
    assert (message.kind, recorded.places()) == (message.SPAN_KIND_CLIENT, {"chat": "acme", "plain": "default"})


async def test_methods_partials_and_callable_objects_can_be_traced() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        class Agent:
            @tracer.traced
            def method(self) -> str:
                return "method"

            @tracer.traced
            @classmethod
            def of_class(cls) -> str:
                return cls.__name__

            @tracer.traced
            @staticmethod
            def static() -> str:
                return "static"

            async def __call__(self) -> str:
                return "called"

        assert (Agent().method(), Agent.of_class(), Agent.static()) == ("method", "Agent", "static")
        assert await tracer.traced("object")(Agent())() == "called"
        assert tracer.traced("partial")(functools.partial(int, "11", base=2))() == 3
    assert set(recorded.all()) == {"Agent.method", "Agent.of_class", "Agent.static", "object", "partial"}


async def test_arguments_are_recorded_only_if_asked_for() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        class Agent:
            @tracer.traced("none")
            def none(self, prompt: str, *, tokens: int = 5) -> None: ...

            @tracer.traced("all", arguments=True)
            def all(self, prompt: str, *more: str, tokens: int = 5) -> None: ...

            @tracer.traced("some", arguments=["tokens"])
            async def some(self, prompt: str, *, tokens: int = 5) -> None: ...

        Agent().none("secret")
        Agent().all("question", "a", "b")
        await Agent().some("secret", tokens=6)
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'prompt'"):
            Agent().all()  # type: ignore[call-arg]  # on purpose
        with pytest.raises(ValueError, match=r"arguments contains 'promt'; it may contain \['prompt'\]"):
            tracer.traced(arguments=["promt"])(lambda prompt: prompt)
    recorded_spans = [span.to_message() for span in recorded.exporter.delivered["default"]]
    found = [attributes(span.attributes) for span in recorded_spans]
    assert found == [
        {},
        {"argument.prompt": "question", "argument.more": ["a", "b"], "argument.tokens": 5},
        {"argument.tokens": 6},
        {},
    ]


async def test_an_exception_out_of_a_traced_function_or_generator_is_an_error_and_unchanged() -> None:
    async with recording() as recorded:
        error = ValueError("bad")

        @recorded.tracer.traced
        def function() -> None:
            raise error

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            yield 1
            raise error

        with pytest.raises(ValueError, match="bad") as caught:
            function()
        assert caught.value is error
        with pytest.raises(ValueError, match="bad") as caught:
            async for _ in generator():
                pass
        assert caught.value is error
    assert {recorded.outcome(name) for name in recorded.all()} == {"error: ValueError: bad, ['ValueError']"}


async def test_cancelled_functions_and_generators_are_marked(autojump_clock: trio.testing.MockClock) -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        async def function() -> None:
            await trio.sleep_forever()

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:
            yield 1
            await trio.sleep_forever()

        with trio.move_on_after(1):
            await function()
        with trio.move_on_after(1):
            async with aclosing(generator()) as items:
                async for _ in items:
                    pass
    assert [recorded.outcome(name) for name in ("function", "generator")] == ["cancelled", "cancelled"]


# -- contexts of generators ----------------------------------------------------------------------------------------


async def test_nothing_that_a_generator_sets_reaches_its_consumer_while_it_is_suspended() -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        def generator() -> Generator[str]:
            VARIABLE.set("generator's")
            with recorded.tracer.span("inside"):
                yield VARIABLE.get()
                yield VARIABLE.get()

        @recorded.tracer.traced
        async def async_generator() -> AsyncGenerator[str]:
            VARIABLE.set("generator's")
            with recorded.tracer.span("inside too"):
                yield VARIABLE.get()  # noqa: ASYNC119  # it is traced
                await trio.lowlevel.checkpoint()
                yield VARIABLE.get()  # noqa: ASYNC119  # it is traced

        for item in generator():
            assert item == "generator's"
            assert_untouched()
        async for item in async_generator():
            assert item == "generator's"
            assert_untouched()
    assert recorded.parents() == {
        "inside": "generator",
        "inside too": "async_generator",
        "generator": None,
        "async_generator": None,
    }


async def test_right_after_a_break_the_consumer_has_its_own_context() -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        def generator() -> Generator[int]:
            VARIABLE.set("generator's")
            try:
                yield from range(3)
            finally:
                VARIABLE.set("the end's")

        stream = generator()
        for _ in stream:
            break
        assert_untouched()
        with recorded.tracer.span("after the break"):
            pass
        del stream, _
        assert_untouched()
    assert recorded.parents() == {"after the break": None, "generator": None}
    assert recorded.outcome("generator") == "ended"


async def test_right_after_a_break_out_of_an_async_generator_the_consumer_has_its_own_context() -> None:
    async with recording() as recorded:
        closed = trio.Event()

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            VARIABLE.set("generator's")
            try:
                yield 1
            finally:
                assert VARIABLE.get() == "generator's"
                VARIABLE.set("the end's")
                closed.set()

        async def read_one() -> None:
            async for _ in generator():
                break
            assert_untouched()

        with pytest.warns(ResourceWarning, match="generator.* was garbage collected"):
            await read_one()
        assert_untouched()
        with recorded.tracer.span("after the break"):
            pass
        await closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert_untouched()
    assert recorded.parents() == {"after the break": None, "generator": None}
    assert recorded.outcome("generator") == "ended"


async def test_closing_a_generator_closes_the_inner_one_in_its_context_and_is_no_error() -> None:
    async with recording() as recorded:
        ended: list[str] = []

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:
            VARIABLE.set("generator's")
            try:
                yield 1
            finally:
                ended.append(VARIABLE.get())
                await trio.lowlevel.checkpoint()  # noqa: ASYNC102  # cancelled at once by trio
                with recorded.tracer.span("clean up"):
                    ended.append("checkpoint")

        async with aclosing(generator()) as items:
            async for _ in items:
                break
        assert ended == ["generator's", "checkpoint"]
        assert_untouched()
    assert recorded.parents() == {"clean up": "generator", "generator": None}
    assert recorded.outcome("generator") == "ended"


class Holder:
    """Makes a cycle with a generator."""

    def __init__(self) -> None:
        self.items: Any = None


async def test_a_generator_in_cyclic_garbage_is_closed_in_its_own_context() -> None:
    async with recording() as recorded:
        ended: list[str] = []

        @recorded.tracer.traced
        def generator(holder: Holder) -> Generator[int]:
            VARIABLE.set("generator's")
            with recorded.tracer.span("inside"):
                try:
                    yield 1
                finally:
                    ended.append(VARIABLE.get())
                    VARIABLE.set("the end's")

        def leave_one() -> None:
            holder = Holder()
            holder.items = generator(holder)
            next(holder.items)

        gc.collect()
        leave_one()
        assert not ended
        gc.collect()
        assert ended == ["generator's"]
        assert_untouched()
    assert recorded.parents() == {"inside": "generator", "generator": None}
    assert [recorded.outcome(name) for name in ("inside", "generator")] == ["ended", "ended"]


async def test_an_async_generator_in_cyclic_garbage_is_closed_once_and_in_its_own_context(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with recording() as recorded:
        ended: list[str] = []
        closed = trio.Event()

        @recorded.tracer.traced
        async def generator(holder: Holder) -> AsyncGenerator[int]:
            VARIABLE.set("generator's")
            try:
                yield 1
            finally:
                ended.append(VARIABLE.get())
                VARIABLE.set("the end's")
                closed.set()
                # While it waits here, nobody else may close it.
                await trio.lowlevel.checkpoint()  # noqa: ASYNC102  # cancelled at once by trio

        async def leave_one() -> None:
            holder = Holder()
            holder.items = generator(holder)
            await anext(holder.items)

        gc.collect()
        await leave_one()
        assert not ended
        with pytest.warns(ResourceWarning, match="garbage collected") as warned:
            gc.collect()
        assert len(warned) == 1
        assert_untouched()
        await closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["generator's"]
        assert_untouched()
    # Trio cancels what such a generator still does.
    assert recorded.outcome("generator") == "cancelled"
    assert not caplog.records


async def test_a_consumer_that_is_cancelled_leaves_no_context_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            VARIABLE.set("generator's")
            yield 1
            yield 2

        with trio.move_on_after(1):
            async with aclosing(generator()) as items:
                async for _ in items:
                    assert_untouched()
                    await trio.sleep_forever()
        assert_untouched()
    # The generator was closed; its own work was not cancelled.
    assert recorded.outcome("generator") == "ended"


async def test_a_nursery_inside_a_generator_inherits_its_span() -> None:
    async with recording() as recorded:

        async def child() -> None:
            assert VARIABLE.get() == "generator's"
            with recorded.tracer.span("child"):
                await trio.lowlevel.checkpoint()

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:
            VARIABLE.set("generator's")
            async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # a task inherits the context
                nursery.start_soon(child)
            yield 1
            await trio.lowlevel.checkpoint()

        async for _ in generator():
            assert_untouched()
    assert recorded.parents() == {"child": "generator", "generator": None}


async def test_generators_that_are_read_in_turns_keep_their_contexts_apart() -> None:
    async with recording() as recorded:
        tracer = recorded.tracer

        @tracer.traced("stream")
        async def generator(name: str) -> AsyncGenerator[str]:
            VARIABLE.set(name)
            for number in range(3):
                with tracer.span(f"{name} {number}"):
                    await trio.lowlevel.checkpoint()
                yield VARIABLE.get()

        with tracer.span("consumer"):
            async with aclosing(generator("a")) as a, aclosing(generator("b")) as b:
                for _ in range(3):
                    assert (await anext(a), await anext(b)) == ("a", "b")
                    assert VARIABLE.get() == "consumer's"
    spans = [span.to_message() for span in recorded.exporter.delivered["default"]]
    names = {span.span_id: span.name for span in spans}
    parents = [(span.name, names.get(span.parent_span_id)) for span in spans]
    assert sorted(parent for name, parent in parents if name[0] in "ab" and parent) == ["stream"] * 6
    assert [parent for name, parent in parents if name == "stream"] == ["consumer"] * 2


async def test_a_generator_may_be_read_by_several_tasks_one_after_the_other() -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[str]:
            VARIABLE.set("generator's")
            while True:
                await trio.lowlevel.checkpoint()
                yield VARIABLE.get()

        async def read() -> None:
            assert await anext(items) == "generator's"
            assert_untouched()

        async with aclosing(generator()) as items:
            for _ in range(3):
                async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # a task inherits the context
                    nursery.start_soon(read)


async def test_exceptions_that_a_consumer_throws_reach_the_generator() -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        def generator() -> Generator[str]:
            try:
                yield "first"
            except ValueError:
                yield VARIABLE.get()

        @recorded.tracer.traced
        async def async_generator() -> AsyncGenerator[str]:  # noqa: ASYNC124  # its kind matters
            try:
                yield "first"
            except ValueError:
                yield VARIABLE.get()

        stream = generator()
        assert (next(stream), stream.throw(ValueError("thrown"))) == ("first", "consumer's")
        stream.close()
        async with aclosing(async_generator()) as items:
            assert (await anext(items), await items.athrow(ValueError("thrown"))) == ("first", "consumer's")
    assert {recorded.outcome(name) for name in recorded.all()} == {"ended"}


async def test_a_generator_that_is_never_read_makes_no_span() -> None:
    async with recording() as recorded:

        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            yield 1

        await generator().aclose()
    assert not recorded.all()


async def test_as_safe_channel_works_with_a_traced_generator() -> None:
    async with recording() as recorded:

        @trio.as_safe_channel
        @recorded.tracer.traced
        async def generator() -> AsyncGenerator[int]:  # noqa: ASYNC124  # its kind matters
            for number in range(3):
                yield number

        async with generator() as items:
            async for _ in items:
                break
    assert recorded.outcome("generator") in ("ended", "cancelled")
