"""Any response: it has a valid result with a short reason, which contains no secret."""

from __future__ import annotations

import gzip
import json
import math
import string
import zlib
from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.fuzz.support import assert_no_growth, damaged, fuzz, nothing_logged, pieces
from tests.support.batchers import make_spans
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Loss,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch._http.body import BoundedBody
from trio_spanbatch._http.messages import MAX_MESSAGE_LENGTH
from trio_spanbatch._http.responses import MAX_RETRY_AFTER, interpret_response, retry_after

# The report of a failure may be long; as an error, this warning would hide the failure.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

NOW = 1_750_000_000.0
# The longest phrase of a status, and the text around it.
MAX_REASON = MAX_MESSAGE_LENGTH + 60

# As long as credentials, so that they do not occur in a response by chance.
SECRETS = st.lists(
    st.text(string.ascii_letters + string.digits + "-_.~+/=:<&'\" é", min_size=16, max_size=40).filter(
        lambda secret: secret == " ".join(secret.split())
    ),
    max_size=3,
)


def partial_success(rejected: int, message: str) -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["\x1b[2J", "\x9b31m", "\x1b]0;title\x07", "\x1b[\x1b[0m0m", "\u202e", "\r\n", "\x00", "\ufeff"]),
    st.sampled_from([" " * 4090, "x" * 195, "y" * 4090, "\x1b[0m" * 4000, "&#60;", "&amp;lt;", "&#", "\ud800"]),
)


@st.composite
def words(draw: st.DrawFn, secrets: list[str]) -> str:
    """Text with secrets in it, here and there."""
    return "".join(draw(st.lists(TEXTS | st.sampled_from(secrets) if secrets else TEXTS, max_size=5)))


def json_value(text: str) -> st.SearchStrategy[Any]:
    keys = st.sampled_from(
        [
            "message",
            "detail",
            "error",
            "errors",
            "code",
            "error_code",
            "partialSuccess",
            "rejectedSpans",
            "errorMessage",
        ]
    )
    leaves = st.one_of(
        st.just(text),
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(
            [2**63, -1, 10**300, "5", "-5", "1e3", "9" * 5000, {"rejectedSpans": "7", "errorMessage": text}]
        ),
    )
    return st.recursive(
        leaves,
        lambda values: st.lists(values, max_size=3) | st.dictionaries(keys, values, max_size=3),
        max_leaves=6,
    )


@st.composite
def bodies(draw: st.DrawFn, secrets: list[str]) -> bytes:
    text = draw(words(secrets))
    encoded = text.encode("utf-8", "surrogatepass")
    well_formed = text.encode("utf-8", "replace").decode()
    body: bytes = draw(
        st.one_of(
            st.just(encoded),
            st.just(text.encode("utf-16", "surrogatepass")),
            st.binary(max_size=40).map(lambda noise: noise + encoded + noise),
            st.just(b"<!DOCTYPE html><title>" + encoded + b"</title><p>" + encoded),
            st.sampled_from([b"<script>", b"<b ", b"<", b"<style"]).map(lambda tag: tag + encoded),
            st.integers(-(2**63), 2**63 - 1).map(lambda rejected: partial_success(rejected, well_formed)),
            json_value(text).map(lambda value: json.dumps(value).encode()),
            json_value(text).map(lambda value: json.dumps({"partialSuccess": value}).encode()),
            st.sampled_from(
                [b"[" * 9_000, b'{"error":' * 9_000, b'{"a":' * 9_000 + b"1" + b"}" * 9_000, b"9" * 20_000]
            ),
        )
    )
    return draw(damaged(body, splices=(b"\n", b"\x1b", b"\xff", b'"', b"<")))


@st.composite
def header_lists(draw: st.DrawFn, secrets: list[str]) -> list[tuple[bytes, bytes]]:
    text = draw(words(secrets)).encode("utf-8", "surrogatepass")
    names = [b"Content-Type", b"Retry-After", b"Date", b"Location", b"Content-Encoding", b"X-Other", b"content-type"]
    types = [
        b"application/x-protobuf",
        b"application/json",
        b"text/html",
        b"text/plain",
        b"application/problem+json",
        b"",
    ]
    values = st.one_of(
        st.sampled_from(types),
        st.sampled_from(types).map(lambda kind: kind + b"; charset=" + text),
        st.sampled_from(
            [text, b"https://user:" + text + b"@host/" + text + b"?token=" + text, b"//[" + text, b"x" * 20_000]
        ),
        st.sampled_from([text + b"/json", text + b"+protobuf"]),
        st.binary(max_size=30),
        RETRY_AFTERS.map(lambda value: value.encode("utf-8", "surrogatepass")),
    )
    return draw(st.lists(st.tuples(st.sampled_from(names), values), max_size=6))


