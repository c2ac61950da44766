"""Read the body of a 2xx: how many spans were rejected, and whether it reports an error anyway.

A body is read by its content rather than by its content type: servers send JSON as ``text/plain``, protobuf without
any type, and errors with the status 200. It is tried as JSON if it looks like it, then as protobuf. If the type does
not say protobuf, every field must be known and every text must be UTF-8, so that nothing else is mistaken for it: such
a message contains control characters, which text does not.

An error in a body is never more than a warning. Only OTLP's partial success says how many spans were rejected.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from .messages import (
    MAX_MESSAGE_BYTES,
    Status,
    TraceServiceResponse,
    is_bounded_json,
    json_words,
    media_type,
    server_message,
)

# Bytes of a body that are enough to tell its format, and whether a text begins with an error.
_BEGINNING = 4096
_BOM = b"\xef\xbb\xbf"

# https://github.com/grpc/grpc/blob/master/doc/statuscodes.md, without OK, which is 0.
_GRPC_CODES = (
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

# Values that report no error.
_FINE = frozenset(
    ["", "0", "200", "ok", "okay", "none", "null", "nil", "false", "no", "no error", "no errors", "n/a", "success",
     "successful", "succeeded", "accepted"]
)  # fmt: skip
# An outcome that is a failure, without separators: a word for it, or a status code or its phrase.
_PHRASES = {status.value: status.phrase for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}
_FAILED = re.compile(
    r"err(?:or)?s?|fail(?:ed|ures?|ing)?|exception|rejected|invalid|denied|unauthorized|forbidden|aborted|timed?out"
    r"|partial(?:success|failure|error)?|[45][0-9][0-9]|"
    + "|".join(re.sub(r"[\s-]", "", phrase) for phrase in _PHRASES.values()),
    re.IGNORECASE,
)

# The beginning of a text that is an error: a status line, as in the parts of a 207, or a word such as "ValueError:".
_STATUSES = "|".join(rf"{code}\s+{re.escape(phrase)}" for code, phrase in _PHRASES.items())
_FAILED_STATUS = re.compile(rf"\s*(?:HTTP/[0-9.]{{1,3}}\s+[45][0-9][0-9]|{_STATUSES})\b", re.IGNORECASE)
_ERROR_TEXT = re.compile(r"\s*(?:\w{1,20}[ .]){0,3}\w{0,20}(?:error|exception)\s*[:!]\s*(.*)", re.I | re.DOTALL)

# In XML, an element with an error in it, or a status such as WebDAV's (RFC 4918, section 13).
_ERROR_ELEMENT = re.compile(
    rb"<(?:[\w.-]{1,40}:)?(?:errors?|faults?|exception)(?:\s[^<>]{0,200})?(?<!/)>\s*(?!</)\S"
    rb"|<(?:[\w.-]{1,40}:)?status(?:\s[^<>]{0,200})?>\s*HTTP/[0-9.]{1,3}\s+[45][0-9][0-9]",
    re.IGNORECASE,
)


def read_answer(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> tuple[int, str]:
    """Return how many spans were rejected, and the server's message about them or a warning; empty if all is well."""
    rejected, message = _from_body(status, media_type(headers), body, secrets) if body else (0, "")
    code = headers.get("grpc-status", "").strip()
    if not message and code not in ("", "0"):
        # A gateway in front of a gRPC server may pass on an error in a 200.
        message = f"the answer says grpc-status {code}: {headers.get('grpc-message', '')}"
    return rejected, message


def is_answer(body: bytes) -> bool:
    """Return whether a body is empty, a JSON object or a partial success in protobuf, whatever its type is."""
    is_json_object = re.match(rb"\s*\{\s*[\"}]", body.removeprefix(_BOM)) is not None
    return is_json_object or _from_protobuf(body, declared=False) is not None


def _from_body(status: int, kind: str, body: bytes, secrets: Collection[str]) -> tuple[int, str]:
    problem = ""
    beginning = body[:_BEGINNING].removeprefix(_BOM).lstrip()[:1]
    if beginning in (b"{", b"[") or ("json" in kind and beginning):
        try:
            return _from_json(body)
        except ValueError as error:
            problem = f"the answer's body cannot be read as application/json: {error}" if "json" in kind else ""
    answer = _from_protobuf(body, declared="protobuf" in kind)
    if answer is not None and any(answer):
        return answer
    # A text may be labelled protobuf too, and may happen to parse as unknown fields.
    message = _error_in_xml(body, secrets) if beginning == b"<" else _error_in_plain_text(body, secrets)
    if message:
        return 0, _error(message)
    if answer is not None:
        return answer
    if "protobuf" in kind:
        problem = "the answer's body cannot be read as application/x-protobuf: it does not parse"
    elif status == HTTPStatus.MULTI_STATUS and beginning not in (b"", b"<"):
        problem = problem or f"the answer is a 207 Multi-Status: {server_message({}, body, secrets)}"
    return 0, problem


def _error(message: str) -> str:
    return f"the answer's body says an error: {message}"


# -- protobuf --------------------------------------------------------------------------------------------------------


def _from_protobuf(body: bytes, *, declared: bool) -> tuple[int, str] | None:
    """Return the rejected spans and message in protobuf, else ``None``. If ``declared``, it may have unknown fields."""
    answer = _parsed(TraceServiceResponse, body, strictly=not declared)
    if answer is not None and (declared or _is_utf8(answer.partial_success.error_message)):
        rejected, message = max(answer.partial_success.rejected_spans, 0), answer.partial_success.error_message
        if rejected or message:
            return rejected, _bounded_text(message)
    status = _parsed(Status, body, strictly=True)
    if status is not None and 0 < status.code <= len(_GRPC_CODES) and (declared or _is_utf8(status.message)):
        name = _GRPC_CODES[status.code - 1]
        return 0, _error(f"{name}: {_bounded_text(status.message)}" if status.message else name)
    return None if answer is None else (0, "")


