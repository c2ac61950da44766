"""Requests without spans: sent once, with a timeout and a bounded response."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import trio

from .._exporter import Refused, TryLater
from .attempt import Attempt
from .messages import is_bounded_json
from .packages import classes
from .responses import Response
from .sender import USER_AGENT

if TYPE_CHECKING:
    from .exporter import OTLPExporter

# What a client adds by itself.
_HEADERS = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"}


class Requester:
    """Sends requests without spans with the client of an exporter.

    Args:
        exporter: The exporter.
        timeout: The maximum time of a request and its response, in seconds.
        max_bytes: The maximum size of a response after decompression.
    """

    def __init__(self, exporter: OTLPExporter, *, timeout: float, max_bytes: int) -> None:
        # Not the exporter itself, which may refer to this object.
        self._sender = exporter._sender
        self._tls_advice = exporter._tls_advice
        self._timeout = timeout
        self._max_bytes = max_bytes

    async def request(
        self, method: str, url: str, *, send_options: Mapping[str, Any] | None = None, **content: Any
    ) -> Response | Refused | TryLater:
        """Send one request, with headers, parameters or a form in ``content``. Return the response or the failure.

        A response that is too large is a `Refused`, none in time a `TryLater`. Redirects are not followed. Credentials
        in the request's headers appear in no log and no reason.
        """
        return await self._send(self._sender.build_request(method, url, **content), send_options or {})

    async def _send(self, request: httpx.Request, send_options: Mapping[str, Any]) -> Response | Refused | TryLater:
        attempt = Attempt(request.url.netloc.decode("ascii"))
        for name, value in _HEADERS.items():
            request.headers.setdefault(name, value)
        with trio.move_on_after(self._timeout):
            try:
                await attempt.send(self._sender, request, self._max_bytes, **send_options)
            except classes("RequestError", "InvalidURL") as error:
                failure = attempt.failure(error, request.url, self._tls_advice)
                # No span was sent, so nothing is ambiguous.
                return attrs.evolve(failure, ambiguous=False) if isinstance(failure, TryLater) else failure
            assert attempt.head is not None
            assert attempt.body is not None
            status, headers = attempt.head
            if attempt.body.exceeded:
                return Refused(f"{status}: the answer is larger than {self._max_bytes} bytes", status)
            return Response(status, headers, attempt.body.content, time.time(), attempt.secrets)
        return TryLater(f"no complete answer from {attempt.peer} within {self._timeout:g} s", cause="timeout")


def json_object(body: bytes | None) -> Mapping[str, object]:
    """Return the JSON object in ``body``; an empty one if there is none, or parsing it could take too much memory."""
    if body is None or not is_bounded_json(body):
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
