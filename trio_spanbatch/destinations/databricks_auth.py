"""Databricks' unified authentication as an `Auth`: tokens of databricks-sdk, fetched in a thread.

databricks-sdk finds out by itself how to authenticate (``DATABRICKS_*``, a profile, the clouds' own ways) and keeps
its tokens, but it blocks: its import takes a second, its ``Config`` asks the workspace where tokens come from, and
``authenticate()`` fetches one when it has none that lasts. All three happen in a thread, one at a time.

A token of a service principal lasts an hour, one of another way less or more, and a personal access token has no end
that could be asked for. The SDK hands out no token that ends within 40 seconds, so asking it every 30 seconds always
gives one that lasts, whatever its kind; where the SDK tells when the token ends, that is heeded too.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from ..otlp.auth import AuthError
from .databricks_failures import auth_error

__all__ = ["DatabricksAuth", "DatabricksConfig", "MakeConfig"]

# Seconds for which a token is used without asking the SDK whether it still would be.
_RECHECK = 30.0

# Seconds before its end from which a token is not used any more: databricks-sdk's own margin (`oauth.Token.expired`),
# as Azure refuses a token that ends within 30 seconds.
_MARGIN = 40.0

# The SDK gives no timeout to the request for a token. A thread that has worked for so many seconds is left behind.
_HOPELESS = 60.0

# So many may be left behind; then nothing more is started until one of them ends.
_MAX_HOPELESS = 4


class DatabricksConfig(Protocol):
    """What is used of databricks-sdk's ``Config``."""

    @property
    def host(self) -> str | None:
        """The workspace that the credentials are for."""
        ...

    def authenticate(self) -> dict[str, str]:
        """Return headers; may block."""
        ...

    def oauth_token(self) -> Any:
        """Return the token as an object with an ``expiry``; `ValueError` where it is no OAuth token."""
        ...


MakeConfig: TypeAlias = Callable[[], DatabricksConfig]


@attrs.frozen
class _Credentials:
    headers: Mapping[str, str] = attrs.field(repr=False)
    good_until: float


@attrs.define
class _Session:
    """One ``Config``, which is made and used in a thread; the SDK keeps the token in it."""

    make_config: MakeConfig
    threads: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    started: float = math.inf
    _config: DatabricksConfig | None = None
    _short_lived: bool = False

    @property
    def busy(self) -> bool:
        return self.threads.borrowed_tokens > 0

    def fetch(self) -> tuple[dict[str, str], float | None]:
        """Return headers, and how many seconds they last if that is known. Blocks."""
        if self._config is None:
            self._config = self.make_config()
        headers = dict(self._config.authenticate())
        return headers, 0.0 if self._short_lived else self._seconds_left(self._config, headers)

    def _seconds_left(self, config: DatabricksConfig, headers: Mapping[str, str]) -> float | None:
        try:
            token = config.oauth_token()
            # The SDK's times are local and have no zone.
            left = (token.expiry - datetime.datetime.now(token.expiry.tzinfo)).total_seconds()
        except Exception:
            # No OAuth token, or one without an end.
            return None
        # Within its margin, the SDK fetches a token for each question, so this one is another. It is asked no more.
        self._short_lived = not headers.get("Authorization", "").endswith(token.access_token)
        return 0.0 if self._short_lived else float(left)


class DatabricksAuth:
    """Authenticates with databricks-sdk. An `Auth`.

    Exports that need a token at the same time share one refresh, its failure included. If all of them are cancelled,
    the thread goes on, and what it fetched is there for the next one.

    Args:
        make_config: Makes a ``Config``; called in a thread, for the first token and after a 401.
        host: The workspace, as ``https://...``: credentials for another one are not sent to it.
    """

    def __init__(self, make_config: MakeConfig, host: str) -> None:
        self._make_config = make_config
        self._host = host
        self._refreshing = trio.Lock()
        self._refreshes = 0
        self._outcome: _Credentials | AuthError | None = None
        self._session = self._new_session()
        self._left_behind: list[_Session] = []

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers with which to authenticate; they are the same for all locations.

        When cancelled, a refresh that has begun goes on in its thread.

        Raises:
            AuthError: There are none. The reason never has the SDK's own words, which may hold credentials.
        """
        outcome = self._outcome
        if isinstance(outcome, _Credentials) and trio.current_time() < outcome.good_until:
            await trio.lowlevel.checkpoint()
            return outcome.headers
        seen = self._refreshes
        async with self._refreshing:
            if self._refreshes == seen or self._outcome is None:
                self._outcome = await self._refresh()
                self._refreshes += 1
            outcome = self._outcome
        if isinstance(outcome, AuthError):
            raise AuthError(outcome.reason, retry=outcome.retry)
        return outcome.headers

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget ``headers`` and the SDK's token, so that the next call of `headers` authenticates anew."""
        if isinstance(self._outcome, _Credentials) and self._outcome.headers == headers:
            self._outcome = None
            self._replace_session()

    def __repr__(self) -> str:
        return f"<DatabricksAuth for {self._host}>"

    async def _refresh(self) -> _Credentials | AuthError:
        while True:
            session = self._usable_session()
            if not session.busy:
                session.started = trio.current_time()
            try:
                headers, seconds_left = await trio.to_thread.run_sync(
                    session.fetch, abandon_on_cancel=True, limiter=session.threads
                )
            except Exception as error:
                failure = auth_error(error, self._host)
            else:
                if session is self._session:
                    return _Credentials(headers, trio.current_time() + _good_for(seconds_left))
                # A 401 came in the meantime: this may be the very token that the server does not want.
                continue
            # What was configured may be mended by the next time, so nothing of it is kept.
            self._replace_session()
            return failure

    def _usable_session(self) -> _Session:
        self._left_behind = [session for session in self._left_behind if session.busy]
        hopeless = self._session.busy and trio.current_time() - self._session.started > _HOPELESS
        if hopeless and len(self._left_behind) < _MAX_HOPELESS:
            self._replace_session()
        return self._session

    def _replace_session(self) -> None:
        if self._session.busy:
            self._left_behind.append(self._session)
        self._session = self._new_session()

    def _new_session(self) -> _Session:
        return _Session(self._checked_config)

    def _checked_config(self) -> DatabricksConfig:
        config = self._make_config()
        host = (config.host or "").rstrip("/").lower()
        if host and host != self._host:
            raise AuthError(f"databricks-sdk has credentials for another workspace than {self._host}", retry=False)
        return config


def _good_for(seconds_left: float | None) -> float:
    return _RECHECK if seconds_left is None else min(_RECHECK, seconds_left - _MARGIN)