def _parsed(kind: Any, body: bytes, *, strictly: bool) -> Any:
    try:
        message = kind.FromString(body)
    except DecodeError:
        return None
    size = message.ByteSize()
    if strictly:
        message.DiscardUnknownFields()
    return message if message.ByteSize() == size else None


def _is_utf8(text: bytes) -> bool:
    return text.decode("utf-8", "replace").encode() == text


def _bounded_text(text: bytes) -> str:
    # As a str, 4 MB may take 16.
    size = len(text)
    return text.decode("utf-8", "replace") if size <= MAX_MESSAGE_BYTES else f"(a message of {size} bytes)"


# -- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(body: bytes) -> tuple[int, str]:
    """Return the rejected spans and message of a JSON answer; `ValueError` if it is too long or does not parse."""
    if not is_bounded_json(body):
        raise ValueError("it is too long")
    try:
        # Invalid UTF-8, or half of a surrogate pair, must not cost the number beside it.
        document = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        # The parser's own message repeats the text.
        raise ValueError("it does not parse") from None
    partial = _partial_success(document)
    if partial is not None and any(partial):
        return partial
    message = _error_in_json(document)
    if not message and partial is None:
        raise ValueError("it does not parse")
    return 0, _error(message) if message else ""


def _partial_success(document: Any) -> tuple[int, str] | None:
    """Return the number and the message of a partial success; ``None`` if there is one that cannot be read."""
    keys = ("partialSuccess", "partial_success")
    found = {key: document[key] for key in keys if key in document} if isinstance(document, dict) else {}
    try:
        text = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
        partial = json_format.Parse(text, ExportTraceServiceResponse(), ignore_unknown_fields=True).partial_success
    except (ValueError, RecursionError, json_format.ParseError):
        return None
    return max(partial.rejected_spans, 0), _bounded_text(partial.error_message.encode("utf-8"))


def _error_in_json(document: Any) -> str:
    """Return the message of the error that a JSON document reports; empty if it reports none.

    An error may be at any depth: in the items of a 207, or in an envelope around each of a server's answers.
    """
    if isinstance(document, str):
        return document if _begins_with_error(document) else ""
    waiting = deque([document])
    while waiting:
        value = waiting.popleft()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if any(_reports_error(key, item) for key, item in value.items()) or _is_rpc_status(value):
                return json_words(value)
            # A status in the spans that were sent is that of a span.
            waiting.extend(item for key, item in value.items() if key not in ("resourceSpans", "resource_spans"))
    return ""


def _is_something(value: Any, depth: int = 4) -> bool:
    if isinstance(value, str):
        return value.strip().rstrip(".!").lower() not in _FINE
    if isinstance(value, dict | list) and depth > 0:
        return any(_is_something(part, depth - 1) for part in (value.values() if isinstance(value, dict) else value))
    return bool(value) and value != HTTPStatus.OK


def _is_false(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value.strip().lower() == "false")


def _is_failed_outcome(value: Any) -> bool:
    if not isinstance(value, str):
        return type(value) is int and 400 <= value < 600
    is_failed = _FAILED.fullmatch(re.sub(r"[\s_.-]", "", value)) or _FAILED_STATUS.match(value)
    return is_failed is not None or value in _GRPC_CODES


def _is_positive(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"0*[1-9][0-9]*", value) is not None
    return bool(value) if isinstance(value, list) else isinstance(value, int | float) and value > 0


# Keys with which servers report errors, in lower case and without separators, and the values that are errors.
_ERROR_SIGNS: tuple[tuple[re.Pattern[str], Callable[[Any], bool]], ...] = (
    (
        re.compile(
            r"err(?:ors?)?(?:codes?|no|messages?|msg|description|details|counts?)?"
            r"|exceptions?|faults?(?:string)?|failures?"
        ),
        _is_something,
    ),
    (re.compile(r"success(?:ful)?|succeeded|ok|accepted"), _is_false),
    (re.compile(r"(?:http)?(?:status(?:code|text)?|code)|result|outcome|state"), _is_failed_outcome),
    (re.compile(r"(?:rejected|failed|dropped).*", re.DOTALL), _is_positive),
)


def _reports_error(key: str, value: Any) -> bool:
    name = re.sub(r"[\s_.-]", "", key).lower()
    return any(pattern.fullmatch(name) and is_error(value) for pattern, is_error in _ERROR_SIGNS)


def _is_rpc_status(value: dict[str, Any]) -> bool:
    # google.rpc.Status. Other servers use other codes; with "success" beside it, a code is not an error.
    code, message = value.get("code"), value.get("message", value.get("msg"))
    if isinstance(code, str):
        is_code = code.upper() in _GRPC_CODES
    else:
        is_code = type(code) is int and (code < 0 or 0 < code <= len(_GRPC_CODES))
    return is_code and isinstance(message, str) and _is_something(message)


# -- text and XML ----------------------------------------------------------------------------------------------------


def _begins_with_error(text: str) -> bool:
    error = _ERROR_TEXT.match(text)
    return _FAILED_STATUS.match(text) is not None or (error is not None and _is_something(error[1]))


def _error_in_plain_text(body: bytes, secrets: Collection[str]) -> str:
    is_error = _begins_with_error(body[:_BEGINNING].decode("utf-8-sig", "replace"))
    return server_message({}, body, secrets) if is_error else ""


def _error_in_xml(body: bytes, secrets: Collection[str]) -> str:
    found = _ERROR_ELEMENT.search(body)
    return "" if found is None else server_message({}, body[found.start() :], secrets) or "in an XML element"
