"""Bodies of 2xx responses, with any content type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.fuzz.support import fuzz
from trio_spanbatch import Delivered, ExportResult, Refused
from trio_spanbatch._http.messages import MAX_MESSAGE_LENGTH, short_text
from trio_spanbatch._http.responses import interpret_response

TYPES = [
    None, "", "application/x-protobuf", "APPLICATION/X-PROTOBUF; x=y", "application/protobuf", "application/json",
    "Application/JSON; charset=utf-8", "application/problem+json", "text/plain", "text/plain; charset=utf-8",
    "application/octet-stream", "application/x-ndjson", "application/xml", "nonsense",
]  # fmt: skip


def interpret(body: bytes | None, kind: str | None = None, status: int = 200, **headers: str) -> ExportResult:
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    return interpret_response(status, own if kind is None else {**own, "content-type": kind}, body, now=0.0)


def partial(rejected: int, message: str = "") -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


def warning(body: bytes | None, kind: str | None = None, status: int = 200, **headers: str) -> str:
    """Return the warning of the delivery with this response."""
    result = interpret(body, kind, status, **headers)
    assert isinstance(result, Delivered)
    assert result.rejected == 0
    assert len(result.message) <= MAX_MESSAGE_LENGTH
    assert result.message.isprintable()
    return result.message


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


# Partial success.


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "body",
    [
        partial(3, "too old"),
        partial(0, "too old"),
        partial(3),
        # A body whose first bytes, a tag and a length, are a newline and a brace.
        partial(3, "x" * 119),
        b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}',
        b'{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "too old"}}',
        b'{"partialSuccess": {"rejectedSpans": 3.0}}',
        b'{"partial_success": {"rejected_spans": "3", "error_message": "too old"}}',
        b'\xef\xbb\xbf\r\n {"partialSuccess": {"errorMessage": "too old"}, "error": null}',
        b'{"error": "of another kind", "partialSuccess": {"rejectedSpans": 3, "errorMessage": "too old"}}',
    ],
)
def test_a_partial_success_is_read_with_any_content_type(body: bytes, kind: str | None) -> None:
    expected = Delivered(0 if b"3" not in body and b"\x03" not in body else 3, "")
    result = interpret(body, kind)
    assert isinstance(result, Delivered)
    assert result.rejected == expected.rejected
    assert result.message == ("too old" if b"too old" in body else "x" * 119 if b"xxx" in body else "")
    assert interpret(body, kind, status=202) == interpret(body, kind, status=207) == result


MESSAGES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=40)


@fuzz(300)
@given(st.integers(-(2**63), 2**63 - 1), MESSAGES, st.sampled_from(TYPES), st.data())
def test_any_partial_success_is_read_in_any_form_under_any_type(
    rejected: int, message: str, kind: str | None, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from([rejected, str(rejected)]))
    names = data.draw(
        st.sampled_from(
            [
                ("partialSuccess", "rejectedSpans", "errorMessage"),
                ("partial_success", "rejected_spans", "error_message"),
                ("partialSuccess", "rejected_spans", "errorMessage"),
            ]
        )
    )
    document = {"unknown": data.draw(st.sampled_from([1, [], {}])), names[0]: {names[1]: number, names[2]: message}}
    space = data.draw(st.sampled_from(["", " ", "\n\t", "\ufeff"]))
    text = space + json.dumps(
        document, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1]))
    )
    body = data.draw(st.sampled_from([partial(rejected, message), text.encode()]))
    assert interpret(body, kind) == Delivered(max(rejected, 0), short_text(message))


@fuzz(300)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\r\n"), max_size=150)
    | st.text(st.characters(max_codepoint=127, exclude_categories=["Cc"]) | st.sampled_from("\n"), max_size=150).map(
        lambda text: f"\n{text}"
    ),
    st.sampled_from(TYPES),
)
def test_a_text_is_never_mistaken_for_rejected_spans(text: str, kind: str | None) -> None:
    result = interpret(text.encode(), kind)
    assert isinstance(result, Refused) or result == Delivered(0, getattr(result, "message", ""))


@pytest.mark.parametrize(
    "body",
    [
        partial(3, "too old") + b"\x10\x01",
        b"\x0a\x04\x08\x03\x18\x01",
        partial(3, "too old").replace(b"too", b"t\xffo"),
        b"\x0a\x02\x08\x03\x0a",
        b"\x12\x02\x08\x03",
        b"\x08\x7f\x12\x03bad",
        b"\x08\x03\x12\x03b\xffd",
    ],
)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream"])
def test_a_body_is_read_as_protobuf_without_its_content_type_only_if_every_field_is_known(
    body: bytes, kind: str | None
) -> None:
    assert interpret(body, kind) == Delivered()


def test_protobuf_by_its_content_type_may_have_unknown_fields() -> None:
    assert interpret(partial(3, "too old") + b"\x10\x01", "application/x-protobuf") == Delivered(3, "too old")


# Errors.

ERRORS: list[tuple[Any, str]] = [
    ({"error": "quota exceeded"}, "quota exceeded"),
    ({"error": {"message": "quota exceeded", "code": 7}}, "quota exceeded"),
    ({"error": True, "message": "quota exceeded"}, "quota exceeded"),
    ({"error": 5}, '{"error": 5}'),
    ({"Error": "quota exceeded"}, "quota exceeded"),
    ({"errors": ["quota exceeded"]}, "quota exceeded"),
    ({"errors": [{"message": "quota exceeded"}], "data": None}, "quota exceeded"),
    ({"errors": True, "items": [{"index": {"status": 400, "error": {"reason": "bad"}}}]}, "bad"),
    ({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such table"}, "RESOURCE_DOES_NOT_EXIST: no such table"),
    ({"errorMessage": "no such table"}, "no such table"),
    ({"exception": "no such table"}, "no such table"),
    ({"fault": {"faultstring": "no such table"}}, "no such table"),
    ({"status": "error"}, '{"status": "error"}'),
    ({"status": "ERROR", "message": "no such table"}, "no such table"),
    ({"status": "partial_failure", "message": "no such table"}, "no such table"),
    ({"status": 404, "message": "no such table"}, "no such table"),
    ({"status": "404", "message": "no such table"}, "no such table"),
    ({"status": "404 Not Found", "detail": "no such table"}, "no such table"),
    ({"status": "Bad Request"}, "Bad Request"),
    ({"status": {"code": 3, "message": "no such table"}}, "no such table"),
    ({"statusCode": 500, "body": "x"}, "500"),
    ({"success": False, "message": "no such table"}, "no such table"),
    ({"ok": "false", "msg": "no such table"}, "no such table"),
    ({"code": 3, "message": "no such table"}, "no such table"),
    ({"code": 3, "message": "no such table", "details": []}, "no such table"),
    ({"code": -1, "msg": "no such table"}, "no such table"),
    ({"code": "INVALID_ARGUMENT", "message": "no such table"}, "no such table"),
    ({"code": "invalid_argument", "message": "no such table"}, "no such table"),
    ({"code": 200, "status": [{"name": "default", "successful": 1, "failed": 2}]}, '"failed": 2'),
    ({"errorCount": 2}, '{"errorCount": 2}'),
    ({"ingested": 5, "failed": 2}, '"failed": 2'),
    ({"accepted": 5, "rejected": "2"}, '"rejected": "2"'),
    ({"partialSuccess": {"rejectedLogRecords": "2"}}, '"rejectedLogRecords": "2"'),
    ({"partialSuccess": "no", "error": "quota exceeded"}, "quota exceeded"),
    ([{"status": 200}, {"status": 400, "message": "no such table"}], "no such table"),
    ({"response": {"result": {"error": "quota exceeded"}}}, "quota exceeded"),
    ("Error: quota exceeded", "quota exceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "words"), ERRORS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("status", [200, 202, 206, 207])
@pytest.mark.parametrize("kind", ["application/json", None, "text/plain", "application/x-protobuf"])
def test_an_error_in_the_json_of_a_2xx_is_a_warning_and_rejects_no_span(
    document: Any, words: str, kind: str | None, status: int
) -> None:
    if isinstance(document, str) and kind != "application/json":
        return
    said = warning(as_json(document), kind, status)
    assert said.startswith("the answer's body says an error: ")
    assert words in said


FINE: list[Any] = [
    {}, [], None, True, "", "ok", 0, 5,
    {"error": None}, {"error": ""}, {"error": {}}, {"error": False}, {"error": 0}, {"error": "none"},
    {"error": {"code": 0, "message": ""}}, {"error": {"code": 200, "message": "OK"}}, {"error": "No error."},
    {"errors": []}, {"errors": None}, {"errors": 0}, {"errors": False}, {"errors": [None, {}]},
    {"partialSuccess": {}}, {"partialSuccess": None}, {"partial_success": {}}, {"partialSuccess": {"new": 1}},
    {"partialSuccess": {"rejectedSpans": "0", "errorMessage": ""}},
    {"partialSuccess": {"rejectedSpans": 0}}, {"partialSuccess": {"rejectedSpans": -1}},
    {"status": "ok"}, {"status": "OK", "message": "stored"}, {"status": "success"}, {"status": 200}, {"status": "200"},
    {"status": "accepted"}, {"status": "200 OK"}, {"status": 0}, {"status": None}, {"status": True},
    {"success": True}, {"success": "true"}, {"ok": True}, {"accepted": 5, "rejected": 0}, {"accepted": 0},
    {"code": 0, "message": "ok"}, {"code": 200, "message": "ok"}, {"code": 20000, "msg": "success"}, {"code": "OK"},
    {"code": 1, "message": "success"}, {"code": 5}, {"code": True, "message": "x"},
    {"errcode": 0, "errmsg": "ok"}, {"errorCount": 0}, {"error_code": None}, {"error_code": "SUCCESS"},
    {"message": "accepted"}, {"detail": "stored"}, {"id": "error"}, {"errorsUrl": "https://x.example/errors"},
    {"ingested": 3, "failed": 0, "failures": [], "blocksCreated": 0},
    {"took": 5, "errors": False, "items": [{"index": {"status": 201}}]},
    {"code": 200, "status": [{"name": "default", "successful": 1, "failed": 0}]},
    [{"status": 200}, {"status": 201, "error": None}],
    {"spans": 400}, {"trace": {"state": "running"}}, {"result": {"count": 404}},
    {"resourceSpans": [{"scopeSpans": [{"spans": [{"status": {"code": 2, "message": "boom"}}]}]}]},
]  # fmt: skip


@pytest.mark.parametrize("document", FINE, ids=lambda document: str(document)[:60])
@pytest.mark.parametrize("status", [200, 202, 207])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_json_without_an_error_is_not_a_warning(document: Any, kind: str, status: int) -> None:
    if isinstance(document, dict | list) or (kind == "application/json" and status != 207):
        assert interpret(as_json(document), kind, status) == Delivered()


KEYS = st.sampled_from(["a", "data", "items", "message", "detail", "count", "id", "partialSuccess", "status"])
LEAVES = st.none() | st.sampled_from(["ok", "stored", "", 0, 1, 200, 201, True, 3.5])
DOCUMENTS = st.recursive(
    st.dictionaries(KEYS.filter(lambda key: key != "partialSuccess"), LEAVES, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@fuzz(200)
@given(DOCUMENTS, st.sampled_from([document for document, _ in ERRORS[:24]]), st.data())
def test_an_error_is_found_anywhere_in_a_document(document: Any, error: Any, data: st.DataObject) -> None:
    assert warning(as_json(document), None) == ""
    holders = [document]
    for value in holders:
        holders += [
            part for part in (value.values() if isinstance(value, dict) else value) if isinstance(part, dict | list)
        ]
    holder = data.draw(st.sampled_from(holders))
    if isinstance(holder, dict):
        holder["more"] = error
    else:
        holder.append(error)
    assert "says an error" in warning(as_json(document), None)


def rpc_status(code: int, message: bytes, details: bytes = b"") -> bytes:
    return b"\x08" + bytes((code,)) + b"\x12" + bytes((len(message),)) + message + details


@pytest.mark.parametrize("kind", ["application/x-protobuf", None, "application/octet-stream", "application/json"])
@pytest.mark.parametrize("details", [b"", b"\x1a\x02\x0a\x00"])
def test_a_protobuf_status_in_a_2xx_is_a_warning(kind: str | None, details: bytes) -> None:
    said = warning(rpc_status(5, b"no such table", details), kind)
    assert said == "the answer's body says an error: NOT_FOUND: no such table"


def test_a_protobuf_status_without_a_message_is_named_and_ok_is_not_an_error() -> None:
    assert warning(b"\x08\x05", "application/x-protobuf") == "the answer's body says an error: NOT_FOUND"
    assert warning(rpc_status(5, b"no \xff"), "application/x-protobuf").endswith("NOT_FOUND: no \ufffd")
    assert interpret(rpc_status(0, b"fine"), "application/x-protobuf") == Delivered()
    assert interpret(b"\x0a\x00", "application/x-protobuf") == Delivered()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"error: no such table", "error: no such table"),
        (b"Internal Server Error: no such table", "no such table"),
        (b"ValueError: no such table\n  at x", "ValueError: no such table at x"),
        (b"HTTP/1.1 503 busy", "HTTP/1.1 503 busy"),
        (b"404 Not Found\nno such table", "404 Not Found no such table"),
        (b"\xef\xbb\xbferror: no such table", "error: no such table"),
        # It parses as protobuf, with unknown fields.
        (b"error: and then thirty-two characters!!", "characters!!"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, "text/plain", "application/json", "application/x-protobuf"])
def test_a_text_that_begins_like_an_error_is_a_warning(body: bytes, words: str, kind: str | None) -> None:
    assert warning(body, kind).endswith(words)
    assert "says an error" in warning(body, kind)


@pytest.mark.parametrize(
    "body",
    [
        b"200 OK", b"OK", b"ok\n", b"400 spans accepted", b"500", b"4040 stored", b"no error", b"errors: 0",
        b"error: none", b"Error:", b"accepted", b"HTTP/1.1 200 OK", b"404 page", b" ", b"\r\n",
        b"{ok}", b"[ok]", b"\x00\x01",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream"])
def test_other_texts_are_not_warnings(body: bytes, kind: str | None) -> None:
    assert interpret(body, kind) == Delivered()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'<?xml version="1.0"?><Error><Code>NoSuchTable</Code><Message>no such table</Message></Error>',
            "no such table",
        ),
        (b'<ns:errors xmlns:ns="x"><ns:error>no such table</ns:error></ns:errors>', "no such table"),
        (
            b"<d:multistatus xmlns:d='DAV:'><d:status>HTTP/1.1 200 OK</d:status>\n<d:status>HTTP/1.1 403 Forbidden",
            "HTTP/1.1 403 Forbidden",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["application/xml", "text/xml; charset=utf-8", None])
@pytest.mark.parametrize("status", [200, 207])
def test_an_error_in_xml_is_a_warning(body: bytes, words: str, kind: str | None, status: int) -> None:
    said = warning(body, kind, status)
    assert "says an error" in said
    assert words in said


@pytest.mark.parametrize(
    "body",
    [
        b"<ok/>", b"<errors/>", b"<errors></errors>", b"<errors> </errors>", b"<errors count='0'/>",
        b"<title>ok</title>",
        b"<d:multistatus><d:status>HTTP/1.1 200 OK</d:status></d:multistatus>",
    ],
)  # fmt: skip
def test_xml_that_reports_no_error_causes_no_warning(body: bytes) -> None:
    assert interpret(body, "application/xml") == interpret(body, "application/xml", 207) == Delivered()


def test_a_207_with_an_unknown_text_is_a_warning_and_a_207_without_a_body_is_not() -> None:
    assert warning(b"3 of 5 stored", "text/plain", 207) == "the answer is a 207 Multi-Status: 3 of 5 stored"
    assert interpret(b"", "text/plain", 207) == interpret(b" \r\n", None, 207) == Delivered()


def test_a_grpc_status_in_the_headers_of_a_200_is_a_warning() -> None:
    said = warning(b"", "application/grpc", grpc_status="12", grpc_message="no such method")
    assert said == "the answer says grpc-status 12: no such method"
    assert interpret(b"", "application/grpc", grpc_status="0") == Delivered()
    assert "grpc-status 12" in warning(b"{}", "application/json", grpc_status="12")


# Unexpected bodies, and web pages.


@pytest.mark.parametrize("status", [204, 205])
@pytest.mark.parametrize("kind", [None, "text/html", "application/json", "application/x-protobuf"])
def test_a_204_or_205_without_a_body_is_a_delivery_with_any_content_type(status: int, kind: str | None) -> None:
    assert interpret(b"", kind, status) == Delivered()


@pytest.mark.parametrize("status", [204, 205, 206])
def test_an_unexpected_or_partial_body_is_read_anyway(status: int) -> None:
    assert interpret(partial(3, "too old"), None, status) == Delivered(3, "too old")
    assert "no such table" in warning(b'{"error": "no such table"}', None, status)
    assert isinstance(interpret(b"<!DOCTYPE html><title>Sign in</title>", None, status), Refused)


@pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf", "application/xml", "nonsense"])
@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><title>Sign in</title>", b"<?xml version='1.0'?><html lang='en'>Sign in"]
)
def test_a_web_page_is_a_login_page_with_any_content_type(kind: str, body: bytes) -> None:
    result = interpret(body, kind)
    assert isinstance(result, Refused)
    assert "login page?" in result.reason
    assert "Sign in" in result.reason


# Hostile bodies.


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 900 + b'{"error": "deep"}' + b"]" * 900,
        b'{"error":' + b"[" * 900 + b"0" + b"]" * 900 + b"}",
        as_json([{"status": "x" * 100_000}] * 9),
        as_json({"error_" * 20_000: "x"}),
        b"error" * 200_000,
        b"<error " * 200_000,
        b"<error>" + b" " * 1_000_000,
        b"<status>" * 200_000,
        b"a " * 500_000 + b"error: x",
        b"HTTP/" + b"1" * 1_000_000,
        b"503 " + b"A " * 500_000,
        b"\x08\x03\x12\xff\xff\x3f" + b"x" * 1_048_575,
    ],
    ids=range(12),
)
@pytest.mark.parametrize("kind", [None, "application/json", "application/xml", "application/x-protobuf"])
def test_a_hostile_body_only_causes_a_warning(body: bytes, kind: str | None) -> None:
    # A regular expression that backtracks would not end with these.
    warning(body, kind, 207)


def test_secrets_in_an_answer_are_not_shown_not_even_in_part() -> None:
    secret = "dapi-0123456789"
    bodies = [
        as_json({"error": f"bad {secret}"}), as_json({"error": {"x": f"bad {secret}"}}),
        f"error: bad {secret}".encode(),
        f"error: bad{' ' * 4080}{secret}".encode(), f"<error>{' ' * 4080}{secret}</error>".encode(),
        f"<error>{' ' * 4090}{secret}</error>".encode(), rpc_status(5, secret.encode()), partial(0, secret),
    ]  # fmt: skip
    for body in bodies:
        result = interpret_response(207, {}, body, now=0.0, secrets=(secret,))
        assert isinstance(result, Delivered)
        assert result.message
        assert "dapi" not in result.message
    result = interpret_response(200, {"grpc-status": "3", "grpc-message": secret}, b"", now=0.0, secrets=(secret,))
    assert "dapi" not in str(result)
