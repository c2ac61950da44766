"""The message of an error response, as one short printable line.

Errors come as protobuf ``google.rpc.Status`` (as the specification says), as JSON of many shapes, as HTML from a proxy,
or as plain text, with a content type that may be wrong. Nothing here trusts a length, an encoding or a structure, and
no input costs more than reading it once.

protobuf refuses a whole message for one byte of invalid UTF-8 in a ``string``, such as a text cut off in the middle of
a character: the number of rejected spans beside it would be lost, and they would count as delivered. A ``bytes`` field
is the same on the wire and holds anything. So the messages of ``trace_service.proto`` and ``google/rpc/status.proto``
are defined here, as far as they are read, with ``bytes`` in place of ``string``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from .secrets import redacted

_PACKAGE = "trio_spanbatch.lenient"


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="trio_spanbatch/lenient.proto", package=_PACKAGE, syntax="proto3")
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    partial = file.message_type.add(name="PartialSuccess")
    partial.field.add(name="rejected_spans", number=1, type=FieldDescriptorProto.TYPE_INT64, label=optional)
    partial.field.add(name="error_message", number=2, type=FieldDescriptorProto.TYPE_BYTES, label=optional)
    response = file.message_type.add(name="TraceServiceResponse")
    response.field.add(
        name="partial_success",
        number=1,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.PartialSuccess",
        label=optional,
    )
    # google.rpc.Status, which the specification uses for errors; its details are not read.
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=FieldDescriptorProto.TYPE_INT32, label=optional)
    status.field.add(name="message", number=2, type=FieldDescriptorProto.TYPE_BYTES, label=optional)
    repeated = FieldDescriptorProto.LABEL_REPEATED
    status.field.add(name="details", number=3, type=FieldDescriptorProto.TYPE_BYTES, label=repeated)
    return file


# A separate pool: names in the default one may clash with those of other packages.
_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())

# Any: classes that are made at run time have no static types.
Status: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.Status"))
TraceServiceResponse: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName(f"{_PACKAGE}.TraceServiceResponse")
)


MAX_MESSAGE_LENGTH = 200

# Messages with more bytes than this are not read.
MAX_MESSAGE_BYTES = 1024 * 1024

# The bytes of a body in which a text is looked for. A page's title is near its beginning, and regular expressions
# are cheap on so short a prefix, whatever it contains.
_TEXT_PREFIX = 4096

# JSON above these sizes is not parsed. The first bounds the text, the second the parsed objects: a list of empty lists
# takes thirty times the memory of its text.
_MAX_JSON_BYTES = 1024 * 1024
_MAX_JSON_ITEMS = 20_000

# The keys of messages in order of preference: those of Google and MLflow, Databricks and FastAPI, then others.
_MESSAGE_KEYS = ("message", "detail", "error_message", "error_description", "error", "msg", "title", "errors")
_CODE_KEYS = ("error_code", "code")

# Terminal sequences: ESC or its 8-bit form, then a control sequence (ECMA-48, 5.4) or a string up to its end. Of an
# unknown or cut-off one, only the ESC itself is dropped, like any character that cannot be printed.
_TERMINAL = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[P\\]^_X])[^\x07\x1b]*(?:\x07|\x1b\\\\)")

_TITLE = re.compile(r"<title[^>]{0,200}>([^<]*)", re.IGNORECASE)
_INVISIBLE = re.compile(r"<(?:script|style)\b[^<]*", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>?")


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type in lower case, without parameters; empty if none, the first if httpx has joined some."""
    return headers.get("content-type", "").partition(";")[0].partition(",")[0].strip().lower()


def short_text(text: str, secrets: Collection[str] = ()) -> str:
    """Return ``text`` on one line, printable, without ``secrets``, of at most `MAX_MESSAGE_LENGTH` characters."""
    # First, as a sequence may split a secret.
    text = _TERMINAL.sub("", text)
    # Secrets are removed before the text is cut off, which might leave half of one.
    text = redacted(text, secrets)[: 4 * MAX_MESSAGE_LENGTH]
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= MAX_MESSAGE_LENGTH else line[: MAX_MESSAGE_LENGTH - 1].rstrip() + "…"


def is_bounded_json(body: bytes) -> bool:
    """Return whether parsing ``body`` as JSON takes a bounded amount of memory."""
    return len(body) <= _MAX_JSON_BYTES and body.count(b",") + body.count(b"[") + body.count(b"{") <= _MAX_JSON_ITEMS


def server_message(headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> str:
    """Return the message of an error response, short and without ``secrets``; empty if it has none that can be read."""
    kind = media_type(headers)
    if "protobuf" in kind:
        message = _status_message(body)
        if message or body[:_TEXT_PREFIX].lstrip()[:1] not in (b"{", b"<"):
            return short_text(message, secrets)
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        found = _json_words(parsed_json(body))
        if found:
            return short_text(found, secrets)
    # Four times the prefix, so that a secret across its end is whole when it is removed.
    text = _TERMINAL.sub("", body[: 4 * _TEXT_PREFIX].decode("utf-8", "replace"))
    text = redacted(text, secrets)[:_TEXT_PREFIX]
    return short_text(_html_text(text) if "html" in kind or text.lstrip()[:1] == "<" else text, secrets)


def _status_message(body: bytes) -> str:
    if len(body) > MAX_MESSAGE_BYTES:
        return ""
    try:
        message: bytes = Status.FromString(body).message
    except DecodeError:
        return ""
    return message.decode("utf-8", "replace")


def parsed_json(body: bytes) -> Any:
    """Return the document in ``body``; None if it does not parse, or parsing it could take too much memory."""
    try:
        return json.loads(body) if is_bounded_json(body) else None
    except (ValueError, RecursionError):
        return None


def json_object(body: bytes | None) -> Mapping[str, object]:
    """Return the JSON object in ``body``; an empty one if there is none, or parsing it could take too much memory."""
    document = parsed_json(body or b"")
    return document if isinstance(document, dict) else {}


def json_words(value: dict[str, Any]) -> str:
    """Return the message of an error in a JSON document, or the whole error if it has none."""
    return _json_words(value) or json.dumps(value, ensure_ascii=False)


def _json_words(document: Any) -> str:
    message = _message_in(document)
    code = next((document[key] for key in _CODE_KEYS if key in document), "") if isinstance(document, dict) else ""
    if not isinstance(code, str) or not code:
        return message
    return f"{code}: {message}" if message else code


def _message_in(value: Any, depth: int = 4) -> str:
    """Return the first string under one of the usual keys of ``value``."""
    if isinstance(value, str):
        return value
    if depth == 0:
        return ""
    if isinstance(value, list):
        return _message_in(value[0], depth - 1) if value else ""
    if isinstance(value, dict):
        for key in _MESSAGE_KEYS:
            found = _message_in(value.get(key), depth - 1)
            if found:
                return found
    return ""


def _html_text(text: str) -> str:
    title = _TITLE.search(text)
    if title is not None and title[1].strip():
        return html.unescape(title[1])
    return html.unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", text)))
