"""Taking groups of exceptions apart: other people's nurseries wrap what they raise."""

from __future__ import annotations

import math
import sys

import trio

__all__ = ["cause_of", "fatal_part", "forget_traceback", "is_cancelled_here", "leaves", "split_cancelled"]


def split_cancelled(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return what of an exception is `trio.Cancelled`, and what is not; None for what there is none of."""
    if isinstance(exc, trio.Cancelled):
        return exc, None
    if not isinstance(exc, BaseExceptionGroup):
        return None, exc
    return exc.split(trio.Cancelled)


def leaves(exc: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, in groups in it and so on; an exception that is no group by itself."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for part in exc.exceptions for leaf in leaves(part)]


def is_cancelled_here() -> bool:
    """Return whether a scope around the caller is cancelled, so that a `trio.Cancelled` may be for the caller.

    If none is, somebody has kept it, or got it from code that shares a result, and no scope would catch it.
    """
    return trio.current_effective_deadline() == -math.inf


def fatal_part(exc: BaseException) -> BaseException | None:
    """Return the first exception in ``exc`` that has to end the program: a `SystemExit` or its like.

    An `Exception` is none of these, nor is what ends only a task or a generator. Whoever raises that without being
    cancelled or closed has a bug.
    """
    return next((leaf for leaf in leaves(exc) if not isinstance(leaf, Exception) and not _ends_a_task(leaf)), None)


def forget_traceback(exc: BaseException) -> None:
    """Drop the tracebacks of an exception that was logged.

    Code that keeps an exception and raises it again would make its traceback longer each time, and keep all the frames
    in it alive.
    """
    # Not by assignment, as a frozen exception would refuse that.
    exc.with_traceback(None)
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            forget_traceback(part)


def _ends_a_task(exc: BaseException) -> bool:
    if isinstance(exc, trio.Cancelled | GeneratorExit):
        return True
    # Not imported for this: if nobody has, there is no such exception.
    asyncio = sys.modules.get("asyncio.exceptions")
    return asyncio is not None and isinstance(exc, asyncio.CancelledError)


def cause_of(error: BaseException) -> str:
    """Return what kind of failure ``error`` is, in a word."""
    parts = leaves(error)
    if len(parts) == 1:
        # A nursery wraps what its task raised.
        error = parts[0]
    # By name, since a client may come from a fork of httpx.
    is_timeout = any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)
    return "timeout" if is_timeout or isinstance(error, TimeoutError | trio.TooSlowError) else type(error).__name__
