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
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
OpenSpan = Callable[[str, Mapping[str, Any]], AbstractContextManager[Any]]


def decorator(
    given: Callable[..., Any] | str | None,
    open_span: OpenSpan,
    attributes: Mapping[str, Any] | None = None,
    arguments: bool | Iterable[str] = False,
) -> Any:
    """Return the result of ``traced(given, ...)``: the wrapped function, or a decorator if ``given`` is none.

    Args:
        given: The function, or the name of the span.
        open_span: Makes a span of a name and attributes.
        attributes: Attributes of all spans.
        arguments: Whether to record the arguments as attributes; or the names of those to record.
    """
    given_arguments: object = arguments
    if not isinstance(given_arguments, bool | Iterable) or isinstance(given_arguments, bytes | Mapping):
        raise TypeError(f"arguments is {arguments!r}; it must be True, or a list of names")
    if given is not None and not isinstance(given, str):
        return _wrapped(given, None, open_span, attributes, arguments)
    return lambda function: _wrapped(function, given, open_span, attributes, arguments)


def _wrapped(
    function: Any,
    name: str | None,
    open_span: OpenSpan,
    attributes: Mapping[str, Any] | None,
    arguments: bool | Iterable[str],
) -> Any:
    if isinstance(function, staticmethod | classmethod):
        return type(function)(_wrapped(function.__func__, name, open_span, attributes, arguments))
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"traced is used on {function!r}; it must be used on a function, or have the span's name")
    if name is None:
        name = getattr(function, "__qualname__", type(function).__qualname__).rpartition("<locals>.")[2]
    arguments_of = _arguments_of(function, arguments)

    def span(*args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        return open_span(name, {**(attributes or {}), **arguments_of(args, kwargs)})

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


class _Inside(AbstractContextManager[None]):
    """Enters and exits a context manager in another context."""

    def __init__(self, context: Context, manager: AbstractContextManager[Any]) -> None:
        self._run = context.run
        self._manager = manager

    def __enter__(self) -> None:
        self._run(self._manager.__enter__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._manager.__exit__, kind, error, traceback)


def _wrapped_generator(function: Callable[..., Any], span: Callable[..., AbstractContextManager[Any]]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        context = copy_context()
        with _Inside(context, context.run(span, *args, **kwargs)):
            return (yield from _Steps(context, context.run(function, *args, **kwargs)).__await__())

    return wrapper


def _wrapped_async_generator(function: Callable[..., Any], span: Callable[..., AbstractContextManager[Any]]) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        context = copy_context()
        run = context.run
        with _Inside(context, run(span, *args, **kwargs)):
            generator = run(function, *args, **kwargs)
            try:
                item = await _Steps(context, _first_step(generator))
                while True:
                    try:
                        sent = yield item  # noqa: ASYNC119  # the wrapper is closed like any generator
                    except GeneratorExit:
                        await _Steps(context, generator.aclose())  # noqa: ASYNC102, ASYNC120  # the same
                        raise
                    except BaseException as error:  # noqa: ASYNC103  # the inner generator decides
                        item = await _Steps(context, generator.athrow(error))  # noqa: ASYNC102  # the same
                    else:
                        item = await _Steps(context, generator.asend(sent))
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


class _Steps(Awaitable[Any]):
    """Runs a coroutine or a generator in another context."""

    __slots__ = ("_context", "_coroutine")

    def __init__(self, context: Context, coroutine: Any) -> None:
        self._context = context
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
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
