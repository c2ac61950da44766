"""Map a server's response to a result, with a table and without I/O.

`RULES` is the table: the first rule that applies to a response makes the result. It follows the OTLP specification
(https://opentelemetry.io/docs/specs/otlp/#otlphttp-response) and is stricter where the specification says nothing:
a redirect is a failure, since following it would pass on credentials, and so is a web page with the status 200, since
a login page stores no spans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import responses
from itertools import islice
from typing import TypeAlias
from urllib.parse import urlsplit

import attrs

from .._exporter import Delivered, ExportResult, Refused, TryLater
from .answers import is_answer, read_answer
from .messages import media_type, server_message, short_text

# Seconds. More than a year is a mistake; the batcher limits the wait further.
MAX_RETRY_AFTER = 365 * 24 * 3600.0

# A member of a list of numbers and HTTP-dates, two of whose three forms have a comma after the day of the week; and
# how many members are read.
_MEMBER = re.compile(r"(?:\s*(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},)?[^,]+", re.IGNORECASE)
_MAX_MEMBERS = 100

_HTML = frozenset({"text/html", "application/xhtml+xml"})

# The beginning of a body, after comments and an XML declaration, is more reliable than its type. If the type is vague,
# the body may be a part of a page; in XML, elements of these names may be something else.
_VAGUE = frozenset({"", "text/plain", "application/octet-stream"})
_PAGE = re.compile(rb"<(!doctype\s+html|html)(?=[\s>/])", re.IGNORECASE)
_PART_OF_A_PAGE = re.compile(
    rb"<(!doctype\s+html|html|head|body|title|script|noscript|style|meta|link|form|iframe|h1)(?=[\s>/])", re.IGNORECASE
)
_BEFORE_HTML = {b"<!--": b"-->", b"<?xml": b"?>"}
# How many bytes of a body are examined.
_BEGINNING = 4096


@attrs.frozen
class Response:
    """A response as it was received."""

    status: int
    headers: Mapping[str, str]  # header names in lower case to values
    # The body, decompressed, or the beginning of an error's; ``None`` if it could not be decompressed.
    body: bytes | None
    # The time in seconds since 1970, from which an HTTP-date in ``Retry-After`` counts if there is no ``Date``.
    now: float
    # Credentials that must not be shown if the server repeats them.
    secrets: Collection[str] = attrs.field(default=(), repr=False)

    @property
    def message(self) -> str:
        return server_message(self.headers, self.body or b"", self.secrets)

    @property
    def reason(self) -> str:
        message = self.message
        return f"{_status_line(self.status)}: {message}" if message else _status_line(self.status)


Answer: TypeAlias = Callable[[Response], ExportResult]
Condition: TypeAlias = Callable[[Response], bool]


@attrs.frozen
class Rule:
    """One row of the table."""

    requirement: str  # the rule in a sentence
    statuses: Collection[int]  # the status codes to which it applies
    outcome: type[Delivered | TryLater | Refused]
    answer: Answer = attrs.field(repr=False)  # makes the result
    applies: Condition = attrs.field(default=lambda _response: True, repr=False)  # a further condition on the response


def interpret_response(
    status: int, headers: Mapping[str, str], body: bytes | None, *, now: float, secrets: Collection[str] = ()
) -> ExportResult:
    """Return the result that a response means for the batch. The arguments are those of `Response`."""
    response = Response(status, headers, body, now, secrets)
    # With HTTP/2, a status may be any number; the last rule applies to everything else.
    rule = next((rule for rule in RULES if status in rule.statuses and rule.applies(response)), RULES[-1])
    return rule.answer(response)


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, at most `MAX_RETRY_AFTER`; ``None`` if missing or invalid.

    Each hop may have added a value, whole seconds or an HTTP-date, in another header or in a list. The longest is
    returned: it satisfies all. A date counts from the response's ``Date`` if that can be read, as the two clocks may
    differ, else from ``now``; a past date is 0 seconds.
    """
    sent = next((moment for value in _listed(headers.get("date")) if (moment := _http_date(value)) is not None), now)
    waits = [wait for value in _listed(headers.get("retry-after")) if (wait := _seconds_until(value, sent)) is not None]
    return max(waits, default=None)


def _listed(value: str | None) -> Iterator[str]:
    """Yield the first members of a list. httpx joins headers of the same name with commas as well."""
    return (member[0].strip() for member in islice(_MEMBER.finditer(value or ""), _MAX_MEMBERS))


