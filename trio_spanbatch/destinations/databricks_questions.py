"""Requests to a Databricks workspace that carry no spans, with bounded time and a bounded answer in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

import attrs

from .._exporter import TryLater
from .._http.auth import AuthError
from .._http.exporter import OTLPExporter
from .._http.messages import is_bounded_json
from .._http.questions import ask
from .._http.responses import Response
from .._settings.header_checks import encoded_headers

__all__ = ["Answer", "Workspace"]

# Seconds for one question. An attempt at sending spans has 20, so that there is time left for another way.
_TIMEOUT = 10.0
# A token has some 2,000 bytes, the summary of a metastore less.
_MAX_BYTES = 256 * 1024


@attrs.frozen
class Answer:
    """What a workspace answered.

    Attributes:
        status: The status code.
        document: The members of the JSON object that is the body; none if it is something else.
    """

    status: int
    document: Mapping[str, object] = attrs.field(repr=False)

    @property
    def may_change(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or self.status >= 500

    def text(self, name: str) -> str:
        """Return a member that is a string, else an empty one."""
        value = self.document.get(name)
        return value if isinstance(value, str) else ""


class Workspace:
    """Sends requests to a workspace. Redirects are not followed, since credentials would be sent along.

    Args:
        url: The workspace, as ``https://...``, without a slash at its end.
        exporter: An exporter for the workspace, whose client is used.
    """

    def __init__(self, url: str, exporter: OTLPExporter) -> None:
        self.url = url
        self._client = exporter._client
        self._tls_advice = exporter._tls_advice

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return its answer.

        Raises:
            AuthError: There is no complete answer. The reason holds no credentials.
        """
        try:
            encoded = encoded_headers(headers)
        except (TypeError, ValueError) as error:
            # Its message shows no value.
            raise AuthError(f"{self.url} cannot be asked: {error}", retry=False) from None
        request = self._client.build_request(
            method,
            self.url + path,
            headers=[(b"accept", b"application/json"), *encoded.items()],
            data=form,
            timeout=None,
        )
        # A client of the user's own may have credentials of its own, which are for spans.
        answer = await ask(
            self._client, request, seconds=_TIMEOUT, max_bytes=_MAX_BYTES, advice=self._tls_advice, auth=None
        )
        if not isinstance(answer, Response):
            raise AuthError(f"{self.url}: {answer.reason}", retry=isinstance(answer, TryLater))
        return Answer(answer.status, _object(answer.body))


def _object(body: bytes | None) -> Mapping[str, object]:
    if body is None or not is_bounded_json(body):
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
