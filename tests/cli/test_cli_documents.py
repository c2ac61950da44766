from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_spanbatch.cli import documents
from trio_spanbatch.cli.documents import Document, DocumentParser, Unreadable

LINE = b'{"resourceSpans": []}'


def parsed(*chunks: bytes) -> list[Document | Unreadable]:
    parser = DocumentParser()
    items = [item for chunk in chunks for item in parser.feed(chunk)]
    return [*items, *parser.finish()]


def summary(items: Iterable[Document | Unreadable]) -> list[tuple[int, Any]]:
    return [(item.line, item.value if isinstance(item, Document) else item.reason) for item in items]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n \n\r\n", []),
        (b'{"a": 1}\n{"a": 2}\n', [(1, {"a": 1}), (2, {"a": 2})]),
        (b'{"a": 1}\r\n\r\n{"a": 2}', [(1, {"a": 1}), (3, {"a": 2})]),
        (b'\xef\xbb\xbf{"a": 1}\n', [(1, {"a": 1})]),
        (b"7\n[]\nnull\n", [(1, 7), (2, []), (3, None)]),
        (b'{"a":\n 1,\n\n "b": [\n]}\n', [(1, {"a": 1, "b": []})]),
        (b'\n\n  {\n"a": 1}\n\n', [(3, {"a": 1})]),
        (b'{"a":\n 1}\n\n{"b":\n 2}\n', [(1, {"a": 1}), (4, {"b": 2})]),
        (b'\xef\xbb\xbf{\n"a": "\xc3\xa9"}', [(1, {"a": "é"})]),
    ],
    ids=[
        "nothing",
        "blank lines",
        "lines",
        "lines that end with CRLF",
        "byte order mark",
        "lines that are not objects",
        "one document over many lines",
        "one document after blank lines",
        "documents one after the other",
        "byte order mark before a document",
    ],
)
def test_documents_are_found_with_the_line_on_which_they_begin(data: bytes, expected: list[tuple[int, Any]]) -> None:
    assert summary(parsed(data)) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (LINE + b"\nnonsense\n" + LINE, [(2, "not JSON: Expecting value at column 1")]),
        (LINE + b'\n{"a": \n' + LINE, [(2, "not JSON: Expecting value at column 7")]),
        (b'{"a": [tru\n' + LINE + b"\n", [(1, "not JSON: Expecting value at column 8")]),
        (b'{"a": [\n' + LINE + b"\n", [(1, "not JSON: Expecting value at column 8")]),
        (
            b'{"a": [\n\n"x\n' + LINE,
            [(1, "not JSON: Expecting value at column 8"), (3, "not JSON: Unterminated string starting at column 1")],
        ),
        (LINE + b"\n\xff\xfe\n" + LINE, [(2, "not UTF-8: byte 0xff")]),
        (LINE + b"\n" + b"[" * 200_000 + b"\n" + LINE, [(2, "not read: nested too deeply")]),
        (b"[" * 200_000 + b"]" * 200_000 + b"\n" + LINE, [(1, "not read: nested too deeply")]),
        (LINE + b"\n" + b"1" * 5000 + b"\n", [(2, "not read: Exceeds the limit (4300 digits)")]),
        (b"\xff\n" + LINE, [(1, "not UTF-8: byte 0xff")]),
        (b'{\n "a": 1,\n "b" 2\n}\n', [(3, "not JSON: Expecting ':' delimiter at column 6")]),
        (b'{\n "a": "\xff"}\n', [(2, "not UTF-8: byte 0xff")]),
        (b'{\n "a": ' + b"[" * 200_000 + b"\n", [(1, "not read: nested too deeply")]),
        (b'{\n"a": 1', [(2, "not JSON: Expecting ',' delimiter at column 7")]),
    ],
)
def test_invalid_json_is_reported_with_its_line_and_the_rest_is_read(
    data: bytes, expected: list[tuple[int, str]]
) -> None:
    items = parsed(data)
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    assert [item.line for item in unreadable] == [line for line, _ in expected]
    for item, (_, reason) in zip(unreadable, expected, strict=True):
        assert item.reason.startswith(reason)
        assert "sys." not in item.reason
    assert sum(isinstance(item, Document) for item in items) == data.count(LINE)


