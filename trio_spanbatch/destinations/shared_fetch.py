"""A cached value that is fetched by one task at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from .._http.auth import AuthError

__all__ = ["SharedFetch"]

T = TypeVar("T")


class SharedFetch(Generic[T]):
    """Cache the value that an async function returns, for as long as it is valid.

    Tasks that need the value at the same time share one call of the function, including its failure. Failures are not
    cached. If the task that makes the call is cancelled, the next waiting task makes its own call.

    Args:
        fetch: Returns the value, or raises `AuthError`.
        is_good: Whether a cached value is still valid.

    Attributes:
        kept: The cached value; None if the last call failed or the value was forgotten.
    """

    def __init__(self, fetch: Callable[[], Awaitable[T]], is_good: Callable[[T], bool]) -> None:
        self.kept: T | None = None
        self._fetch = fetch
        self._is_good = is_good
        self._failure: AuthError | None = None
        self._calls = 0
        self._fetching = trio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._fetching.locked()

    async def get(self) -> T:
        """Return the cached value, or fetch it.

        Raises:
            AuthError: The call failed, whether this task made it or another one.
        """
        kept = self.kept
        if kept is not None and self._is_good(kept):
            await trio.lowlevel.checkpoint()
            return kept
        seen = self._calls
        async with self._fetching:
            if self._calls == seen or (self.kept is None and self._failure is None):
                await self._call()
            kept, failure = self.kept, self._failure
        if kept is None:
            assert failure is not None
            # Not the same object for each task: raising changes it.
            raise AuthError(failure.reason, retry=failure.retry)
        return kept

    def forget(self) -> None:
        """Drop the cached value, so that the next call of `get` fetches it."""
        self.kept = None

    async def _call(self) -> None:
        try:
            self.kept, self._failure = await self._fetch(), None
        except AuthError as failure:
            # Without its traceback, which would keep alive what the fetch knew.
            self.kept, self._failure = None, AuthError(failure.reason, retry=failure.retry)
        self._calls += 1
