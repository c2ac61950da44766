"""Wrap a function in a span: functions and generators, synchronous and async.

A context variable that a generator sets stays set for its consumer while the generator is suspended, and if the
consumer leaves early, for good. So a wrapped generator runs in a copy of the context in which its consumer began to
iterate: each step is one `contextvars.Context.run`. The wrapper is a generator itself, so that Python and trio close it
as they close any other one; closing it closes the inner generator in that context.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from contextvars import Context, copy_context
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
OpenSpan = Callable[[str, Mapping[str, Any]], AbstractContextManager[Any]]


def decorator(
    given: Callable[..., Any] | str | None,
    open_span: OpenSpan,
    attributes: Mapping[str, Any] | None,
    arguments: bool | Iterable[str],
) -> Any:
    """Return the result of ``traced(given, ...)``: the wrapped function, or a decorator if ``given`` is none.

    ``open_span`` makes a span of a name and attributes.
    """
    if attributes is None:
        attributes = {}
    open_span("", attributes)  # only to check the arguments
    given_arguments: object = arguments
    if not isinstance(given_arguments, bool | Iterable) or isinstance(given_arguments, bytes | Mapping):
        raise TypeError(f"arguments is {arguments!r}; it must be True, or a list of names")

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return type(function)(decorate(function.__func__))
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"traced is used on {function!r}; it must be used on a function, or have the span's name")
        qualified_name = getattr(function, "__qualname__", type(function).__qualname__)
        name = given if isinstance(given, str) else qualified_name.rpartition("<locals>.")[2]
        arguments_of = _arguments_of(function, arguments)
        return _wrapped(function, lambda *args, **kwargs: open_span(name, {**attributes, **arguments_of(args, kwargs)}))

    return decorate if given is None or isinstance(given, str) else decorate(given)


def _wrapped(function: Any, span: Callable[..., AbstractContextManager[Any]]) -> Any:
    is_plain = inspect.isroutine(function) or isinstance(function, functools.partial)
    called = function if is_plain else function.__call__
    if inspect.isasyncgenfunction(called):
        return _wrapped_async_generator(function, span)
    if inspect.isgeneratorfunction(called):
        return _wrapped_generator(function, span)
    if inspect.iscoroutinefunction(called):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with span(*args, **kwargs):
                return await function(*args, **kwargs)

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with span(*args, **kwargs):
                return function(*args, **kwargs)

    return wrapper


def _arguments_of(
    function: Callable[..., Any], arguments: bool | Iterable[str]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Mapping[str, Any]]:
    if arguments is False:
        return lambda _args, _kwargs: {}
    signature = inspect.signature(function)
    parameters = list(signature.parameters)
    if arguments is True:
        recorded = parameters[1:] if parameters[:1] in (["self"], ["cls"]) else parameters
    else:
        recorded = [arguments] if isinstance(arguments, str) else list(arguments)
        if unknown := set(recorded) - set(parameters):
            raise ValueError(f"arguments contains {', '.join(map(repr, sorted(unknown)))}; it may contain {parameters}")

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return {}  # the call will raise the same
        bound.apply_defaults()
        return {f"argument.{name}": bound.arguments[name] for name in recorded}

    return read


def _enter(stack: ExitStack, context: Context, manager: AbstractContextManager[Any]) -> None:
    """Enter ``manager`` in another context, and let ``stack`` exit it there."""
    context.run(manager.__enter__)
    stack.push(lambda *details: context.run(manager.__exit__, *details))


def _wrapped_generator(function: Callable[..., Any], span: Callable[..., AbstractContextManager[Any]]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        context = copy_context()
        with ExitStack() as stack:
            _enter(stack, context, context.run(span, *args, **kwargs))
            return (yield from _steps(context, context.run(function, *args, **kwargs)))

    return wrapper


def _wrapped_async_generator(function: Callable[..., Any], span: Callable[..., AbstractContextManager[Any]]) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        context = copy_context()
        with ExitStack() as stack:
            _enter(stack, context, context.run(span, *args, **kwargs))
            generator = context.run(function, *args, **kwargs)
            try:
                item = await _awaitable_steps(context, _first_step(generator))
                while True:
                    try:
                        sent = yield item  # noqa: ASYNC119  # the wrapper is closed like any generator
                    except GeneratorExit:
                        await _awaitable_steps(context, generator.aclose())  # noqa: ASYNC102, ASYNC120  # the same
                        raise
                    except BaseException as error:  # noqa: ASYNC103  # the inner generator decides
                        item = await _awaitable_steps(context, generator.athrow(error))  # noqa: ASYNC102  # the same
                    else:
                        item = await _awaitable_steps(context, generator.asend(sent))
            except StopAsyncIteration:
                return

    return wrapper


def _first_step(generator: AsyncGenerator[Any, Any]) -> Any:
    """Return the first step of a generator that only its wrapper closes.

    Otherwise trio would close it too if the garbage collector finds both, perhaps while the wrapper closes it.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=lambda _: None)
    try:
        return generator.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _steps(context: Context, coroutine: Any) -> Generator[Any, Any, Any]:
    """Run a coroutine or a generator in another context."""
    run = context.run
    try:
        trap = run(coroutine.send, None)
        while True:
            try:
                answer = yield trap
            except BaseException as error:  # noqa: ASYNC103  # the inner generator decides
                trap = run(coroutine.throw, error)
            else:
                trap = run(coroutine.send, answer)
    except StopIteration as stop:
        return stop.value


# The same function, with a type that says that it can be awaited.
_awaitable_steps = types.coroutine(_steps)