PRETTY = b'{\n  "resourceSpans": [\n  ]\n}'
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (LINE + b"\n" + PRETTY, [1, 2]),
        (PRETTY + b"\n" + LINE, [1, 5]),
        (b"{}\n" + PRETTY + b"\n" + PRETTY + b"\n{}", [1, 2, 6, 10]),
        (LINE + LINE + b"\n", [1, 1]),
        (LINE + PRETTY + PRETTY + LINE + b"\n" + LINE, [1, 1, 4, 7, 8]),
        (BOM + LINE + b"\n" + BOM + PRETTY + b"\n" + BOM + LINE, [1, 2, 6]),
        (LINE + BOM + LINE, [1, 1]),
        (b'{"a": "}\\"{",\n"b": 1}' + LINE, [1, 2]),
    ],
    ids=[
        "a line and a document over many lines",
        "a document over many lines and a line",
        "all kinds of documents",
        "two files joined without a line break",
        "many files joined without a line break",
        "files joined with their byte order marks",
        "no line break but a byte order mark",
        "brackets in strings",
    ],
)
def test_lines_and_documents_over_several_lines_may_be_mixed(data: bytes, lines: list[int]) -> None:
    items = parsed(data)
    assert [item.line for item in items] == lines
    assert all(isinstance(item, Document) for item in items)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (LINE + b'\n{"a": [\n' + LINE + b"\n" + PRETTY, [1, 2, 3, 4]),
        (b'{\n"a" 1\n}\n' + PRETTY + b"\n" + LINE, [2, 4, 8]),
        (PRETTY + b" nonsense\n" + PRETTY, [1, 4, 5]),
        (LINE + b" nonsense\n" + LINE, [1, 1, 2]),
        (PRETTY + b'\n{"a": \n' + LINE, [1, 5, 6]),
    ],
)
def test_in_a_mix_only_broken_documents_are_left_out(data: bytes, lines: list[int]) -> None:
    items = parsed(data)
    assert [item.line for item in items] == lines
    (broken,) = [item for item in items if isinstance(item, Unreadable)]
    assert broken.reason.startswith("not JSON: ")


def test_a_document_over_several_lines_is_parsed_once_however_many_brackets_its_lines_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    values = documents._values

    def counted(data: bytes, first: int) -> Iterator[Document | Unreadable]:
        sizes.append(len(data))
        return values(data, first)

    monkeypatch.setattr(documents, "_values", counted)
    data = b"[\n" + b'{"a": []},\n' * 1000 + b'{"b": {}}]\n'
    assert [item.line for item in parsed(data)] == [1]
    assert sizes == [1, len(data) - 1]


def test_documents_after_one_that_is_too_large_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    items = parsed(b'{"a": [\n', *[b'"xxxxxxxxxx",\n'] * 20, b'"x"]}\n', PRETTY, b"\n" + LINE)
    assert [(item.line, isinstance(item, Document)) for item in items] == [(1, False), (23, True), (27, True)]


@given(data=st.data())
def test_the_result_does_not_depend_on_how_bytes_are_split(data: st.DataObject) -> None:
    line = st.sampled_from(
        [LINE, b"", b" ", b"nonsense", b'{"a": [', b"\xff", b'{"b": 1}', b"]", b"}", PRETTY, LINE * 2]
    )
    content = data.draw(st.sampled_from([b"\n", b"\r\n"])).join(data.draw(st.lists(line, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert parsed(*pieces) == parsed(content)


def test_a_line_that_is_too_large_is_left_out_and_the_rest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    items = parsed(LINE + b"\n", b'{"a": "', b"x" * 90, b"x" * 90, b'"}\n' + LINE + b"\n")
    assert [item.line for item in items] == [1, 2, 3]
    assert isinstance(items[1], Unreadable)
    assert items[1].reason.startswith("larger than 256 MiB; write it as JSON lines")


def test_a_document_that_is_too_large_is_left_out_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    items = parsed(b'{"a": [\n', *[b'"xxxxxxxxxx",\n'] * 20, b'"x"]}\n')
    assert [(item.line, isinstance(item, Unreadable)) for item in items] == [(1, True)]


def test_memory_stays_flat_however_many_lines_there_are() -> None:
    def chunks() -> Iterator[bytes]:
        lines = b'{"a": "' + b"x" * 1000 + b'"}\n'
        for _ in range(20_000):
            yield lines

    parser = DocumentParser()
    tracemalloc.start()
    try:
        found = sum(1 for chunk in chunks() for _ in parser.feed(chunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == 20_000
    assert peak < 1_000_000
