"""What a server says about an error, in one short printable line.

Errors come as protobuf ``google.rpc.Status`` (the specification's own), as JSON of many shapes, as HTML from a proxy
in between, or as plain text, with a content type that may be wrong. Nothing here trusts a length, an encoding or
a structure, and no input costs more than reading it once.
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

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_MESSAGE_LENGTH",
    "PartialSuccess",
    "Status",
    "TraceServiceResponse",
    "is_bounded_json",
    "json_words",
    "media_type",
    "server_message",
    "short_text",
]

# A server's protobuf messages, read although a text in them is no UTF-8.
#
# protobuf refuses a whole message for one byte in a ``string`` that is no UTF-8, such as that of a text that was cut
# off in the middle of a character: the number of rejected spans beside it would be lost, and they would count as
# delivered. A ``bytes`` field is the same on the wire and holds anything. So these are the messages of
# ``trace_service.proto`` and ``google/rpc/status.proto``, as far as they are read, with ``bytes`` in place of
# ``string``.

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
    # google.rpc.Status, which the specification has for errors; its details are not looked into.
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=FieldDescriptorProto.TYPE_INT32, label=optional)
    status.field.add(name="message", number=2, type=FieldDescriptorProto.TYPE_BYTES, label=optional)
    repeated = FieldDescriptorProto.LABEL_REPEATED
    status.field.add(name="details", number=3, type=FieldDescriptorProto.TYPE_BYTES, label=repeated)
    return file


# A pool of their own: the names of the default one are everybody's.
_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())

# Classes without static types, as they are made here.
Status: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.Status"))
PartialSuccess: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.PartialSuccess"))
TraceServiceResponse: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName(f"{_PACKAGE}.TraceServiceResponse")
)


MAX_MESSAGE_LENGTH = 200

# A message with more bytes than this is not looked at.
MAX_MESSAGE_BYTES = 1024 * 1024

# An error is looked for in this many bytes of a body. A page's title stands near its beginning, and so short a
# prefix keeps even a regular expression that is run over nonsense cheap.
_TEXT_PREFIX = 4096

# JSON above these sizes is not parsed. The first bounds the text, the second what is made of it: a list of
# empty lists takes thirty times the memory of its text.
_MAX_JSON_BYTES = 1024 * 1024
_MAX_JSON_ITEMS = 20_000

# Where servers put their message, in the order of preference: Google's and MLflow's, Databricks', FastAPI's,
# and what others call it.
_MESSAGE_KEYS = ("message", "detail", "error_message", "error_description", "error", "msg", "title", "errors")
_CODE_KEYS = ("error_code", "code")

# What drives a terminal, as a whole: ESC or its 8-bit form, then a control sequence (ECMA-48, 5.4), or a string up to
# its end. Of one that is cut off or unknown, only the ESC itself is dropped, as any character that cannot be printed.
_TERMINAL = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[P\\]^_X])[^\x07\x1b]*(?:\x07|\x1b\\\\)")

_TITLE = re.compile(r"<title[^>]{0,200}>([^<]*)", re.IGNORECASE)
_INVISIBLE = re.compile(r"<(?:script|style)\b[^<]*", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>?")


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type in lower case, without its parameters; empty where there is none.

    Of several, which httpx joins with commas, it is the first.
    """
    return headers.get("content-type", "").partition(";")[0].partition(",")[0].strip().lower()


def short_text(text: str, secrets: Collection[str] = ()) -> str:
    """Return ``text`` on one line, printable, without ``secrets``, of at most `MAX_MESSAGE_LENGTH` characters."""
    # First, as it may stand within a secret.
    text = _TERMINAL.sub("", text)
    # Secrets are taken out before anything is cut off: half of a token is still half of a token.
    text = redacted(text, secrets)[: 4 * MAX_MESSAGE_LENGTH]
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= MAX_MESSAGE_LENGTH else line[: MAX_MESSAGE_LENGTH - 1].rstrip() + "…"


def is_bounded_json(body: bytes) -> bool:
    """Return whether parsing ``body`` as JSON takes a bounded amount of memory."""
    return len(body) <= _MAX_JSON_BYTES and body.count(b",") + body.count(b"[") + body.count(b"{") <= _MAX_JSON_ITEMS


def server_message(headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> str:
    """Return what an error response says, shortened; empty if it says nothing that can be read.

    Args:
        headers: The response's headers, their names in lower case.
        body: The response's body, decompressed, or the beginning of it.
        secrets: What must not be repeated, should the server do so: tokens, passwords.
    """
    kind = media_type(headers)
    if "protobuf" in kind:
        message = _status_message(body)
        if message or body[:_TEXT_PREFIX].lstrip()[:1] not in (b"{", b"<"):
            return short_text(message, secrets)
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        found = _json_message(body)
        if found:
            return short_text(found, secrets)
    # Four times as much as is looked at, so that a secret across the end of the prefix is whole when it is removed.
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


def _json_message(body: bytes) -> str:
    if not is_bounded_json(body):
        return ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return _json_words(document)


def json_words(value: dict[str, Any]) -> str:
    """Return what an error in a JSON document says: its message, or else the whole of it."""
    return _json_words(value) or json.dumps(value, ensure_ascii=False)


def _json_words(document: Any) -> str:
    message = _message_in(document)
    code = next((document[key] for key in _CODE_KEYS if key in document), "") if isinstance(document, dict) else ""
    if not isinstance(code, str) or not code:
        return message
    return f"{code}: {message}" if message else code


def _message_in(value: Any, depth: int = 4) -> str:
    """Return the first string below the usual keys of ``value``."""
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
