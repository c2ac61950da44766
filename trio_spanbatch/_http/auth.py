"""Credentials that are made or fetched for each attempt, rather than fixed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import attrs


class AuthError(Exception):
    """No credentials are available.

    Args:
        reason: What went wrong. It is shown, so it must not contain credentials.
        retry: Whether another attempt may succeed: if a token endpoint is down, but not if a setting is missing.
    """

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry


@runtime_checkable
class Auth(Protocol):
    """Makes the headers that authenticate a request, for instance from a cached token.

    Several attempts may call it at once, also for the same location.
    """

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers for one attempt at sending to ``location``.

        It is called for each attempt, within the attempt's timeout, so it may be cancelled.

        Raises:
            AuthError: No credentials are available, for now or permanently.
        """

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget ``headers``, to which the server answered 401.

        `headers` is then called once more, and the request is repeated if it returns other headers. Compare them with
        the cached ones: another attempt may have fetched a new token in the meantime.
        """


AuthFunction: TypeAlias = Callable[[str], Mapping[str, str] | Awaitable[Mapping[str, str]]]


@attrs.frozen
class _FunctionAuth:
    function: AuthFunction

    async def headers(self, location: str) -> Mapping[str, str]:
        headers = self.function(location)
        return await headers if inspect.isawaitable(headers) else headers

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Do nothing: the function is called again anyway."""


def as_auth(auth: Auth | AuthFunction | None) -> Auth | None:
    """Return ``auth`` as an object; raise `TypeError` if it is neither an `Auth` nor a function."""
    if auth is None or isinstance(auth, Auth):
        return auth
    if callable(auth):
        return _FunctionAuth(auth)
    raise TypeError(
        f"auth is of type {type(auth).__name__}; it must be a function of the location that returns headers, or an "
        "object with headers() and invalidate(); an httpx.Auth belongs in a client that is given as client="
    )


def name_of(auth: Auth) -> str:
    """Return a name for ``auth`` in messages: its ``repr`` may contain credentials."""
    if not isinstance(auth, _FunctionAuth):
        return type(auth).__name__
    name = getattr(auth.function, "__name__", None)
    return f"auth function {name}" if isinstance(name, str) else f"auth function of type {type(auth.function).__name__}"
