"""The format of records and heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_spanbatch import EncodedSpan
from trio_spanbatch._spans.batch import SpanHeaders
from trio_spanbatch._spool.log import (
    PIECE,
    RECORDS_AT,
    SLOT,
    SLOTS,
    Head,
    Header,
    UnreadableSegment,
    is_intact,
    mark_of,
    pack_record,
    pack_spans,
    read_header,
    scan,
    short_enough,
    unpack_spans,
)
from trio_spanbatch._spool.store import NewRecord

MARKER = b"\x00marker\xff"
HEADERS = st.builds(SpanHeaders, st.binary(max_size=30), st.binary(max_size=30))
SPANS = st.lists(st.builds(EncodedSpan, st.binary(max_size=300), HEADERS), max_size=20)


@given(SPANS)
def test_spans_are_unpacked_as_they_were_packed(spans: list[EncodedSpan]) -> None:
    assert unpack_spans(pack_spans(spans)) == spans


@given(SPANS, st.text(max_size=50), st.text(max_size=50))
def test_a_record_is_read_as_it_was_packed(spans: list[EncodedSpan], location: str, reason: str) -> None:
    data = pack_record(MARKER, 7, NewRecord(location, spans, 99, 1.5), reason)
    header = read_header(lambda at, size: data[at : at + size], 0, MARKER)
    assert isinstance(header, Header)
    assert (header.slot, header.count, header.nbytes, header.oldest) == (7, len(spans), 99, 1.5)
    assert (header.location, header.reason, header.size) == (location, reason, len(data))
    assert is_intact(header, data[header.spans_at :])


def test_the_slot_of_a_settled_record_is_like_no_other() -> None:
    marks = {mark_of(MARKER, slot) for slot in range(SLOTS)}
    assert bytes(SLOT) not in marks
    assert len(marks) == SLOTS


def test_spans_in_a_row_share_their_resource_and_scope() -> None:
    headers = SpanHeaders(b"r" * 1000)
    packed = pack_spans(EncodedSpan(b"s", headers) for _ in range(10))
    assert len(packed) < 1100
    assert len({id(span.headers) for span in unpack_spans(packed)}) == 1


def test_a_long_reason_is_cut() -> None:
    data = pack_record(MARKER, 0, NewRecord("x", [], 0, 0.0), "why " * 10_000)
    assert len(data) < 3000


@given(st.text(max_size=2000))
def test_a_head_tells_the_endpoint_as_far_as_it_fits(endpoint: str) -> None:
    head = Head(short_enough(endpoint), MARKER, 1.5)
    packed = head.pack()
    assert len(packed) == RECORDS_AT
    assert Head.unpack(packed) == head
    assert endpoint.startswith(head.endpoint)


@pytest.mark.parametrize("begin", [b"", b"tsbspool", b"tsbspool\x01", b"x" * 30_000, bytes(30_000)])
def test_what_is_no_head_is_unreadable(begin: bytes) -> None:
    with pytest.raises(UnreadableSegment):
        Head.unpack(begin)


@pytest.mark.parametrize("garbage", [1, 63, 64, 65, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE - 30])
def test_the_record_after_garbage_of_any_size_is_found(garbage: int) -> None:
    record = pack_record(MARKER, 3, NewRecord("here", [EncodedSpan(b"span")], 4, 0.0))
    # Garbage with markers in it.
    junk = (MARKER + b"junk" * 11)[: garbage % 52] + (MARKER + b"junk" * 11) * (garbage // 52)
    data = bytes(RECORDS_AT) + junk + record
    found = list(scan(lambda at, size: data[at : at + size], len(data), MARKER))
    assert found[0] == (RECORDS_AT, garbage, None)
    ((at, size, header),) = [item for item in found[1:] if item[2] is not None]
    assert header is not None
    assert (at, size, header.location) == (RECORDS_AT + garbage, len(record), "here")
