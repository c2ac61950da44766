"""Cached values, each of which is fetched by one task at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeAlias, TypeVar

import trio

from .._http.auth import AuthError

T = TypeVar("T")

# A value, and the time of trio's clock until which it is valid.
Fetched: TypeAlias = tuple[T, float]

# The number of locations that a batcher allows by default.
_MAX_KEYS = 10_000


class SharedFetch(Generic[T]):
    """Cache the value that an async function returns, for as long as it is valid.

    Tasks that need the value at the same time share one call of the function, including its failure. Failures are not
    cached. If the task that makes the call is cancelled, the next waiting task makes its own call.

    ``fetch`` returns the value and the time until which it is valid, or raises `AuthError`.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Fetched[T]]]) -> None:
        self.kept: T | None = None  # the cached value; None if the last call failed or the value was forgotten
        self._valid_until = -math.inf
        self._fetch = fetch
        self._failure: AuthError | None = None
        self._calls = 0
        self._fetching = trio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._fetching.locked()

    async def get(self) -> T:
        """Return the cached value, or fetch it. If that failed, in this task or another one, `AuthError` is raised."""
        kept = self.kept
        if kept is not None and trio.current_time() < self._valid_until:
            await trio.lowlevel.checkpoint()
            return kept
        seen = self._calls
        async with self._fetching:
            if self._calls == seen or (self.kept is None and self._failure is None):
                await self._call()
            kept, failure = self.kept, self._failure
        if kept is None:
            assert failure is not None
            # Each task gets its own object, because raising an exception changes it.
            raise AuthError(failure.reason, retry=failure.retry)
        return kept

    def forget(self) -> None:
        """Drop the cached value, so that the next call of `get` fetches it."""
        self.kept = None

    async def _call(self) -> None:
        try:
            (self.kept, self._valid_until), self._failure = await self._fetch(), None
        except AuthError as failure:
            # A copy without the traceback, which would keep the local variables of the fetch alive.
            self.kept, self._failure = None, AuthError(failure.reason, retry=failure.retry)
        self._calls += 1


class KeyedFetch(Generic[T]):
    """A `SharedFetch` for each key. Of more than 10,000 keys, the least recently used ones are dropped."""

    def __init__(self, fetch: Callable[[str], Awaitable[Fetched[T]]]) -> None:
        self._fetch = fetch
        # The least recently used one first.
        self._fetches: dict[str, SharedFetch[T]] = {}

    async def get(self, key: str) -> T:
        """Return the cached value of ``key``, or fetch it; see `SharedFetch.get`."""
        shared = self._fetches.pop(key, None)
        if shared is None:
            shared = SharedFetch(functools.partial(self._fetch, key))
            if len(self._fetches) >= _MAX_KEYS:
                oldest = next((name for name, other in self._fetches.items() if not other.busy), "")
                self._fetches.pop(oldest, None)
        self._fetches[key] = shared
        return await shared.get()

    def kept(self, key: str) -> T | None:
        """Return the cached value of ``key``; None if there is none or it was forgotten."""
        shared = self._fetches.get(key)
        return None if shared is None else shared.kept

    def forget(self, key: str) -> None:
        """Drop the cached value of ``key``."""
        if key in self._fetches:
            self._fetches[key].forget()
