"""One fetch at a time for all tasks that want the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from ..otlp.auth import AuthError

__all__ = ["SharedFetch"]

T = TypeVar("T")


class SharedFetch(Generic[T]):
    """What an async function returns, kept for as long as it is good.

    Tasks that ask at the same time share one call, and its failure too. Failures are not kept. If the task that makes
    the call is cancelled, the next one that waits makes its own.

    Args:
        fetch: Returns it, or raises `AuthError`.
        is_good: Whether what was fetched can still be used.

    Attributes:
        kept: What was fetched last; None if that failed or was forgotten.
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
        """Whether a task is fetching."""
        return self._fetching.locked()

    async def get(self) -> T:
        """Return what is kept, or fetch it.

        Raises:
            AuthError: It was fetched, by this task or another, and there is none.
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
        """Fetch again the next time."""
        self.kept = None

    async def _call(self) -> None:
        try:
            self.kept, self._failure = await self._fetch(), None
        except AuthError as failure:
            # Without its traceback, which would keep alive what the fetch knew.
            self.kept, self._failure = None, AuthError(failure.reason, retry=failure.retry)
        self._calls += 1
