"""Databricks' unified authentication as an `Auth`: tokens of databricks-sdk, fetched in a thread.

databricks-sdk determines how to authenticate (``DATABRICKS_*``, a profile, the methods of the clouds) and caches its
tokens, but it blocks: its import takes a second, its ``Config`` asks the workspace for its token endpoint, and
``authenticate()`` fetches a token if the cached one is about to expire. All three happen in a thread, one at a time.

A service principal's token is valid for an hour, others for shorter or longer, and the expiry of a personal access
token is unknown. The SDK returns no token that expires within 40 seconds, so asking it every 30 seconds always gives a
valid one of any kind. If the SDK knows when the token expires, that is respected too.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
import trio

from .._http.auth import AuthError
from .databricks_failures import SET_CREDENTIALS, auth_error
from .shared_fetch import SharedFetch

# Selects the workspace where several share one host. databricks-sdk sends it with its own requests.
WORKSPACE_HEADER = "X-Databricks-Workspace-Id"

# Seconds for which a token is used without asking the SDK again.
_RECHECK = 30.0

# A token is not used in its last seconds. This is databricks-sdk's own margin (`oauth.Token.expired`), because Azure
# refuses a token that expires within 30 seconds.
_MARGIN = 40.0

# The SDK's request for a token has no timeout. A thread that has run for this many seconds is abandoned.
_HANGING = 60.0

# If this many threads are abandoned, no other is started until one of them ends.
_MAX_ABANDONED = 4


class DatabricksConfig(Protocol):
    """The part of databricks-sdk's ``Config`` that is used."""

    @property
    def host(self) -> str | None:
        """The workspace to which the credentials belong."""

    def authenticate(self) -> dict[str, str]:
        """Return headers; may block."""

    def oauth_token(self) -> Any:
        """Return the token as an object with an ``expiry``; raise `ValueError` if it is not an OAuth token."""


MakeConfig: TypeAlias = Callable[[], DatabricksConfig]

_SET_PRINCIPAL = "set DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"

T = TypeVar("T")

# A name that databricks-sdk gives to a method of authentication; anything else is not shown.
_AUTH_TYPE = re.compile(r"[a-z0-9-]{1,40}")


@attrs.frozen
class ServicePrincipal:
    """A service principal's OAuth credentials, and the workspace to which they belong."""

    client_id: str
    client_secret: str = attrs.field(repr=False)
    workspace_id: str


@attrs.define
class _Session:
    """A ``Config``, which is created and used in a thread; the SDK caches the token in it."""

    make_config: MakeConfig
    host: str
    names_workspace: bool
    threads: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    started: float = math.inf
    _config: DatabricksConfig | None = None
    _short_lived: bool = False

    @property
    def busy(self) -> bool:
        return self.threads.borrowed_tokens > 0

    def fetch(self) -> tuple[dict[str, str], float]:
        """Return headers, and the number of seconds until they expire; `math.inf` if that is unknown. Blocks."""
        config = self._made_config()
        headers = dict(config.authenticate())
        seconds_left = 0.0 if self._short_lived else self._seconds_left(config, headers)
        if self.names_workspace and (workspace_id := _text_of(config, "workspace_id")):
            headers[WORKSPACE_HEADER] = workspace_id
        return headers, seconds_left

    def service_principal(self) -> ServicePrincipal:
        """Return the service principal of the ``Config``. Blocks."""
        config = self._made_config()
        client_id, client_secret = _text_of(config, "client_id"), _text_of(config, "client_secret")
        auth_type = _text_of(config, "auth_type")
        if not (client_id and client_secret) or auth_type not in ("", "oauth-m2m"):
            found = auth_type if _AUTH_TYPE.fullmatch(auth_type) else "none"
            raise AuthError(
                f"Zerobus accepts only service principals, and databricks-sdk found {found}: {_SET_PRINCIPAL}, or send "
                "to Unity Catalog without Zerobus",
                retry=False,
            )
        workspace_id = _text_of(config, "workspace_id")
        if not workspace_id:
            raise AuthError("databricks-sdk does not know the workspace's id: set DATABRICKS_WORKSPACE_ID", retry=False)
        return ServicePrincipal(client_id, client_secret, workspace_id)

    def _made_config(self) -> DatabricksConfig:
        if self._config is None:
            config = self.make_config()
            host = (config.host or "").rstrip("/").lower()
            if host and host != self.host:
                raise AuthError(f"databricks-sdk has credentials for a workspace other than {self.host}", retry=False)
            self._config = config
        return self._config

    def _seconds_left(self, config: DatabricksConfig, headers: Mapping[str, str]) -> float:
        try:
            token = config.oauth_token()
            # The SDK's times are local times without a zone.
            left = (token.expiry - datetime.datetime.now(token.expiry.tzinfo)).total_seconds()
        except Exception:
            # Not an OAuth token, or one without an expiry.
            return math.inf
        # For a token within its margin, the SDK fetches another at each call, as it just did. So it is not asked again.
        self._short_lived = not headers.get("Authorization", "").endswith(token.access_token)
        return 0.0 if self._short_lived else float(left)


