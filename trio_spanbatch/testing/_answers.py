"""The answers of a server in a test, and the ways in which it can fail instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import attrs
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from .._spans.hashing import hash_of_record
from ._checks import NONE, a_bool, check, check_list, is_pair_of_str, not_negative, number, of, some_bytes, validator

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def pairs(headers: Any) -> Any:
    """Convert an iterable of pairs, which may be an iterator, to a tuple; the validator refuses anything else."""
    return tuple(headers) if isinstance(headers, Iterable) and not isinstance(headers, str | bytes | dict) else headers


def _check_messages(name: str, value: object) -> None:
    if value is not None:
        check_list(name, value, "OpenTelemetry Span messages, or None", lambda span: isinstance(span, SpanMessage))


def _check_chunks(name: str, value: object) -> None:
    check_list(name, value, "an iterable of bytes", lambda chunk: isinstance(chunk, bytes | bytearray | memoryview))


valid_pairs = validator(
    lambda name, value: check_list(name, value, 'pairs of str such as [("retry-after", "5")]', is_pair_of_str)
)
_final_status = number("a final HTTP status, 200 to 999", lambda value: 200 <= value <= 999, int)
_an_int = of("an int", int)


@attrs.frozen
class Answer:
    """An HTTP response.

    Attributes:
        status: The status code, 200 to 999.
        headers: Pairs of name and value. ``Content-Length`` is added unless it is given.
        body: The body as it is sent.
        delay: Seconds on trio's clock before the server stores the spans and answers; ``math.inf`` means forever.
        store: Whether the request's spans are stored. None stores them only with a 2xx; True with a 503 simulates a
            server that took the spans but failed afterwards.
        rejected: The number of spans that the answer reports as rejected. They are not stored: the last ones, unless
            ``rejected_spans`` is given.
        rejected_spans: The rejected spans, identified by trace id and span id.
    """

    status: int = attrs.field(default=200, validator=_final_status)
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), converter=pairs, validator=valid_pairs, kw_only=True)
    body: bytes = attrs.field(default=b"", kw_only=True, validator=some_bytes)
    delay: float = attrs.field(default=0.0, kw_only=True, validator=not_negative)
    store: bool | None = attrs.field(default=None, kw_only=True, validator=of("True, False or None", bool, NONE))
    rejected: int = attrs.field(default=0, kw_only=True, validator=_an_int)
    rejected_spans: Sequence[SpanMessage] | None = attrs.field(
        default=None, kw_only=True, validator=validator(_check_messages)
    )

    __hash__ = hash_of_record

    @property
    def stores(self) -> bool:
        """Whether the request's spans are stored."""
        return 200 <= self.status < 300 if self.store is None else self.store

    def accepted(self, spans: Sequence[SpanMessage]) -> list[SpanMessage]:
        """Return those of ``spans`` that were not rejected, in order."""
        if self.rejected_spans is None:
            return list(spans[: max(0, len(spans) - max(0, self.rejected))])
        rejected = {(span.trace_id, span.span_id) for span in self.rejected_spans}
        return [span for span in spans if (span.trace_id, span.span_id) not in rejected]


_MOMENTS = ("before_body", "after_body", "mid_response")


@attrs.frozen
class Reset:
    """The connection breaks: TCP is reset, a memory stream breaks.

    Attributes:
        when: ``"before_body"``: as soon as the head of the request was read. A function in ``answers`` is called with
            complete requests, so there it is the same as ``"after_body"``. ``"after_body"``: the request was read and
            is not answered. ``"mid_response"``: half of the bytes of the default answer were sent.
        store: Whether the request's spans are stored first, if they were read.
    """

    when: Literal["before_body", "after_body", "mid_response"] = attrs.field(
        default="after_body", validator=of(f"one of {_MOMENTS}", str, valid=_MOMENTS.__contains__)
    )
    store: bool = attrs.field(default=False, validator=a_bool)


@attrs.frozen
class Hang:
    """The request is read and never answered. It ends when the client gives up.

    Attributes:
        store: Whether the request's spans are stored.
    """

    store: bool = attrs.field(default=False, validator=a_bool)


@attrs.frozen
class Drip:
    """Raw bytes are written in place of a response; then the connection is closed.

    Attributes:
        chunks: The bytes to write. It may be infinite.
        interval: Seconds between two chunks, on trio's clock.
        store: Whether the request's spans are stored first.
    """

    chunks: Iterable[bytes] = attrs.field(validator=validator(_check_chunks))
    interval: float = attrs.field(default=0.0, validator=not_negative)
    store: bool = attrs.field(default=False, validator=a_bool)

    __hash__ = hash_of_record


Outcome: TypeAlias = Answer | Reset | Hang | Drip


def _media_type(*types: str) -> Callable[[str], bool]:
    return lambda content_type: content_type.partition(";")[0].strip().lower() in types


def partial_success(
    rejected: int,
    message: str = "",
    *,
    content_type: str = PROTOBUF,
    rejected_spans: Iterable[SpanMessage] | None = None,
) -> Answer:
    """Return OTLP's answer to a request of which some spans were rejected.

    Args:
        rejected: The number of rejected spans that the answer reports. It may be wrong, to simulate a faulty server.
        message: The server's error message.
        content_type: ``application/x-protobuf`` or ``application/json``; the body is encoded accordingly.
        rejected_spans: The spans that are rejected and not stored, by default the last ``rejected`` ones.
    """
    check("rejected", rejected, "an int of 64 bits", int, valid=lambda value: -(2**63) <= value < 2**63)
    check("message", message, "a str", str)
    check("content_type", content_type, f"{PROTOBUF!r} or {JSON!r}", str, valid=_media_type(PROTOBUF, JSON))
    _check_messages("rejected_spans", rejected_spans)
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    body = response.SerializeToString()
    if _media_type(JSON)(content_type):
        # 64-bit numbers are strings in protobuf's JSON mapping.
        body = json.dumps({"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": message}}).encode()
    return Answer(
        headers=[("content-type", content_type)],
        body=body,
        rejected=rejected,
        rejected_spans=None if rejected_spans is None else tuple(rejected_spans),
    )
