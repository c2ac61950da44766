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
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
import trio

from .._http.auth import AuthError
from .databricks_failures import auth_error
from .shared_fetch import SharedFetch

__all__ = ["WORKSPACE_HEADER", "DatabricksAuth", "DatabricksConfig", "MakeConfig", "ServicePrincipal"]

# Which workspace is meant where several have one host. databricks-sdk sends it with its own requests.
WORKSPACE_HEADER = "X-Databricks-Workspace-Id"

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

T = TypeVar("T")

# A name of databricks-sdk's for a way to authenticate; anything else is not shown.
_AUTH_TYPE = re.compile(r"[a-z0-9-]{1,40}")


@attrs.frozen
class ServicePrincipal:
    """A service principal's OAuth credentials, and the workspace that they are for."""

    client_id: str
    client_secret: str = attrs.field(repr=False)
    workspace_id: str


@attrs.define
class _Session:
    """One ``Config``, which is made and used in a thread; the SDK keeps the token in it."""

    make_config: MakeConfig
    names_workspace: bool
    threads: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    started: float = math.inf
    _config: DatabricksConfig | None = None
    _short_lived: bool = False

    @property
    def busy(self) -> bool:
        return self.threads.borrowed_tokens > 0

    def fetch(self) -> tuple[dict[str, str], float | None]:
        """Return headers, and how many seconds they last if that is known. Blocks."""
        config = self._made_config()
        headers = dict(config.authenticate())
        seconds_left = 0.0 if self._short_lived else self._seconds_left(config, headers)
        if self.names_workspace and (workspace_id := _text_of(config, "workspace_id")):
            headers[WORKSPACE_HEADER] = workspace_id
        return headers, seconds_left

    def service_principal(self) -> ServicePrincipal:
        """Return what the ``Config`` knows of a service principal. Blocks."""
        config = self._made_config()
        client_id, client_secret = _text_of(config, "client_id"), _text_of(config, "client_secret")
        way = _text_of(config, "auth_type")
        if not (client_id and client_secret) or way not in ("", "oauth-m2m"):
            found = f"databricks-sdk found {way}" if _AUTH_TYPE.fullmatch(way) else "databricks-sdk found none"
            raise AuthError(
                f"Zerobus takes service principals only, and {found}: set DATABRICKS_CLIENT_ID and "
                "DATABRICKS_CLIENT_SECRET, or send to Unity Catalog without Zerobus",
                retry=False,
            )
        workspace_id = _text_of(config, "workspace_id")
        if not workspace_id:
            raise AuthError("the workspace does not say what its id is: set DATABRICKS_WORKSPACE_ID", retry=False)
        return ServicePrincipal(client_id, client_secret, workspace_id)

    def _made_config(self) -> DatabricksConfig:
        if self._config is None:
            self._config = self.make_config()
        return self._config

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
        names_workspace: Whether the headers have the workspace's id, where databricks-sdk knows it.
    """

    def __init__(self, make_config: MakeConfig, host: str, *, names_workspace: bool = True) -> None:
        self._make_config = make_config
        self._host = host
        self._names_workspace = names_workspace
        self._credentials = SharedFetch(self._fetch_headers)
        self._principal = SharedFetch(self._fetch_principal)
        self._session = self._new_session()
        self._left_behind: list[_Session] = []

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers with which to authenticate; they are the same for all locations.

        When cancelled, a refresh that has begun goes on in its thread.

        Raises:
            AuthError: There are none. The reason never has the SDK's own words, which may hold credentials.
        """
        return await self._credentials.get()

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget ``headers`` and the SDK's token, so that the next call of `headers` authenticates anew."""
        if self._credentials.kept == headers:
            self._credentials.forget()
            self._replace_session()

    async def service_principal(self) -> ServicePrincipal:
        """Return the service principal, without fetching a token.

        Raises:
            AuthError: There is none.
        """
        return await self._principal.get()

    def forget_principal(self, principal: ServicePrincipal) -> None:
        """Read variables and files again the next time: ``principal`` is not known to the workspace."""
        if self._principal.kept is principal:
            self._principal.forget()
            self._replace_session()

    def __repr__(self) -> str:
        return f"<DatabricksAuth for {self._host}>"

    async def _fetch_headers(self) -> tuple[Mapping[str, str], float]:
        headers, seconds_left = await self._ask(_Session.fetch)
        return headers, trio.current_time() + _good_for(seconds_left)

    async def _fetch_principal(self) -> tuple[ServicePrincipal, float]:
        return await self._ask(_Session.service_principal), math.inf

    async def _ask(self, question: Callable[[_Session], T]) -> T:
        while True:
            session = self._usable_session()
            if not session.busy:
                session.started = trio.current_time()
            try:
                answer = await trio.to_thread.run_sync(
                    question, session, abandon_on_cancel=True, limiter=session.threads
                )
            except Exception as error:
                failure = auth_error(error, self._host)
            else:
                if session is self._session:
                    return answer
                # A 401 came in the meantime: this may be the very token that the server does not want.
                continue
            # What was configured may be mended by the next time, so nothing of it is kept.
            self._replace_session()
            raise failure

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
        return _Session(self._checked_config, self._names_workspace)

    def _checked_config(self) -> DatabricksConfig:
        config = self._make_config()
        host = (config.host or "").rstrip("/").lower()
        if host and host != self._host:
            raise AuthError(f"databricks-sdk has credentials for another workspace than {self._host}", retry=False)
        return config


def _text_of(config: DatabricksConfig, name: str) -> str:
    """Return an attribute of ``config`` that not every one has; empty if it has none."""
    value = getattr(config, name, None)
    return str(value).strip() if isinstance(value, str | int) else ""


def _good_for(seconds_left: float | None) -> float:
    return _RECHECK if seconds_left is None else min(_RECHECK, seconds_left - _MARGIN)
