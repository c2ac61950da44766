"""The results of responses, as a table."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from trio_spanbatch import Delivered, ExportResult, Refused, TryLater
from trio_spanbatch._http.messages import MAX_MESSAGE_LENGTH, server_message, short_text
from trio_spanbatch._http.responses import MAX_RETRY_AFTER, RULES, interpret_response, retry_after

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html; charset=utf-8"}

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC).timestamp()


def interpret(status: int, headers: dict[str, str] | None = None, body: bytes | None = b"") -> ExportResult:
    return interpret_response(status, headers or {}, body, now=NOW)


def partial(rejected: int, message: str = "") -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


def rpc_status(message: str) -> bytes:
    # google.rpc.Status: code = 1 (varint), message = 2 (string), details = 3 (messages).
    encoded = message.encode()
    assert len(encoded) < 128
    return b"\x08\x03\x12" + bytes((len(encoded),)) + encoded + b"\x1a\x02\x0a\x00"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert interpret(status) == Delivered()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        (PROTOBUF, b""),
        (JSON, b""),
        (JSON, b"{}"),
        ({"content-type": "text/plain"}, b"200 OK"),
        ({}, b"200 OK"),
        ({"content-type": "text/plain"}, b"not <html>"),
        ({"content-type": "text/plain"}, b"<ok>"),
        ({"content-type": "text/plain"}, b"<header>ok</header>"),
        ({"content-type": "text/plain"}, b"<body-accepted/>"),
        ({"content-type": "text/plain"}, b"<?xml version='1.0'?><ok/>"),
        ({}, b"<!-- ok -->"),
        ({}, b"<!-- -->" * 500),
        ({}, b"<!--" * 1000),
        ({"content-type": "application/xml"}, b"<?xml version='1.0'?><ok/>"),
        ({"content-type": "nonsense"}, b"\xff\x00"),
    ],
)
def test_a_200_without_a_partial_success_is_a_delivery_without_a_warning(headers: dict[str, str], body: bytes) -> None:
    assert interpret(200, headers, body) == Delivered()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (PROTOBUF, partial(3, "too old")),
        ({"content-type": "application/protobuf; x=y"}, partial(3, "too old")),
        (JSON, b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old", "new": 1}, "more": []}'),
        (JSON, b'{"partial_success": {"rejected_spans": 3, "error_message": "too old"}}'),
    ],
)
def test_a_partial_success_is_counted_with_the_servers_message(headers: dict[str, str], body: bytes) -> None:
    assert interpret(200, headers, body) == Delivered(3, "too old")


NOT_QUITE_UTF_8 = {
    "protobuf": (PROTOBUF, partial(3, "too old").replace(b"too", b"t\xffo"), "t\ufffdo old"),
    "protobuf, cut off": (PROTOBUF, partial(3, "too o\u00e9").replace(b"\xc3\xa9", b"l\xc3"), "too ol\ufffd"),
    "JSON": (JSON, b'{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "t\xffo old"}}', "t\ufffdo old"),
    "half of a pair": (JSON, b'{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "a\\ud83d"}}', "a?"),
    "the other half": (JSON, b'{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "\\ude00b"}}', "?b"),
    "a pair": (JSON, b'{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "\\ud83d\\ude00"}}', "\U0001f600"),
    "a byte order mark": (JSON, b'\xef\xbb\xbf{"partialSuccess": {"rejectedSpans": 3, "errorMessage": "a"}}', "a"),
}


@pytest.mark.parametrize(("headers", "body", "message"), NOT_QUITE_UTF_8.values(), ids=list(NOT_QUITE_UTF_8))
def test_rejected_spans_are_counted_even_if_the_message_is_invalid_utf8(
    headers: dict[str, str], body: bytes, message: str
) -> None:
    assert interpret(200, headers, body) == Delivered(3, message)


def test_a_negative_number_of_rejected_spans_counts_as_zero() -> None:
    assert interpret(200, PROTOBUF, partial(-5, "?")) == Delivered(0, "?")


def test_a_message_with_zero_rejected_spans_is_a_warning() -> None:
    assert interpret(200, PROTOBUF, partial(0, "deprecated")) == Delivered(0, "deprecated")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (PROTOBUF, b"200 OK"),
        (JSON, b"OK"),
        (JSON, b"\xff\xfe\x00"),
        (JSON, b"[" * 10_000),
        (JSON, b"[],[" * 100_000),
        (JSON, b'"' + b"x" * 2_000_000 + b'"'),
    ],
)
def test_an_answer_that_does_not_parse_is_a_delivery_with_a_warning(headers: dict[str, str], body: bytes) -> None:
    result = interpret(200, headers, body)
    assert isinstance(result, Delivered)
    assert result.rejected == 0
    assert "cannot be read as application/" in result.message


def test_an_answer_that_cannot_be_decompressed_is_a_delivery_with_a_warning() -> None:
    result = interpret(200, {"content-encoding": "br"}, None)
    assert result == Delivered(0, "the answer's body could not be decompressed (content-encoding: br)")


@pytest.mark.parametrize(
    "headers",
    [
        HTML,
        {"content-type": "TEXT/HTML"},
        {"content-type": "application/xhtml+xml"},
        # As httpx joins a header that was sent twice.
        {"content-type": "text/html, text/html"},
        {"content-type": "text/html, text/html; charset=utf-8"},
        {},
        {"content-type": "text/plain; charset=utf-8"},
        {"content-type": "application/octet-stream"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "body",
    [
        b"<html><title>Sign in</title>",
        b"\xef\xbb\xbf \n<!DOCTYPE html><title>Sign in",
        b"<!-- a proxy --><!DOCTYPE html><html><title>Sign in</title>",
        b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><title>Sign in</title>',
        b"<HEAD><title>Sign in</title>",
        b"<meta http-equiv='refresh' content='0; url=/login'><title>Sign in</title>",
        b"<h1>Sign in</h1>",
        b"<form action='/login'>Sign in",
    ],
)
def test_a_200_that_is_a_web_page_is_a_failure_that_says_login_page(headers: dict[str, str], body: bytes) -> None:
    result = interpret(200, headers, body)
    assert isinstance(result, Refused)
    assert result.status_code == 200
    assert not result.isolate
    assert "login page?" in result.reason
    assert "Sign in" in result.reason


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("body", [b"", b"\r\n", b"\n\x00", b"{}", b'{"partialSuccess": {}}'])
def test_an_empty_body_or_an_answer_is_not_a_page_even_with_the_type_of_a_page(status: int, body: bytes) -> None:
    # Flask's ``return ""`` and ``return json.dumps(...)``.
    assert interpret(status, HTML, body) == Delivered(status_code=status)


def test_a_partial_success_is_counted_though_it_has_the_type_of_a_page() -> None:
    in_json = b'\xef\xbb\xbf\n{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}'
    for body in (partial(3, "too old"), in_json):
        assert interpret(200, HTML, body) == Delivered(3, "too old", status_code=200)


@pytest.mark.parametrize("body", [b"OK", b"Sign in", b"{{ title }}", b"[sign in]", b"<p>{}", b"\x0a\x00 Sign in"])
def test_any_other_body_with_the_type_of_a_page_is_a_login_page(body: bytes) -> None:
    assert isinstance(interpret(200, HTML, body), Refused)


def test_an_undecodable_web_page_is_still_a_web_page() -> None:
    assert isinstance(interpret(200, HTML, None), Refused)


def test_a_204_is_a_delivery_with_any_content_type() -> None:
    assert interpret(204, HTML) == Delivered()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
def test_a_redirect_is_refused(status: int) -> None:
    result = interpret(status, {"location": "https://elsewhere.example/login"})
    assert isinstance(result, Refused)
    assert result.status_code == status
    assert not result.isolate
    assert "the redirect to https://elsewhere.example/login was not followed" in result.reason


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://user:secret@host.example/path?token=secret#secret", "https://host.example/path"),
        ("//user:secret@host.example/path?secret", "//host.example/path"),
        ("/login?next=secret", "/login"),
        ("user:secret@host", None),
        ("https://[secret", None),
        ("", None),
    ],
)
def test_the_target_of_a_redirect_is_shown_without_credentials(location: str, target: str | None) -> None:
    result = interpret(302, {"location": location})
    assert isinstance(result, Refused)
    assert "secret" not in result.reason
    assert result.reason == f"302 Found: the redirect{f' to {target}' if target else ''} was not followed"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_exactly_429_502_503_and_504_are_retried(status: int) -> None:
    result = interpret(status)
    assert isinstance(result, TryLater)
    assert result.after is None
    assert not result.ambiguous


@pytest.mark.parametrize("status", [400, 413, 422])
def test_400_413_and_422_are_refused_and_a_part_of_the_batch_may_be_to_blame(status: int) -> None:
    result = interpret(status)
    assert isinstance(result, Refused)
    assert result.status_code == status
    assert result.isolate


@pytest.mark.parametrize(
    "status", sorted({*range(400, 600), 100, 101, 199, 600, 999} - {400, 413, 422, 429, 502, 503, 504})
)
def test_every_other_status_is_refused_and_never_isolated(status: int) -> None:
    result = interpret(status)
    assert isinstance(result, Refused)
    assert result.status_code == status
    assert not result.isolate
    assert result.reason.startswith(str(status))


def http_date(seconds_from_now: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds_from_now, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        (http_date(90), 90.0),
        ("Saturday, 01-Aug-26 12:01:30 GMT", 90.0),
        ("Sat Aug  1 12:01:30 2026", 90.0),
        ("Sat, 01 Aug 2026 12:01:30 -0000", 90.0),
        (http_date(0), 0.0),
        (http_date(-3600), 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("99999999999999999999", MAX_RETRY_AFTER),
        ("9" * 10_000, MAX_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_seconds_or_an_http_date(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}, now=NOW) == seconds
    assert interpret(503, {"retry-after": value}) == TryLater("503 Service Unavailable", after=seconds, status_code=503)


@pytest.mark.parametrize(
    "value",
    [
        None, "", " ", "-1", "+1", "1.5", "1e3", "nan", "inf", "0x10", "soon", "soon, later", "-1, 1.5", ",", "٣",
        "Sat, 99 Aug 2026 12:00:00 GMT", "Sat, 01 Aug 99999 12:00:00 GMT", "Sat, 01 Aug 2026 12:00:00 +99999999999",
        "Sat, :", "Sat", "Sat,", "120s", "120 (restarting)", "5 1 1",
    ],
)  # fmt: skip
def test_an_invalid_retry_after_is_ignored(value: str | None) -> None:
    assert retry_after({} if value is None else {"retry-after": value}, now=NOW) is None


@pytest.mark.parametrize("ahead", [0, 600, -600, 86_400 * 365, -NOW])
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"])
def test_a_date_counts_from_the_responses_date_even_if_the_clocks_differ(form: str, ahead: float) -> None:
    sent = datetime.fromtimestamp(NOW + ahead, UTC)
    headers = {"date": sent.strftime(form), "retry-after": http_date(ahead + 90)}
    assert retry_after(headers, now=NOW) == 90
    assert retry_after({**headers, "retry-after": http_date(ahead - 90)}, now=NOW) == 0
    assert retry_after({**headers, "retry-after": "7"}, now=NOW) == 7


@pytest.mark.parametrize(
    "date", ["", "soon", "0", "Sat, 99 Aug 2026 12:00:00 GMT", "Sat,", "Sat, 01 Aug 99999 12:00:00 GMT"]
)
def test_a_date_counts_from_the_local_clock_if_the_responses_date_cannot_be_read(date: str) -> None:
    assert retry_after({"date": date, "retry-after": http_date(90)}, now=NOW) == 90


def test_a_date_counts_from_the_first_of_several_dates_that_can_be_read() -> None:
    headers = {"date": f"soon, {http_date(600)}, {http_date(0)}", "retry-after": http_date(690)}
    assert retry_after(headers, now=NOW) == 90


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120, 60", 120),
        ("60,120", 120),
        ("5, soon", 5),
        ("soon, 5", 5),
        (", 5,,", 5),
        ("-1, 5, 1.5", 5),
        (f"5, {http_date(90)}", 90),
        (f"{http_date(90)}, 5", 90),
        (f"{http_date(90)},{http_date(120)}", 120),
        ("Saturday, 01-Aug-26 12:01:30 GMT, Sat Aug  1 12:02:00 2026", 120),
        (f"{http_date(-90)}, 5", 5),
        ("5, 99999999999999999999", MAX_RETRY_AFTER),
        ("5," * 50_000, 5),
    ],
)
def test_of_a_list_or_a_repeated_retry_after_the_longest_counts(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}, now=NOW) == seconds


def test_a_retry_after_that_was_sent_twice_is_a_list() -> None:
    for package in (httpx, httpx2):
        headers = package.Headers([("Retry-After", "60"), ("retry-after", http_date(120)), ("RETRY-AFTER", "soon")])
        assert retry_after(headers, now=NOW) == 120


@pytest.mark.parametrize("status", [200, 301, 400, 408, 413, 500, 501])
def test_a_retry_after_does_not_make_a_status_retryable(status: int) -> None:
    assert interpret(status, {"retry-after": "5"}) == interpret(status)


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9: A-Za-z+-]*", fullmatch=True))
def test_no_retry_after_is_beyond_its_bounds(value: str) -> None:
    seconds = retry_after({"retry-after": value}, now=NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        (PROTOBUF, rpc_status("bad span"), "bad span"),
        (PROTOBUF, b"\xff\xff", ""),
        (PROTOBUF, b'{"message": "bad span"}', "bad span"),
        (PROTOBUF, b"<html><title>502 Bad Gateway</title>", "502 Bad Gateway"),
        (PROTOBUF, rpc_status("bad span").replace(b"bad", b"b\xffd"), "b\ufffdd span"),
        (JSON, b'{"error_code": "NOT_FOUND", "message": "no such id"}', "NOT_FOUND: no such id"),
        (JSON, b'{"error_code": "NOT_FOUND"}', "NOT_FOUND"),
        (JSON, b'{"code": 3, "message": "bad span"}', "bad span"),
        (JSON, b'{"detail": "Not Found"}', "Not Found"),
        (JSON, b'{"detail": [{"loc": ["header"], "msg": "Field required"}]}', "Field required"),
        (JSON, b'{"error": {"message": "quota"}}', "quota"),
        (JSON, b'["only text"]', "only text"),
        (JSON, b'{"errors": []}', '{"errors": []}'),
        (JSON, b'{"a": {"message": 1}}', '{"a": {"message": 1}}'),
        (JSON, b"not JSON", "not JSON"),
        (JSON, b'{"msg":{"msg":{"msg":{"msg":{"msg":"deep"}}}}}', '{"msg":{"msg":{"msg":{"msg":{"msg":"deep"}}}}}'),
        ({"content-type": "application/problem+json"}, b'{"title": "No"}', "No"),
        ({}, b'{"message": "without a type"}', "without a type"),
        (HTML, b"<html><head><title>502 Bad &amp; Gateway</title></head><body>x</body>", "502 Bad & Gateway"),
        (HTML, b"<html><title></title><body><h1>Oh <b>no</b></h1><script>x = 1</script>", "Oh no"),
        ({}, b"<html><body>Oh no</body></html>", "Oh no"),
        (HTML, b"just text", "just text"),
        ({}, "Gr\u00fc\u00dfe\r\n\x1b[31m\x00\u202ered".encode(), "Gr\u00fc\u00dfe red"),
        ({"content-type": "text/plain; charset=utf-16"}, b"\xff\xfeno", "\ufffd\ufffdno"),
    ],
)  # fmt: skip
def test_an_error_is_reported_with_the_servers_message(headers: dict[str, str], body: bytes, message: str) -> None:
    result = interpret(500, headers, body)
    assert result == Refused(f"500 Internal Server Error: {message}" if message else "500 Internal Server Error", 500)


HOSTILE_BODIES = [
    b"x" * 4_000_000,
    b"<title" * 500_000,
    b"<script" * 500_000,
    b"<" * 4_000_000,
    b"<title>" + b" " * 4_000_000,
    b"[" * 4_000_000,
    b'{"error":' * 400_000,
    b'{"message": "' + b"y" * 1_000_000 + b'"}',
    json.dumps({"message": "\ud800\x00" * 1000}).encode(),
    b'{"message": ' + b"9" * 10_000 + b"}",
    b"\x12\xff\xff\xff\xff\x0f",
    partial(1, "z" * 1_000_000),
    b"&#x202e;" * 100,
]


@pytest.mark.parametrize("headers", [{}, PROTOBUF, JSON, HTML], ids=["", "protobuf", "json", "html"])
@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
@pytest.mark.parametrize("status", [200, 400, 503])
def test_the_message_is_short_and_printable_for_any_body(status: int, body: bytes, headers: dict[str, str]) -> None:
    result = interpret(status, headers, body)
    text = result.message if isinstance(result, Delivered) else result.reason
    assert len(text) <= MAX_MESSAGE_LENGTH + len("503 Service Unavailable: ")
    assert text.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"no token dapi-0123456789 here",
        b'{"message": "no token dapi-0123456789 here"}',
        b"<title>no token dapi-0123456789 here</title>",
        b"x" * (MAX_MESSAGE_LENGTH - 10) + b" dapi-0123456789",
        b" " * 4090 + b"dapi-0123456789",
        b" " * 4090 + b"<dapi-0123456789",
    ],
)
def test_a_secret_that_the_server_repeats_is_not_shown_not_even_in_part(body: bytes) -> None:
    result = interpret_response(401, {}, body, now=NOW, secrets=("dapi-0123456789",))
    assert isinstance(result, Refused)
    assert "dapi" not in result.reason


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"content-encoding": "dapi-0123456789"}, None), ({"content-type": "DAPI-0123456789/json"}, b"no JSON")],
)
def test_a_header_that_repeats_a_secret_does_not_show_it(headers: dict[str, str], body: bytes | None) -> None:
    secrets = ("dapi-0123456789", "DAPI-0123456789")
    result = interpret_response(200, headers, body, now=NOW, secrets=secrets)
    assert isinstance(result, Delivered)
    assert "0123456789" not in result.message


def test_an_endless_content_encoding_is_shortened_in_the_message() -> None:
    result = interpret(200, {"content-encoding": "x" * 1000}, None)
    assert isinstance(result, Delivered)
    assert len(result.message) <= MAX_MESSAGE_LENGTH


@pytest.mark.parametrize("status", [-1, 1000, 99999])
def test_a_status_that_only_http_2_can_carry_is_refused(status: int) -> None:
    assert interpret(status) == Refused(str(status), status)


def test_a_redirect_that_repeats_a_secret_does_not_show_it() -> None:
    headers = {"location": "https://host.example/dapi-0123456789"}
    result = interpret_response(302, headers, b"", now=NOW, secrets=("dapi-0123456789",))
    assert "dapi" not in str(result)


def test_the_table_covers_every_status_and_its_rows_name_their_outcome() -> None:
    for status in range(1000):
        result = interpret(status)
        assert type(result) in {rule.outcome for rule in RULES if status in rule.statuses}
    assert all(rule.requirement and "secret" not in repr(rule) for rule in RULES)


@given(st.integers(0, 999), st.sampled_from([{}, PROTOBUF, JSON, HTML]), st.none() | st.binary())
def test_no_response_raises(status: int, headers: dict[str, str], body: bytes | None) -> None:
    result = interpret(status, headers, body)
    if isinstance(result, TryLater):
        assert result.after is None or math.isfinite(result.after)


@given(st.text(max_size=300))
def test_short_text_is_one_short_printable_line(text: str) -> None:
    line = short_text(text)
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE_LENGTH
    assert line == line.strip()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b2Kgone", "gone"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("half \x1b[31", "half [31"),
        ("s3c\x1b[0mret", "***"),
    ],
)
def test_terminal_sequences_are_removed_as_a_whole(text: str, line: str) -> None:
    assert short_text(text, ["s3cret"]) == line
    assert server_message({"content-type": "text/plain"}, text.encode(), ["s3cret"]) == line
