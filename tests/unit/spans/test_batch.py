"""Batches: their exact size, the grouping of spans under their resources and scopes, splitting."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1 import trace_pb2

from trio_spanbatch._spans.batch import EncodedSpan, RequestSizer, SpanBatch, SpanHeaders, request_size
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import InstrumentationScope, Resource, Span, SpanContext
from trio_spanbatch._spans.wire import varint, varint_size


def named(size: int) -> bytes:
    """Return a span's message of about ``size`` bytes: a name."""
    return trace_pb2.Span(name="n" * size).SerializeToString()


def resource_header(size: int) -> bytes:
    return trace_pb2.ResourceSpans(schema_url="r" * size).SerializeToString()


def scope_header(size: int) -> bytes:
    return trace_pb2.ScopeSpans(schema_url="s" * size).SerializeToString()


# Around the sizes at which a length takes another byte, in spans and envelopes.
SIZES = st.one_of(st.integers(0, 300), st.integers(16_200, 16_500), st.sampled_from([2_097_000, 2_097_140, 2_097_152]))
SMALL_SIZES = st.sampled_from([0, 1, 60, 120, 126, 127, 128])
ENCODED_SPANS = st.builds(
    EncodedSpan,
    st.builds(named, SIZES),
    st.builds(SpanHeaders, st.builds(resource_header, SMALL_SIZES), st.builds(scope_header, SMALL_SIZES)),
)


def make_encoded(name: str = "", *, resource: bytes = b"", scope: bytes = b"") -> EncodedSpan:
    return EncodedSpan(trace_pb2.Span(name=name).SerializeToString(), SpanHeaders(resource, scope))


def names_of(batch: SpanBatch) -> list[str]:
    return [span.to_message().name for span in batch.spans]


@given(st.lists(ENCODED_SPANS, max_size=30))
def test_the_size_of_a_batch_is_the_length_of_its_request(spans: list[EncodedSpan]) -> None:
    batch = SpanBatch("here", spans)
    assert batch.size == len(batch.to_request()) == batch.to_message().ByteSize() == request_size(spans)


@given(st.lists(ENCODED_SPANS, max_size=30))
def test_the_size_is_exact_after_every_span_that_is_added(spans: list[EncodedSpan]) -> None:
    sizer = RequestSizer(sys.maxsize)
    assert sizer.size == 0
    for count, span in enumerate(spans, 1):
        assert sizer.try_add(span)
        assert sizer.size == len(SpanBatch("here", spans[:count], size=0).to_request())


@given(st.integers(0, 130), st.integers(0, 130), st.integers(1, 400))
def test_the_size_stays_exact_while_envelopes_fill_with_equal_spans(resource: int, scope: int, count: int) -> None:
    span = EncodedSpan(named(60), SpanHeaders(resource_header(resource), scope_header(scope)))
    sizer = RequestSizer(sys.maxsize)
    for added in range(1, count + 1):
        assert sizer.try_add(span)
        if added % 7 == 0 or added == count:
            assert sizer.size == len(SpanBatch("here", [span] * added, size=0).to_request())


@given(st.lists(ENCODED_SPANS, min_size=1, max_size=12), st.integers(0, 40_000))
@example([EncodedSpan(named(10))] * 3, 40)
def test_a_span_is_added_exactly_if_the_request_stays_within_the_limit(spans: list[EncodedSpan], limit: int) -> None:
    sizer = RequestSizer(limit)
    added: list[EncodedSpan] = []
    for span in spans:
        fits = len(SpanBatch("here", [*added, span], size=0).to_request()) <= limit
        assert sizer.try_add(span) == fits
        if fits:
            added.append(span)
        assert sizer.size == request_size(added)


@given(ENCODED_SPANS, st.integers(0, 40_000), st.lists(ENCODED_SPANS, max_size=4))
def test_the_first_span_may_have_any_size(first: EncodedSpan, limit: int, others: list[EncodedSpan]) -> None:
    sizer = RequestSizer(limit)
    sizer.add_first(first)
    assert sizer.size == request_size([first])
    added = [first]
    for span in others:
        if sizer.try_add(span):
            added.append(span)
            assert sizer.size <= limit
        assert sizer.size == request_size(added)


