"""Credentials that are made or fetched, rather than fixed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

__all__ = ["Auth", "AuthError", "AuthFunction", "as_auth", "name_of"]


class AuthError(Exception):
    """There are no credentials to be had.

    Args:
        reason: What went wrong; shown as it is, so it holds no credentials.
        retry: Whether another attempt may have more luck: a token endpoint that is down, unlike a missing setting.
    """

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry


@runtime_checkable
class Auth(Protocol):
    """Makes the headers with which a request is authenticated, for instance from a token that it caches.

    Several attempts call it at once, also for one location.
    """

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers for one attempt at sending to ``location``.

        It is called for every attempt, within the attempt's timeout, so it may be cancelled.

        Raises:
            AuthError: There are no credentials now, or never will be.
        """
        ...

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget ``headers``: the server answered 401 to them.

        `headers` is then called once more and the request is repeated if it returns others. Compare with what is
        cached: another attempt may have fetched a new token in the meantime.
        """
        ...


AuthFunction: TypeAlias = Callable[[str], Mapping[str, str] | Awaitable[Mapping[str, str]]]


@attrs.frozen
class _FunctionAuth:
    function: AuthFunction

    async def headers(self, location: str) -> Mapping[str, str]:
        headers = self.function(location)
        return await headers if inspect.isawaitable(headers) else headers

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Do nothing: the function is asked again anyway."""


def as_auth(auth: Auth | AuthFunction | None) -> Auth | None:
    """Return ``auth`` as an object.

    Raises:
        TypeError: It is neither an `Auth` nor a function.
    """
    if auth is None or isinstance(auth, Auth):
        return auth
    if callable(auth):
        return _FunctionAuth(auth)
    raise TypeError(
        f"auth is of type {type(auth).__name__}; it must be a function of the location that returns headers, or an "
        "object with headers() and invalidate(); an httpx.Auth belongs into a client of your own, given as client="
    )


def name_of(auth: Auth) -> str:
    """Return what to call ``auth`` in a message: its own words may hold credentials."""
    if not isinstance(auth, _FunctionAuth):
        return type(auth).__name__
    name = getattr(auth.function, "__name__", None)
    return f"auth function {name}" if isinstance(name, str) else f"auth function of type {type(auth.function).__name__}"
