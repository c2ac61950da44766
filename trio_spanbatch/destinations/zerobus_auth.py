"""Tokens for Zerobus: one per table, which only allows writing to that table. The workspace issues them.

See https://docs.databricks.com/aws/en/ingestion/opentelemetry/configure. ``authorization_details``
(https://www.rfc-editor.org/rfc/rfc9396) restrict what a token allows.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping

import attrs
import trio

from .._exporter import Refused, TryLater
from .._http.attempt import Requester
from .._http.auth import AuthError
from .._http.exporter import OTLPExporter
from .._http.messages import json_object
from .._http.responses import Response
from .._settings.header_checks import encoded_headers
from .databricks_auth import WORKSPACE_HEADER, DatabricksAuth, ServicePrincipal
from .databricks_failures import OAUTH_REFUSALS
from .shared_fetch import KeyedFetch

_TOKEN_PATH = "/oidc/v1/token"

# A token is replaced this many seconds before it expires, or at three quarters of its lifetime if that is later.
_MARGIN = 60.0
# Seconds for which a token is used: if the response does not give its lifetime, and at most.
_UNKNOWN_LIFE = 300.0
_LONGEST_LIFE = 24 * 3600.0

# A token that can be sent in a header after ``Bearer``.
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")

# Seconds for one request. An attempt to send spans has 20, which leaves time for the fallback.
_REQUEST_TIMEOUT = 10.0
# A token has about 2,000 bytes, the summary of a metastore fewer.
_MAX_ANSWER_BYTES = 256 * 1024


@attrs.frozen
class Answer:
    """A workspace's response."""

    status: int
    document: Mapping[str, object] = attrs.field(repr=False)  # the JSON object in the body; empty if there is none

    @property
    def may_change(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 429) or self.status >= 500

    def text(self, name: str) -> str:
        """Return the string ``name`` of the document; empty if there is none."""
        value = self.document.get(name)
        return value if isinstance(value, str) else ""


class Workspace:
    """Sends requests to a workspace. Redirects are not followed, since they would take credentials along."""

    def __init__(self, url: str, exporter: OTLPExporter) -> None:
        self.url = url
        self._requester = Requester(
            exporter._sender, exporter._tls_advice, timeout=_REQUEST_TIMEOUT, max_bytes=_MAX_ANSWER_BYTES
        )

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return the response. If there is no complete one, `AuthError` shows no credentials."""
        try:
            encoded = encoded_headers(headers)
        except (TypeError, ValueError) as error:
            # The message shows no value.
            raise AuthError(f"no request can be sent to {self.url}: {error}", retry=False) from None
        all_headers = [(b"accept", b"application/json"), *encoded.items()]
        # Without auth=None, a client that the user gave would add its own credentials, which are for spans.
        answer = await self._requester.request(
            method, self.url + path, headers=all_headers, data=form, send_options={"auth": None}
        )
        if isinstance(answer, Refused) and answer.status_code is not None and answer.status_code != 200:
            # The body is too large, for instance an error page, but the status code says enough.
            return Answer(answer.status_code, {})
        if not isinstance(answer, Response):
            raise AuthError(f"{self.url}: {answer.reason}", retry=isinstance(answer, TryLater))
        return Answer(answer.status, json_object(answer.body))


class TableTokens:
    """One token per table, fetched when first needed and cached until shortly before it expires. An `Auth`."""

    def __init__(self, workspace: Workspace, auth: DatabricksAuth) -> None:
        self._workspace = workspace
        self._auth = auth
        self._tokens = KeyedFetch(self._fetch)

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers for the table ``location``. If there is no token, `AuthError` shows no credentials."""
        return await self._tokens.get(location)

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget the token for ``location``, if it is the one in ``headers``."""
        if self._tokens.kept(location) == headers:
            self._tokens.forget(location)

    def has_token(self, location: str) -> bool:
        """Return whether a token for ``location`` is cached and was not invalidated."""
        return self._tokens.kept(location) is not None

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