def test_spans_are_grouped_under_equal_resources_and_scopes_and_keep_their_order() -> None:
    headers = [(resource_header(1), scope_header(1)), (resource_header(2), scope_header(1)), (b"", b"")]
    spans = [
        # Headers are compared by equality, not identity.
        make_encoded(f"{which}.{turn}", resource=bytes(bytearray(resource)), scope=bytes(bytearray(scope)))
        for turn in range(3)
        for which, (resource, scope) in enumerate(headers)
    ]
    message = SpanBatch("here", spans).to_message()
    assert [
        (resource_spans.schema_url, scope_spans.schema_url, [span.name for span in scope_spans.spans])
        for resource_spans in message.resource_spans
        for scope_spans in resource_spans.scope_spans
    ] == [
        ("r", "s", ["0.0", "0.1", "0.2"]),
        ("rr", "s", ["1.0", "1.1", "1.2"]),
        ("", "", ["2.0", "2.1", "2.2"]),
    ]


def test_scopes_of_one_resource_share_its_envelope() -> None:
    encoder, resource = SpanEncoder(), Resource({"service.name": "x"})
    spans = [
        encoder.encode(
            Span(
                name,
                SpanContext(1, 1),
                start_time=1,
                end_time=2,
                resource=resource,
                instrumentation_scope=InstrumentationScope(name),
            )
        )
        for name in "abab"
    ]
    (resource_spans,) = SpanBatch("here", spans).to_message().resource_spans
    assert [(scope_spans.scope.name, len(scope_spans.spans)) for scope_spans in resource_spans.scope_spans] == [
        ("a", 2),
        ("b", 2),
    ]


def test_an_empty_batch_is_an_empty_request() -> None:
    batch = SpanBatch("here", [])
    assert (batch.size, batch.to_request(), batch.spans) == (0, b"", ())


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_a_batch_splits_into_its_halves_in_order(count: int) -> None:
    batch = SpanBatch("here", [make_encoded(str(number)) for number in range(count)])
    first, second = batch.split()
    assert names_of(first) + names_of(second) == names_of(batch)
    assert 0 <= len(second.spans) - len(first.spans) <= 1
    assert {first.location, second.location} == {"here"}
    assert (first.size, second.size) == (len(first.to_request()), len(second.to_request()))


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_fewer_than_two_spans_does_not_split(count: int) -> None:
    with pytest.raises(ValueError, match=f"a batch of {count} spans cannot be split"):
        SpanBatch("here", [make_encoded()] * count).split()


def test_an_encoded_span_gives_its_own_message_and_size() -> None:
    encoded = make_encoded("name", resource=resource_header(5), scope=scope_header(5))
    assert encoded.to_message() == trace_pb2.Span(name="name")
    assert encoded.size == trace_pb2.Span(name="name").ByteSize()


def test_encoded_spans_are_equal_only_to_themselves() -> None:
    first, second = make_encoded(), make_encoded()
    assert first != second
    assert len({first, second, first}) == 2


def test_reprs_show_location_and_size_and_no_content() -> None:
    encoded = make_encoded("secret")
    assert repr(encoded) == "<EncodedSpan of 8 bytes>"
    assert repr(SpanBatch("here", [encoded])) == "<SpanBatch 'here': 1 spans, 14 bytes>"


@given(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64).map(lambda bits: min(2**bits, 2**64 - 1))))
@example(2**64 - 1)
def test_a_varint_is_as_long_as_it_says_and_reads_back(value: int) -> None:
    encoded = varint(value)
    assert len(encoded) == varint_size(value)
    assert sum((group & 0x7F) << 7 * index for index, group in enumerate(encoded)) == value
    assert [group >> 7 for group in encoded] == [1] * (len(encoded) - 1) + [0]
