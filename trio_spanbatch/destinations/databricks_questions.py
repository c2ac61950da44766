"""Requests to a Databricks workspace that carry no spans, with bounded time and a bounded answer in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

import attrs
import httpx
import trio

from ..otlp.attempt import Attempt, close_at_once
from ..otlp.auth import AuthError
from ..otlp.body import BoundedBody, read_bounded
from ..otlp.failures import failure_result
from ..otlp.http import OTLPExporter
from ..otlp.http_headers import encoded_headers
from ..otlp.log_filter import hidden_in_logs
from ..otlp.messages import is_bounded_json
from ..otlp.packages import classes

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
        attempt = Attempt(request.url.netloc.decode("ascii"))
        request.extensions["trace"] = attempt.trace
        attempt.hide(request.headers.raw)
        failure = f"no complete answer within {_TIMEOUT:g} s"
        with trio.move_on_after(_TIMEOUT):
            try:
                with hidden_in_logs(lambda: attempt.secrets):
                    return await self._send_and_read(request)
            except classes("RequestError", "InvalidURL") as error:
                failure = self._reason(error, attempt)
            finally:
                await attempt.close_unused_connection()  # noqa: ASYNC102  # it closes without waiting
        # Out of the ``except``, so that httpx's exception, which may show a header, is not its context.
        raise AuthError(f"{self.url}: {failure}")

    async def _send_and_read(self, request: httpx.Request) -> Answer:
        # A client of the user's own may have credentials of its own, which are for spans.
        response = await self._client.send(request, stream=True, follow_redirects=False, auth=None)
        try:
            body = BoundedBody(response.headers.get("content-encoding", ""), _MAX_BYTES)
            await read_bounded(response, body)
        finally:
            # This does nothing unless reading was cancelled, or ended with an exception.
            await close_at_once(response.aclose)  # noqa: ASYNC102  # it closes without waiting
        return Answer(response.status_code, {} if body.exceeded else _object(body.content))

    def _reason(self, error: Exception, attempt: Attempt) -> str:
        return getattr(
            failure_result(
                error,
                peer=attempt.peer,
                connected=attempt.connected,
                https=self.url.startswith("https:"),
                advice=self._tls_advice,
                write_error=attempt.write_error,
                secrets=attempt.secrets,
            ),
            "reason",
            "",
        )


def _object(body: bytes | None) -> Mapping[str, object]:
    if body is None or not is_bounded_json(body):
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
