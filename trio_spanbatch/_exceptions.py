"""Helpers for exceptions and exception groups, which nurseries in exporters raise."""

from __future__ import annotations

import math
import sys
from typing import NoReturn

import trio


def split_cancelled(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split ``exc`` into its `trio.Cancelled` part and the rest; either may be None."""
    if isinstance(exc, trio.Cancelled):
        return exc, None
    if not isinstance(exc, BaseExceptionGroup):
        return None, exc
    return exc.split(trio.Cancelled)


def leaves(exc: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, recursively; for any other exception, just that."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for part in exc.exceptions for leaf in leaves(part)]


def is_cancelled_here() -> bool:
    """Return whether a scope around the caller is cancelled, so that a `trio.Cancelled` may be for the caller.

    If not, other code has stored and re-raised the exception, and no scope would catch it.
    """
    return trio.current_effective_deadline() == -math.inf


def fatal_part(exc: BaseException) -> BaseException | None:
    """Return the first exception in ``exc`` that has to end the program, such as a `SystemExit`.

    An `Exception` does not, nor does an exception that ends only a task or a generator. Raising one of those
    without being cancelled or closed is a bug.
    """
    return next((leaf for leaf in leaves(exc) if not isinstance(leaf, Exception) and not _ends_a_task(leaf)), None)


def error_part(exc: BaseException) -> BaseException | None:
    """Return ``exc`` without the exceptions that only end a task or a generator; None if nothing is left."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(_ends_a_task)[1]
    return None if _ends_a_task(exc) else exc


def is_cancellation(exc: BaseException) -> bool:
    """Return whether an exception without an `error_part` is a cancellation, not only the closing of a generator."""
    return not all(isinstance(leaf, GeneratorExit) for leaf in leaves(exc))


def raise_for_open_nurseries() -> NoReturn:
    """Cancel the nurseries that the current task leaves open, and raise `RuntimeError`.

    Since version 0.31 trio does the same at a task's exit. Before that, the tasks in those nurseries ran forever.
    """
    task = trio.lowlevel.current_task()
    for nursery in task.child_nurseries:
        nursery.cancel_scope.cancel()
    raise RuntimeError(f"Nursery stack corrupted: {task.name} ended and left a nursery open")


def forget_traceback(exc: BaseException) -> None:
    """Clear the tracebacks of an exception that was logged.

    If code stores an exception and raises it repeatedly, its traceback grows each time and keeps all its frames alive.
    """
    # A frozen exception refuses an assignment to ``__traceback__``.
    exc.with_traceback(None)
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            forget_traceback(part)


def _ends_a_task(exc: BaseException) -> bool:
    if isinstance(exc, trio.Cancelled | GeneratorExit):
        return True
    # If asyncio was never imported, nothing can have raised its CancelledError.
    asyncio = sys.modules.get("asyncio.exceptions")
    return asyncio is not None and isinstance(exc, asyncio.CancelledError)


def cause_of(error: BaseException) -> str:
    """Return the kind of failure in one word."""
    parts = leaves(error)
    if len(parts) == 1:
        # A nursery wraps the exception of its task.
        error = parts[0]
    # By name, as the client may be from a fork of httpx.
    is_timeout = any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)
    return "timeout" if is_timeout or isinstance(error, TimeoutError | trio.TooSlowError) else type(error).__name__
