"""Parse a request and determine the default answer, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import h11
import trio
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from .._http.body import BoundedBody
from .._http.messages import Status
from ._answers import PROTOBUF, Answer, pairs, valid_pairs
from ._checks import NONE, a_str, check, not_negative, of, some_bytes

TRACES_PATH = "/v1/traces"

# google.rpc.Code
_INVALID_ARGUMENT = 3


@attrs.frozen(eq=False)
class ReceivedRequest:
    """A request that was received.

    Attributes:
        method: The HTTP method; ``POST`` from a well-behaved client.
        target: Path and query, such as ``/v1/traces``.
        headers: Pairs of lower-case name and value, in the order in which they were sent.
        location: The value of the receiver's ``location_header``, unchanged; ``"default"`` if there is none.
        body: The body as it was sent.
        content: The body after decompression; empty if it cannot be decompressed.
        message: The parsed content; None if it cannot be parsed.
        at: The time when the request was complete, on trio's clock.
        default_answer: The answer of a well-behaved server.
    """

    method: str = attrs.field(validator=a_str)
    target: str = attrs.field(validator=a_str)
    headers: Sequence[tuple[str, str]] = attrs.field(converter=pairs, validator=valid_pairs)
    location: str = attrs.field(validator=a_str)
    body: bytes = attrs.field(repr=False, validator=some_bytes)
    content: bytes = attrs.field(repr=False, validator=some_bytes)
    message: ExportTraceServiceRequest | None = attrs.field(
        repr=False, validator=of("an ExportTraceServiceRequest or None", ExportTraceServiceRequest, NONE)
    )
    at: float = attrs.field(validator=not_negative)
    default_answer: Answer = attrs.field(repr=False, validator=of("an Answer", Answer))

    @property
    def spans(self) -> list[SpanMessage]:
        """All spans of the request in order; empty if ``message`` is None."""
        if self.message is None:
            return []
        return [
            span
            for resource_spans in self.message.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def header(self, name: str) -> str | None:
        """Return the value of the first header called ``name``, in any case; None if there is none."""
        check("name", name, "a str", str)
        return _header(self.headers, name)


class _Refused(Exception):
    """The request is invalid. The arguments are those of `refusal`."""


def read_request(
    head: h11.Request, body: bytes | None, *, path: str | None, location_header: str | None, max_bytes: int
) -> ReceivedRequest:
    """Parse a request. Never raises, even if the client sent garbage. The rest is as in `OTLPReceiver`.

    ``body`` is None if it was longer than ``max_bytes``.
    """
    method, target = head.method.decode("latin-1"), head.target.decode("latin-1")
    # h11 has made the names lower-case.
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
    content, message, answer = b"", None, Answer(headers=[("content-type", PROTOBUF)])
    try:
        _check_envelope(method, target, headers, path)
        content = _decompressed(_header(headers, "content-encoding") or "", body, max_bytes)
        message = ExportTraceServiceRequest.FromString(content)
    except _Refused as refused:
        answer = refusal(*refused.args)
    except DecodeError as error:
        answer = refusal(400, f"the body is not an ExportTraceServiceRequest: {error}")
    location = _header(headers, location_header) if location_header else None
    return ReceivedRequest(
        method=method,
        target=target,
        headers=headers,
        location=location or "default",
        body=body or b"",
        content=content,
        message=message,
        at=trio.current_time(),
        default_answer=answer,
    )


def refusal(status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Return an answer that refuses a request with a ``google.rpc.Status``, as OTLP specifies."""
    body = Status(code=_INVALID_ARGUMENT, message=message.encode()).SerializeToString()
    return Answer(status, headers=[("content-type", PROTOBUF), *headers], body=body)


def _header(headers: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in headers if key == name.lower()), None)


def _check_envelope(method: str, target: str, headers: Sequence[tuple[str, str]], path: str | None) -> None:
    if path is not None and target.partition("?")[0] != path:
        raise _Refused(404, f"unknown path; send traces to {path}")
    if method != "POST":
        raise _Refused(405, f"the method is {method}; it must be POST", [("allow", "POST")])
    content_type = _header(headers, "content-type") or ""
    if content_type.partition(";")[0].strip().lower() != PROTOBUF:
        raise _Refused(415, f"the content type is {content_type!r}; it must be {PROTOBUF}")


def _decompressed(encoding: str, body: bytes | None, max_bytes: int) -> bytes:
    too_large = _Refused(413, f"the request is larger than {max_bytes} bytes")
    if body is None:
        raise too_large
    collected = BoundedBody(encoding, max_bytes)
    if not collected.readable:
        raise _Refused(415, f"the content encoding {encoding!r} is not gzip or deflate")
    collected.feed(body)
    if collected.exceeded:
        raise too_large
    content = collected.content
    is_empty = not body and encoding.strip().lower() not in ("", "identity")
    if content is None or collected.has_trailing_data:
        raise _Refused(400, f"the body cannot be decompressed: it is not {encoding}")
    if collected.cut_off or is_empty:
        raise _Refused(400, "the body cannot be decompressed: it ends too early")
    return content
