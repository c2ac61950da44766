"""Any bytes as a file of OTLP JSON, read as by ``trio-spanbatch send``: the result is spans, or the reasons."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from tests.cli.json_support import DOCUMENTS
from tests.fuzz.support import assert_no_growth, damaged, fuzz, nothing_logged, pieces
from trio_spanbatch import BatchPolicy, EncodedSpan, InvalidSpanError, Limits, RetryPolicy, Span, SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.documents import Document, DocumentParser, Unreadable
from trio_spanbatch.cli.otlp_json import read_request
from trio_spanbatch.cli.screen import Screen
from trio_spanbatch.cli.send import LocationOf, SendSettings, send
from trio_spanbatch.testing import InMemoryExporter

# The report of a failure may be long; as an error, this warning would hide the failure.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

# The maximum length of a message: a path of 48 levels at most, a value, and a sentence.
MAX_MESSAGE = 3000

IDS = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}
LEAVES: list[Any] = [
    *({"stringValue": "text"}, {"boolValue": True}, {"intValue": "-5"}, {"doubleValue": 1.5}, {"bytesValue": "AAE="}),
    *({"doubleValue": "NaN"}, {}, None),
]
ATTRIBUTES: list[Any] = [
    *({"key": f"key {number}", "value": leaf} for number, leaf in enumerate(LEAVES)),
    {"key": "array", "value": {"arrayValue": {"values": [leaf for leaf in LEAVES if leaf]}}},
    {"key": "mapping", "value": {"kvlistValue": {"values": [{"key": "inner", "value": {"stringValue": "x"}}]}}},
]
# A request in which each field that is read has a value.
EVERYTHING: Any = {
    "resourceSpans": [
        {
            "resource": {"attributes": ATTRIBUTES, "droppedAttributesCount": 1},
            "schemaUrl": "https://schema.example",
            "scopeSpans": [
                {
                    "scope": {"name": "library", "version": "1", "attributes": ATTRIBUTES[:2]},
                    "schemaUrl": "https://schema.example",
                    "spans": [
                        IDS
                        | {
                            "parentSpanId": "eee19b7ec3c1b173",
                            "traceState": "a=b",
                            "flags": 257,
                            "name": "work",
                            "kind": "SPAN_KIND_SERVER",
                            "startTimeUnixNano": "1544712660000000000",
                            "endTimeUnixNano": 1544712661000000000,
                            "attributes": ATTRIBUTES,
                            "droppedAttributesCount": 1,
                            "events": [{"name": "event", "timeUnixNano": "5", "attributes": ATTRIBUTES[:1]}],
                            "droppedEventsCount": "2",
                            "links": [IDS | {"traceState": "c=d", "attributes": ATTRIBUTES[:1], "flags": 3}],
                            "status": {"code": "STATUS_CODE_ERROR", "message": "failed"},
                        },
                        IDS | {"name": "second"},
                    ],
                }
            ],
        }
    ]
}

# Texts that are replaced by JSON that ``json.dumps`` cannot write.
RAW: dict[str, bytes] = {
    "@lists@": b"[" * 5_000 + b"]" * 5_000,
    "@open lists@": b"[" * 200_000,
    "@objects@": b'{"value":{"arrayValue":{"values":[' * 2_000 + b"{}" + b"]}}}" * 2_000,
    "@values@": b'{"arrayValue":{"values":[' * 60 + b"{}" + b"]}}" * 60,
    "@int@": b"9" * 5_000,
    "@int64@": b"9223372036854775808",
    "@float@": b"1e999",
    "@text@": b'"' + b"x" * 300_000 + b'"',
    "@surrogate@": b'"\\udfff\\ud800"',
    "@raw surrogate@": b'"\xed\xa0\x80"',
    "@zero@": b'"\x00"',
    "@nothing@": b"",
}
RAW_VALUES = st.sampled_from(sorted(RAW))

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), RAW_VALUES),
        st.sampled_from(
            [2**63, 2**64, 2**32, -1, 10**400, "1e5", "-0", "0x1", "NaN", "Infinity", "ab" * 8, "==", "AQ"]
        ),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


def nodes_of(value: Any) -> list[tuple[Any, Any]]:
    """Yield each place in a document: its container, and its key or index there."""
    places: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        places.append((value, key))
        if isinstance(inner, dict | list):
            places += nodes_of(inner)
    return places


def spoil(draw: st.DrawFn, owner: Any, key: Any) -> None:
    """Replace, remove, double, wrap or rename the item at ``key``."""
    match draw(st.integers(0, 9)):
        case 0:
            del owner[key]
        case 1 if isinstance(owner, list):
            owner.insert(key, owner[key])
        case 1:
            # Becomes the same key once more.
            owner[f"{key}@again@"] = draw(JSON_VALUES)
        case 2:
            owner[key] = [owner[key]]
        case 3:
            owner[key] = {"value": owner[key]}
        case 4 if isinstance(owner, dict):
            owner["".join(f"_{c.lower()}" if c.isupper() else c for c in key)] = owner.pop(key)
        case 5 if isinstance(owner, dict):
            owner[draw(st.sampled_from(["stringValue", "intValue", "values", "kvlistValue", "key"]))] = owner[key]
        case _:
            owner[key] = draw(JSON_VALUES)


@st.composite
def spoilt_documents(draw: st.DrawFn) -> bytes:
    """A valid request, damaged in up to four places, as JSON or nearly JSON."""
    document = copy.deepcopy(draw(st.sampled_from([EVERYTHING, EVERYTHING, *DOCUMENTS[:2]])))
    for _ in range(draw(st.integers(0, 4))):
        if places := nodes_of(document):
            spoil(draw, *draw(st.sampled_from(places)))
    indent = draw(st.sampled_from([None, None, None, 1]))
    text = json.dumps(document, indent=indent, ensure_ascii=draw(st.booleans())).replace('@again@"', '"')
    data = text.encode("utf-8", "surrogatepass")
    for name, raw in RAW.items():
        data = data.replace(f'"{name}"'.encode(), raw)
    return data


SPLICES = (
    b"\n",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b'"',
    b"\\",
    b"}",
    b"]",
    b"{",
    b"NaN",
    b'{"resourceSpans": [',
    b"\x1f\x8b",
)
LINES = st.one_of(
    spoilt_documents(),
    spoilt_documents().flatmap(lambda data: damaged(data, splices=SPLICES)),
    st.binary(max_size=20),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b" ", b"null", b"[]", b"{}", b"[" * 100_000, b'{"resourceSpans":null}', *SPLICES]),
)
FILES = st.lists(LINES, min_size=1, max_size=4).map(b"\n".join)


def parsed(chunks: list[bytes]) -> list[Document | Unreadable]:
    parser = DocumentParser()
    items = [item for chunk in chunks for item in parser.feed(chunk)]
    return [*items, *parser.finish()]


def assert_can_be_shown(message: str) -> None:
    assert 0 < len(message) <= MAX_MESSAGE
    assert message.isprintable(), message


def spans_of(items: list[Document | Unreadable]) -> list[EncodedSpan]:
    """Continue like ``send``. Only documented exceptions are caught."""
    encoder, encoded = SpanEncoder(), []
    by_attribute = [LocationOf(attribute=key) for key in ("key 0", "key 4", "array", "mapping")]
    for item in items:
        if isinstance(item, Unreadable):
            assert_can_be_shown(item.reason)
            continue
        try:
            spans = list(read_request(item.value))
        except ValueError as error:
            assert not isinstance(error, InvalidSpanError)
            assert_can_be_shown(str(error))
            continue
        for span in spans:
            if isinstance(span, InvalidSpanError):
                assert_can_be_shown(str(span))
                continue
            try:
                encoded.append(encoder.encode(span))
            except InvalidSpanError as error:
                assert_can_be_shown(str(error))
            for location_of in by_attribute:
                try:
                    assert isinstance(location_of(span), str)
                except ValueError as error:
                    assert_can_be_shown(str(error))
    return encoded


@fuzz(150)
@given(st.data())
def test_any_bytes_become_valid_spans_or_reasons(data: st.DataObject) -> None:
    content = data.draw(FILES)
    items = parsed(data.draw(pieces(content)))
    lines = content.count(b"\n") + 1
    assert all(1 <= item.line <= lines for item in items)
    assert [item.line for item in items] == sorted(item.line for item in items)
    for encoded in spans_of(items):
        (resource_spans,) = SpanBatch("here", [encoded]).to_message().resource_spans
        assert len(resource_spans.scope_spans[0].spans[0].trace_id) == 16


BAD_LINES = st.lists(LINES.map(lambda line: line.replace(b"\n", b" ")), max_size=3)
GOOD_SPAN = "the good one"
GOOD_LINE = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [IDS | {"name": GOOD_SPAN}]}]}]}).encode()


@fuzz(150)
@given(BAD_LINES, BAD_LINES)
def test_a_valid_line_is_read_regardless_of_other_lines(before: list[bytes], after: list[bytes]) -> None:
    items = parsed([b"\n".join([*before, GOOD_LINE, *after])])
    found = [span for item in items if isinstance(item, Document) for span in spans_or_none(item.value)]
    assert GOOD_SPAN in [span.name for span in found if isinstance(span, Span)]


def spans_or_none(document: object) -> list[Span | InvalidSpanError]:
    try:
        return list(read_request(document))
    except ValueError:
        return []


GZIP = b"\x1f"
TEN_MEGABYTES = "x" * 10_000_000


@fuzz(20)
@given(JSON_VALUES.map(lambda value: value if isinstance(value, list | dict) else [value]), st.data())
@example([TEN_MEGABYTES], None)
@example({TEN_MEGABYTES: 1}, None)
@example({"resourceSpans": TEN_MEGABYTES}, None)
@example({"resourceSpans": [{"scopeSpans": [{"spans": [IDS | {"kind": TEN_MEGABYTES}]}]}]}, None)
@example({"resourceSpans": [{"scopeSpans": [{"spans": [IDS | {"name": TEN_MEGABYTES}]}]}]}, None)
@example({"resourceSpans": [{"scopeSpans": [{"spans": [IDS | {"startTimeUnixNano": TEN_MEGABYTES}]}]}]}, None)
@example({"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": TEN_MEGABYTES}]}]}]}, None)
def test_any_json_becomes_spans_or_reasons(value: Any, data: st.DataObject | None) -> None:
    document = value
    if data is not None and data.draw(st.booleans()):
        document = {data.draw(st.sampled_from(["resourceSpans", "resource_spans"])): value}
    spans_of([Document(1, document)])


@pytest.mark.long
@fuzz(3, shrink=False)
@given(st.lists(LINES.map(lambda line: line.replace(b"\n", b" ")), min_size=5, max_size=15))
def test_a_file_without_end_takes_no_more_memory(lines: list[bytes]) -> None:
    parser, content = DocumentParser(), b"\n".join(lines)[:20_000]

    def run() -> None:
        # A complete request ends a document of several lines, which the parser would otherwise keep in memory.
        spans_of([*parser.feed(content + b"\n" + GOOD_LINE + b"\n")])

    assert_no_growth(run)


@fuzz(25)
@given(st.lists(FILES, min_size=1, max_size=2), st.sampled_from([None, "key 0", "service.name"]))
def test_the_command_accounts_for_any_contents_of_its_files(contents: list[bytes], attribute: str | None) -> None:
    async def play(files: list[str]) -> None:
        exporter, err = InMemoryExporter(), io.StringIO()
        settings = SendSettings(
            files=files,
            location_of=LocationOf(attribute=attribute),
            batch=BatchPolicy(),
            limits=Limits(),
            retry=RetryPolicy(),
        )
        result = await send(settings, exporter, Screen(Console(file=io.StringIO()), Console(file=err, width=200)))
        assert result.read_whole
        statistics = result.statistics
        assert statistics.accepted == statistics.delivered == sum(map(len, exporter.delivered.values()))
        lines = err.getvalue().splitlines()
        assert all(len(line) <= MAX_MESSAGE + 200 for line in lines)
        assert result.tally.invalid == len([line for line in lines if not line.endswith(": contains no spans")])
        assert result.exit_code == (1 if result.tally.invalid else 0)
        if attribute is None and not any(content.startswith(GZIP) for content in contents):
            assert statistics.accepted == sum(len(spans_of(parsed([content]))) for content in contents)

    with tempfile.TemporaryDirectory() as directory, nothing_logged():
        files = [Path(directory, f"{number}.json") for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        trio.run(play, [str(file) for file in files])