class DatabricksAuth:
    """Authenticates with databricks-sdk. An `Auth`.

    Exports that need a token at the same time share one refresh, including its failure. If all of them are cancelled,
    the thread continues, and the next export uses the token that it fetched.

    ``make_config`` is called in a thread, for the first token and after a 401. Credentials for another workspace than
    ``host`` (as ``https://...``) are not sent to it. With ``names_workspace``, the headers include the workspace's id,
    if databricks-sdk knows it.
    """

    def __init__(self, make_config: MakeConfig, host: str, *, names_workspace: bool = True) -> None:
        self._host = host
        self._new_session = functools.partial(_Session, make_config, host, names_workspace)
        self._credentials = SharedFetch(self._fetch_headers)
        self._principal = SharedFetch(self._fetch_principal)
        self._session = self._new_session()
        self._abandoned: list[_Session] = []

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers that authenticate; they are the same for all locations.

        If this is cancelled, a refresh that has begun continues in its thread. The reason of an `AuthError` never
        repeats the SDK's message, which may contain credentials.
        """
        return await self._credentials.get()

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Drop ``headers`` and the SDK's token, so that the next call of `headers` authenticates again."""
        if self._credentials.kept == headers:
            self._credentials.forget()
            self._replace_session()

    async def service_principal(self) -> ServicePrincipal:
        """Return the service principal, without fetching a token; raise `AuthError` if there is none."""
        return await self._principal.get()

    def forget_principal(self, principal: ServicePrincipal) -> None:
        """Drop ``principal``, which the workspace does not know: the next call reads variables and files again."""
        if self._principal.kept is principal:
            self._principal.forget()
            self._replace_session()

    def __repr__(self) -> str:
        return f"<DatabricksAuth for {self._host}>"

    async def _fetch_headers(self) -> tuple[Mapping[str, str], float]:
        headers, seconds_left = await self._ask(_Session.fetch, SET_CREDENTIALS)
        return headers, trio.current_time() + min(_RECHECK, seconds_left - _MARGIN)

    async def _fetch_principal(self) -> tuple[ServicePrincipal, float]:
        return await self._ask(_Session.service_principal, _SET_PRINCIPAL), math.inf

    async def _ask(self, question: Callable[[_Session], T], remedy: str) -> T:
        while True:
            session = self._usable_session()
            if not session.busy:
                session.started = trio.current_time()
            try:
                answer = await trio.to_thread.run_sync(
                    question, session, abandon_on_cancel=True, limiter=session.threads
                )
            except Exception as error:
                failure = auth_error(error, self._host, remedy)
                break
            if session is self._session:
                return answer
            # A 401 came in the meantime: this may be the token that the server refused.
        # The configuration may be corrected before the next call, so nothing of it is cached.
        self._replace_session()
        raise failure

    def _usable_session(self) -> _Session:
        self._abandoned = [session for session in self._abandoned if session.busy]
        hangs = self._session.busy and trio.current_time() - self._session.started > _HANGING
        if hangs and len(self._abandoned) < _MAX_ABANDONED:
            self._replace_session()
        return self._session

    def _replace_session(self) -> None:
        if self._session.busy:
            self._abandoned.append(self._session)
        self._session = self._new_session()


def _text_of(config: DatabricksConfig, name: str) -> str:
    """Return an optional attribute of ``config`` as a str; empty if it is missing."""
    value = getattr(config, name, None)
    return str(value).strip() if isinstance(value, str | int) else ""
