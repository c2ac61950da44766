"""Requests to a Databricks workspace that carry no spans, with bounded time and a bounded JSON response."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import attrs

from .._exporter import Refused, TryLater
from .._http.auth import AuthError
from .._http.exporter import OTLPExporter
from .._http.questions import Requester, json_object
from .._http.responses import Response
from .._settings.header_checks import encoded_headers

# Seconds for one request. An attempt to send spans has 20, which leaves time for the fallback.
_TIMEOUT = 10.0
# A token has about 2,000 bytes, the summary of a metastore fewer.
_MAX_BYTES = 256 * 1024


@attrs.frozen
class Answer:
    """A workspace's response.

    Attributes:
        status: The status code.
        document: The JSON object in the body; empty if there is none.
    """

    status: int
    document: Mapping[str, object] = attrs.field(repr=False)

    @property
    def may_change(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or self.status >= 500

    def text(self, name: str) -> str:
        """Return the string ``name`` of the document; empty if there is none."""
        value = self.document.get(name)
        return value if isinstance(value, str) else ""


class Workspace:
    """Sends requests to a workspace. Redirects are not followed, since they would take credentials along.

    Args:
        url: The workspace, as ``https://...``, without a trailing slash.
        exporter: An exporter for the workspace, whose client is used.
    """

    def __init__(self, url: str, exporter: OTLPExporter) -> None:
        self.url = url
        self._requester = Requester(exporter, timeout=_TIMEOUT, max_bytes=_MAX_BYTES)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return the response.

        Raises:
            AuthError: There is no complete response. The reason contains no credentials.
        """
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
        if isinstance(answer, Refused) and answer.status_code is not None and answer.status_code != HTTPStatus.OK:
            # The body is too large, for instance an error page, but the status code says enough.
            return Answer(answer.status_code, {})
        if not isinstance(answer, Response):
            raise AuthError(f"{self.url}: {answer.reason}", retry=isinstance(answer, TryLater))
        return Answer(answer.status, json_object(answer.body))
