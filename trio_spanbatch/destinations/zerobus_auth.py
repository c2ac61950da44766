"""Tokens for Zerobus: one per table, which only allows writing to that table.

See https://docs.databricks.com/aws/en/ingestion/opentelemetry/configure. ``authorization_details``
(https://www.rfc-editor.org/rfc/rfc9396) restrict what a token allows.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping

import trio

from .._http.auth import AuthError
from .databricks_auth import WORKSPACE_HEADER, DatabricksAuth, ServicePrincipal
from .databricks_failures import OAUTH_REFUSALS
from .shared_fetch import KeyedFetch
from .workspace import Answer, Workspace

_TOKEN_PATH = "/oidc/v1/token"

# A token is replaced this many seconds before it expires, or at three quarters of its lifetime if that is later.
_MARGIN = 60.0
# Seconds for which a token is used: if the response does not give its lifetime, and at most.
_UNKNOWN_LIFE = 300.0
_LONGEST_LIFE = 24 * 3600.0

# A token that can be sent in a header after ``Bearer``.
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")


class TableTokens:
    """One token per table, fetched when first needed and cached until shortly before it expires. An `Auth`.

    Args:
        workspace: Issues the tokens.
        auth: Provides the service principal.
    """

    def __init__(self, workspace: Workspace, auth: DatabricksAuth) -> None:
        self._workspace = workspace
        self._auth = auth
        self._tokens = KeyedFetch(self._fetch)

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers for sending to the table ``location``.

        Raises:
            AuthError: There is no token. The reason contains no credentials.
        """
        return await self._tokens.get(location)

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget the token for ``location``, if it is the one in ``headers``."""
        if self._tokens.kept(location) == headers:
            self._tokens.forget(location)

    def has_token(self, location: str) -> bool:
        """Return whether a token for ``location`` is cached and was not invalidated."""
        return self._tokens.kept(location) is not None

    def __repr__(self) -> str:
        return f"<TableTokens of {self._workspace.url}>"

    async def _fetch(self, table: str) -> tuple[Mapping[str, str], float]:
        principal = await self._auth.service_principal()
        began = trio.current_time()
        answer = await self._ask(table, principal)
        if _is_unknown_client(answer):
            # The secret may have been replaced since it was read.
            self._auth.forget_principal(principal)
            fresh = await self._auth.service_principal()
            if fresh != principal:
                began = trio.current_time()
                answer = await self._ask(table, fresh)
        token = answer.text("access_token")
        if answer.status == 200 and _TOKEN.fullmatch(token):
            return {"Authorization": f"Bearer {token}"}, began + _good_for(answer.document.get("expires_in"))
        raise self._failure(answer)

    async def _ask(self, table: str, principal: ServicePrincipal) -> Answer:
        # Bytes of environment variables that are not UTF-8 are sent unchanged.
        pair = f"{principal.client_id}:{principal.client_secret}".encode("utf-8", "surrogateescape")
        basic = base64.b64encode(pair).decode("ascii")
        form = {
            "grant_type": "client_credentials",
            "scope": "all-apis",
            "resource": f"api://databricks/workspaces/{principal.workspace_id}/zerobusDirectWriteApi",
            "authorization_details": json.dumps(_authorization_details(table)),
        }
        headers = {"Authorization": f"Basic {basic}", WORKSPACE_HEADER: principal.workspace_id}
        return await self._workspace.ask("POST", _TOKEN_PATH, headers, form)

    def _failure(self, answer: Answer) -> AuthError:
        # Only known codes are shown: anything else may echo credentials.
        code = next((f" {code}" for code in OAUTH_REFUSALS if code == answer.text("error")), "")
        failure = f"the token endpoint of {self._workspace.url} answered {answer.status}{code}"
        if answer.may_change:
            return AuthError(failure)
        if 200 <= answer.status < 300:
            return AuthError(f"{failure}, without a token")
        if answer.status < 400:
            return AuthError(f"{failure}, a redirect: is it a Databricks workspace?", retry=False)
        if _is_unknown_client(answer):
            return AuthError(f"{failure}: check DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET", retry=False)
        return AuthError(
            f"{failure}: does the table exist, with USE CATALOG, USE SCHEMA, SELECT, MODIFY for the service principal?",
            retry=False,
        )


def _authorization_details(table: str) -> list[dict[str, object]]:
    catalog, schema, _ = table.split(".")
    needed = [
        ("CATALOG", catalog, ["USE CATALOG"]),
        ("SCHEMA", f"{catalog}.{schema}", ["USE SCHEMA"]),
        ("TABLE", table, ["SELECT", "MODIFY"]),
    ]
    return [
        {"type": "unity_catalog_privileges", "object_type": kind, "object_full_path": path, "privileges": privileges}
        for kind, path, privileges in needed
    ]


def _is_unknown_client(answer: Answer) -> bool:
    return answer.status == 401 or answer.text("error") == "invalid_client"


def _good_for(expires_in: object) -> float:
    """Return the number of seconds for which a token with this ``expires_in`` is used."""
    try:
        life = math.nan if isinstance(expires_in, bool) else float(expires_in)  # type: ignore[arg-type]  # TypeError
    except (TypeError, ValueError, OverflowError):
        life = math.nan
    life = min(life, _LONGEST_LIFE) if life >= 0 else _UNKNOWN_LIFE
    return life - min(_MARGIN, life / 4)
