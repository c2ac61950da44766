"""What the body of a 2xx says: how many spans were rejected, and whether something went wrong all the same.

A body is read as what it is, not as what its content type calls it: servers send JSON as ``text/plain``, protobuf
without any type, and an error with the status 200. So it is tried as JSON if it looks like it, then as protobuf. Where
the type does not say protobuf, every field has to be known and every text to be UTF-8, so that nothing else is mistaken
for it: each such message has control characters in it that no text has.

An error in a body is never more than a warning. Only OTLP's partial success says how many spans were rejected.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Mapping
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

__all__ = ["is_answer", "read_answer"]

# Bytes of a body that tell what it is, and whether a text begins as an error does.
_BEGINNING = 4096

# Keys under which servers say that something failed, in lower case and without what stands between words; and how the
# name of a count of what failed begins.
_ERRORS = re.compile(
    r"err(?:ors?)?(?:codes?|no|messages?|msg|description|details|counts?)?|exceptions?|faults?(?:string)?|failures?"
)
_FAILED_COUNTS = ("rejected", "failed", "dropped")
# Keys under which they say how it went, and words for that. A status of HTTP may stand there as well.
_OUTCOMES = re.compile(r"(?:http)?(?:status(?:code|text)?|code)|result|outcome|state")
_ACHIEVED = re.compile(r"success(?:ful)?|succeeded|ok|accepted")
_FAILED = re.compile(
    r"err(?:or)?s?|fail(?:ed|ures?|ing)?|exception|rejected|invalid|denied|unauthorized|forbidden|aborted|timed?out"
    r"|partial(?:success|failure|error)?"
)
# What was sent: a status in it is that of a span.
_SENT = frozenset({"resourceSpans", "resource_spans"})
# What is as good as no error.
_FINE = frozenset(
    ["", "0", "200", "ok", "okay", "none", "null", "nil", "false", "no", "no error", "no errors", "n/a", "success",
     "successful", "succeeded", "accepted"]
)  # fmt: skip
# https://github.com/grpc/grpc/blob/master/doc/statuscodes.md, without OK, which is 0.
_GRPC_CODES = (
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_NOT_IN_A_NAME = re.compile(r"[\s_.-]+")

# A status line, as in the parts of a 207, or an error in front of a plain text.
_FAILED_STATUS = re.compile(
    r"\s*(?P<version>HTTP/[0-9.]{1,3}\s+)?(?P<code>[45][0-9][0-9])(?:\s+(?P<phrase>[A-Z][A-Za-z' -]{2,40}))?\b"
)
_ERROR_TEXT = re.compile(r"\s*(?:\w{1,20}[ .]){0,3}\w{0,20}(?:error|exception)\s*[:!]\s*(.*)", re.I | re.DOTALL)
_PHRASES = {status.value: status.phrase.lower() for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}

_PLAIN, _MARKUP = {"content-type": "text/plain"}, {"content-type": "text/html"}

# In XML, an element with an error in it, or a status such as WebDAV's (RFC 4918, section 13).
_ERROR_ELEMENT = re.compile(
    rb"<(?:[\w.-]{1,40}:)?(?:errors?|faults?|exception)(?:\s[^<>]{0,200})?(?<!/)>\s*(?!</)\S"
    rb"|<(?:[\w.-]{1,40}:)?status(?:\s[^<>]{0,200})?>\s*HTTP/[0-9.]{1,3}\s+[45][0-9][0-9]",
    re.IGNORECASE,
)


def read_answer(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> tuple[int, str]:
    """Return how many spans were rejected, and the server's words about them or a warning; empty if all is well.

    Args:
        status: The status, a 2xx.
        headers: The response's headers, their names in lower case.
        body: The response's body, decompressed.
        secrets: What must not be repeated, where a text is cut off.
    """
    rejected, message = _from_body(status, media_type(headers), body, secrets)
    return rejected, message or _error_in_headers(headers)


def is_answer(body: bytes) -> bool:
    """Return whether a body is empty, a JSON object or a partial success in protobuf, whatever its type says."""
    return _begins_as_json_object(body) or _from_protobuf(body, declared=False) is not None


def _begins_as_json_object(body: bytes) -> bool:
    return re.match(rb"(?:\xef\xbb\xbf)?\s*\{\s*[\"}]", body) is not None


def _from_body(status: int, kind: str, body: bytes, secrets: Collection[str]) -> tuple[int, str]:
    problem = ""
    beginning = body[:_BEGINNING].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if beginning in (b"{", b"[") or ("json" in kind and beginning):
        try:
            return _from_json(body)
        except ValueError as error:
            problem = f"the answer's body cannot be read as application/json: {error}" if "json" in kind else ""
    answer = _from_protobuf(body, declared="protobuf" in kind)
    if answer is not None and any(answer):
        return answer
    # A text may be called protobuf too, and happen to parse as fields that are not known.
    words = _error_in_xml(body, secrets) if beginning == b"<" else _error_in_text_of(body, secrets)
    if words:
        return 0, _error(words)
    if answer is not None:
        return answer
    if "protobuf" in kind:
        problem = "the answer's body cannot be read as application/x-protobuf: it does not parse"
    elif status == HTTPStatus.MULTI_STATUS and beginning not in (b"", b"<"):
        problem = problem or f"the answer is a 207 Multi-Status: {server_message(_PLAIN, body, secrets)}"
    return 0, problem


def _error(words: str) -> str:
    return f"the answer's body says an error: {words}"


def _error_in_headers(headers: Mapping[str, str]) -> str:
    # A gateway in front of a gRPC server may pass on its verdict in a 200.
    code = headers.get("grpc-status", "").strip()
    return "" if code in ("", "0") else f"the answer says grpc-status {code}: {headers.get('grpc-message', '')}"


# -- protobuf --------------------------------------------------------------------------------------------------------


def _from_protobuf(body: bytes, *, declared: bool) -> tuple[int, str] | None:
    """Return what a protobuf answer says; ``None`` if the body is none.

    Args:
        body: The body.
        declared: Whether the content type says that it is protobuf. It may then have fields that are not known yet.
    """
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
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bounded_text(text: bytes) -> str:
    # As a str, four megabytes may take sixteen.
    size = len(text)
    return text.decode("utf-8", "replace") if size <= MAX_MESSAGE_BYTES else f"(a message of {size} bytes)"


# -- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(body: bytes) -> tuple[int, str]:
    """Return what a JSON answer says.

    Raises:
        ValueError: It is none, or too long.
    """
    if not is_bounded_json(body):
        raise ValueError("it is too long")
    try:
        # A byte that is no UTF-8, or half of a surrogate pair, must not cost the number beside it.
        document = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        # The parser's own words repeat the text.
        raise ValueError("it does not parse") from None
    rejected, message, is_understood = _partial_success(document)
    if rejected > 0 or message:
        return rejected, message
    words = _error_in_json(document)
    if not words and not is_understood:
        raise ValueError("it does not parse")
    return 0, _error(words) if words else ""


def _partial_success(document: Any) -> tuple[int, str, bool]:
    """Return the number and the message of a partial success, and whether it could be read."""
    keys = ("partialSuccess", "partial_success")
    found = {key: document[key] for key in keys if key in document} if isinstance(document, dict) else {}
    try:
        text = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
        partial = json_format.Parse(text, ExportTraceServiceResponse(), ignore_unknown_fields=True).partial_success
    except (ValueError, RecursionError, json_format.ParseError):
        return 0, "", False
    return max(partial.rejected_spans, 0), _bounded_text(partial.error_message.encode("utf-8")), True


def _error_in_json(document: Any) -> str:
    """Return the words of the error that a JSON document says; empty if it says none.

    An error may stand at any depth: in the items of a 207, in an envelope that all of a server's answers have.
    """
    if isinstance(document, str):
        return _error_in_text(document)
    waiting = deque([document])
    while waiting:
        value = waiting.popleft()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if any(_says_error(key, said) for key, said in value.items()) or _is_rpc_status(value):
                return json_words(value)
            waiting.extend(part for key, part in value.items() if key not in _SENT)
    return ""


def _says_error(key: str, value: Any) -> bool:
    name = _NOT_IN_A_NAME.sub("", key).lower()
    if _ERRORS.fullmatch(name):
        return _is_something(value)
    if _ACHIEVED.fullmatch(name):
        return value is False or (isinstance(value, str) and value.strip().lower() == "false")
    if _OUTCOMES.fullmatch(name):
        return _is_failed_outcome(value)
    return name.startswith(_FAILED_COUNTS) and _is_positive(value)


def _is_something(value: Any, depth: int = 4) -> bool:
    if isinstance(value, str):
        return value.strip().rstrip(".!").lower() not in _FINE
    if isinstance(value, dict | list) and depth > 0:
        return any(_is_something(part, depth - 1) for part in (value.values() if isinstance(value, dict) else value))
    return bool(value) and value != HTTPStatus.OK


def _is_failed_outcome(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return 400 <= value < 600
    if not isinstance(value, str):
        return False
    words = _NOT_IN_A_NAME.sub("", value).lower()
    if value in _GRPC_CODES or value.strip().lower() in _PHRASES.values():
        return True
    return _FAILED.fullmatch(words) is not None or _is_failed_status(value, or_only_number=True)


def _is_positive(value: Any) -> bool:
    if isinstance(value, str):
        return value.isdecimal() and value.strip("0") != ""
    if isinstance(value, list):
        return bool(value)
    return isinstance(value, int | float) and value > 0


def _is_rpc_status(value: dict[str, Any]) -> bool:
    # google.rpc.Status. Other servers have codes of their own, of which those that say "success" beside it are none.
    code, message = value.get("code"), value.get("message", value.get("msg"))
    if isinstance(code, str):
        is_code = code.upper() in _GRPC_CODES
    else:
        is_code = isinstance(code, int) and not isinstance(code, bool) and (code < 0 or 0 < code <= len(_GRPC_CODES))
    return is_code and isinstance(message, str) and _is_something(message)


# -- text and XML ----------------------------------------------------------------------------------------------------


def _error_in_text(text: str) -> str:
    """Return ``text`` if it begins as an error does: with a failure's status line, or with a word and a colon."""
    error = _ERROR_TEXT.match(text)
    return text if _is_failed_status(text) or (error is not None and _is_something(error[1])) else ""


def _error_in_text_of(body: bytes, secrets: Collection[str]) -> str:
    is_error = _error_in_text(body[:_BEGINNING].decode("utf-8-sig", "replace"))
    return server_message(_PLAIN, body, secrets) if is_error else ""


def _is_failed_status(text: str, *, or_only_number: bool = False) -> bool:
    found = _FAILED_STATUS.match(text)
    if found is None:
        return False
    phrase = _PHRASES.get(int(found["code"]))
    has_phrase = phrase is not None and (found["phrase"] or "").lower().startswith(phrase)
    return has_phrase or found["version"] is not None or (or_only_number and found.end() == len(text.rstrip()))


def _error_in_xml(body: bytes, secrets: Collection[str]) -> str:
    found = _ERROR_ELEMENT.search(body)
    return "" if found is None else server_message(_MARKUP, body[found.start() :], secrets) or "in an XML element"