def _seconds_until(value: str, sent: float) -> float | None:
    if re.fullmatch(r"[0-9]+", value):
        # int() refuses thousands of digits, which mean the maximum.
        return min(float(value), MAX_RETRY_AFTER)
    moment = _http_date(value)
    return None if moment is None else min(max(moment - sent, 0.0), MAX_RETRY_AFTER)


def _http_date(value: str) -> float | None:
    # Each form of HTTP-date begins with the day of the week and contains the time. The library also accepts texts that
    # are not meant as a date ("5 1 1").
    if not re.match(r"[A-Za-z]{3,9},? .*:", value[:64]):
        return None
    try:
        moment = parsedate_to_datetime(value[:64])
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _status_line(status: int) -> str:
    return f"{status} {responses[status]}" if status in responses else str(status)


def _is_html(response: Response) -> bool:
    kind = media_type(response.headers)
    if kind in _HTML:
        # Flask's default type, so an empty body or an answer of OTLP may have it too.
        return response.body is None or not (response.body.isspace() or is_answer(response.body))
    tag = _PART_OF_A_PAGE if kind in _VAGUE else _PAGE
    return tag.match(_without_preamble((response.body or b"")[:_BEGINNING])) is not None


def _without_preamble(text: bytes) -> bytes:
    """Return ``text`` without comments and the XML declaration at its beginning."""
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    while end := next((end for begin, end in _BEFORE_HTML.items() if text.startswith(begin)), None):
        text = text.partition(end)[2].lstrip()
    return text


def _login_page(response: Response) -> Refused:
    message = response.message
    page = f" ({message})" if message else ""
    return Refused(
        short_text(f"{_status_line(response.status)} with a web page instead of an OTLP answer: a login page?{page}"),
        response.status,
    )


def _delivered(response: Response) -> Delivered:
    """Read the partial success. A body that cannot be read is only a warning, as the status is a success."""
    if response.body is None:
        encoding = response.headers.get("content-encoding", "")
        message = f"the answer's body could not be decompressed (content-encoding: {encoding})"
        rejected = 0
    else:
        rejected, message = read_answer(response.status, response.headers, response.body, response.secrets)
    message = short_text(message, response.secrets) if message else ""
    return Delivered(rejected, message, status_code=response.status)


def _not_followed(response: Response) -> Refused:
    target = _target(response.headers.get("location", ""))
    towards = f" to {target}" if target else ""
    return Refused(
        short_text(f"{_status_line(response.status)}: the redirect{towards} was not followed", response.secrets),
        response.status,
    )


def _target(location: str) -> str:
    """Return the target of a redirect without userinfo, query and fragment, which may contain credentials."""
    try:
        parts = urlsplit(location[:4096])
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    path = parts.path if host or "@" not in parts.path else ""
    scheme = f"{parts.scheme}:" if parts.scheme else ""
    return f"{scheme}//{host}{path}" if host else path


def _try_later(response: Response) -> TryLater:
    after = retry_after(response.headers, now=response.now)
    return TryLater(response.reason, after=after, status_code=response.status)


RULES: tuple[Rule, ...] = (
    Rule(
        "a 2xx without a body is a delivery, whatever type it would have",
        range(200, 300),
        Delivered,
        _delivered,
        lambda response: response.body == b"",
    ),
    Rule(
        "a 2xx that is a web page, or has the type of one and is neither empty nor JSON nor a partial success, is a "
        "login page, not a delivery",
        range(200, 300),
        Refused,
        _login_page,
        _is_html,
    ),
    Rule(
        "any other 2xx is a delivery; its partial success is counted and never retried, whatever its content type; an "
        "error in its body is a warning",
        range(200, 300),
        Delivered,
        _delivered,
    ),
    Rule("3xx is not followed: credentials would go along", range(300, 400), Refused, _not_followed),
    Rule(
        "429, 502, 503 and 504 are retried, after the longest Retry-After if any is given",
        (429, 502, 503, 504),
        TryLater,
        _try_later,
    ),
    Rule(
        "400, 413 and 422 are never repeated as they are; the cause may be a part of the batch",
        (400, 413, 422),
        Refused,
        lambda response: Refused(response.reason, response.status, isolate=True),
    ),
    Rule(
        "everything else is refused and never retried",
        range(1000),
        Refused,
        lambda response: Refused(response.reason, response.status),
    ),
)
