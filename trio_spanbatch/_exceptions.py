"""Taking groups of exceptions apart: other people's nurseries wrap what they raise."""

from __future__ import annotations

import trio

__all__ = ["leaves", "split_cancelled"]


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