DATE_PARTS = [
    *("Mon,", "Monday,", "Sun", "06", "31", "0", "-1", "Nov", "Foo", "1994", "99999", "0000", "08:49:37", "25:61:61"),
    *("GMT", "+9999", "-2400", "+99999999", "(x", "::", "08:49", "\u0660"),
]
SINGLE_RETRY_AFTERS = st.one_of(
    st.integers(-(10**6), 10**30).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["9" * 5_000, "1, 2", "\u0663", "0x10", "1e3", " 5 ", "Sun, 06 Nov 1994 08:49:37 GMT", "inf", "nan"]
    ),
    st.lists(st.sampled_from(DATE_PARTS), max_size=8).map(" ".join),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.text(max_size=80),
)
RETRY_AFTERS = SINGLE_RETRY_AFTERS | st.lists(SINGLE_RETRY_AFTERS, min_size=2, max_size=5).map(", ".join)


@attrs.frozen
class AnyResponse:
    status: int
    headers: list[tuple[bytes, bytes]] = attrs.field(repr=lambda headers: f"{headers!r:.2000}")
    body: bytes | None = attrs.field(repr=lambda body: f"{body!r:.2000}")
    secrets: list[str]

    def interpreted(self) -> ExportResult:
        return interpret_response(
            self.status,
            httpx.Headers(self.headers),
            self.body,
            now=NOW,
            secrets=sorted(self.secrets, key=len, reverse=True),
        )


@st.composite
def responses(draw: st.DrawFn) -> AnyResponse:
    secrets = draw(SECRETS)
    statuses = [200, 200, 200, 202, 204, 206, 301, 307, 400, 401, 404, 413, 422, 429, 500, 502, 503, 504, 599]
    return AnyResponse(
        draw(st.sampled_from(statuses) | st.integers(-1, 1100)),
        draw(header_lists(secrets)),
        draw(st.none() | bodies(secrets)),
        secrets,
    )


def assert_in_order(result: object, secrets: list[str]) -> None:
    """Fail unless ``result`` is an `ExportResult` whose fields suit a batcher, a log and a terminal."""
    assert isinstance(result, Delivered | TryLater | Refused)
    if isinstance(result, Delivered):
        assert result.rejected >= 0
    words = result.message if isinstance(result, Delivered) else result.reason
    assert len(words) <= MAX_REASON
    assert words.isprintable(), words
    assert not [secret for secret in secrets if secret in words], words
    if isinstance(result, TryLater) and result.after is not None:
        assert math.isfinite(result.after)
        assert 0 <= result.after <= MAX_RETRY_AFTER


@fuzz(150)
@given(responses())
def test_any_response_has_a_result_with_a_short_message_without_secrets(response: AnyResponse) -> None:
    assert_in_order(response.interpreted(), response.secrets)


@fuzz(200)
@given(RETRY_AFTERS, RETRY_AFTERS, st.floats(0, 1e11))
def test_any_retry_after_is_a_wait_or_none(value: str, date: str, now: float) -> None:
    seconds = retry_after({"retry-after": value, "date": date}, now=now)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@fuzz(60)
@given(st.sampled_from(["", "gzip", "x-gzip", "deflate", "br", "GZIP "]), st.integers(0, 300), st.data())
def test_any_bytes_of_a_body_are_collected_within_the_limit(encoding: str, limit: int, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=50)) * data.draw(st.sampled_from([1, 10, 10_000]))
    packed = {"gzip": gzip.compress(content, 1), "x-gzip": gzip.compress(content, 1), "deflate": zlib.compress(content)}
    raw = data.draw(damaged(packed.get(encoding.strip().lower(), content)[:3000]))
    body = BoundedBody(encoding, limit)
    for piece in data.draw(pieces(raw)):
        body.feed(piece)
    assert body.content is None or len(body.content) <= limit
    assert encoding != "br" or body.content is None or raw == b""
    if encoding == "":
        assert body.exceeded == (len(raw) > limit)


class AnsweredExporter:
    """An exporter whose requests get these responses in turn, and then 200."""

    def __init__(self, answers: list[AnyResponse]) -> None:
        self._answers = iter(answers)

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        answer = next(self._answers, None)
        return Delivered() if answer is None else answer.interpreted()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@fuzz(30)
@given(st.lists(responses(), min_size=1, max_size=6), st.integers(1, 5))
def test_a_batcher_accounts_for_each_span_whatever_the_responses(answers: list[AnyResponse], max_spans: int) -> None:
    async def play() -> None:
        losses: list[Loss] = []
        async with SpanBatcher(
            AnsweredExporter(answers),
            batch=BatchPolicy(max_spans=max_spans),
            retry=RetryPolicy(max_elapsed=math.inf),
            shutdown_timeout=math.inf,
            on_loss=losses.append,
        ) as batcher:
            batcher.add_spans_nowait("here", make_spans(10))
            await batcher.flush()
        statistics = batcher.statistics()
        assert statistics.delivered + statistics.rejected == statistics.accepted == 10
        assert sum(loss.count for loss in losses) == statistics.rejected
        secrets = [secret for answer in answers for secret in answer.secrets]
        assert all(len(loss.reason) <= MAX_REASON and loss.reason.isprintable() for loss in losses)
        assert len(answers) > 1 or not [loss for loss in losses for secret in secrets if secret in loss.reason]

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


@fuzz(3, shrink=False)
@given(st.lists(responses(), min_size=5, max_size=10))
def test_responses_leave_nothing_in_memory(answers: list[AnyResponse]) -> None:
    def run() -> None:
        for answer in answers:
            answer.interpreted()

    with nothing_logged():
        assert_no_growth(run)
