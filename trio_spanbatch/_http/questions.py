"""Requests without spans: sent once, with a timeout and a bounded response."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import attrs
import httpx
import trio

from .._exporter import Refused, TryLater
from .attempt import Attempt
from .messages import is_bounded_json
from .packages import classes
from .responses import Response
from .sender import USER_AGENT, Sender
from .tls import TLSAdvice

__all__ = ["ask", "json_object"]

# What a client adds by itself.
_HEADERS = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"}


async def ask(
    sender: Sender,
    request: httpx.Request,
    *,
    seconds: float,
    max_bytes: int,
    advice: TLSAdvice,
    **send_options: Any,
) -> Response | Refused | TryLater:
    """Send ``request``, made without a timeout, within ``seconds``, and return the response or the failure.

    A response of more than ``max_bytes`` after decompression is refused. Redirects are not followed. Credentials in the
    request's headers appear in no log and no reason.
    """
    attempt = Attempt(request.url.netloc.decode("ascii"))
    for name, value in _HEADERS.items():
        request.headers.setdefault(name, value)
    with trio.move_on_after(seconds):
        try:
            await attempt.send(sender, request, max_bytes, **send_options)
        except classes("RequestError", "InvalidURL") as error:
            failure = attempt.failure(error, request.url, advice)
            # No span was sent, so nothing is ambiguous.
            return attrs.evolve(failure, ambiguous=False) if isinstance(failure, TryLater) else failure
        assert attempt.head is not None
        assert attempt.body is not None
        status, headers = attempt.head
        if attempt.body.exceeded:
            return Refused(f"{status}: the answer is larger than {max_bytes} bytes", status)
        return Response(status, headers, attempt.body.content, time.time(), attempt.secrets)
    return TryLater(f"no complete answer from {attempt.peer} within {seconds:g} s", cause="timeout")


def json_object(body: bytes | None) -> Mapping[str, object]:
    """Return the JSON object in ``body``; an empty one if there is none, or parsing it could take too much memory."""
    if body is None or not is_bounded_json(body):
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
