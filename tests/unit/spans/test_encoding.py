"""The encoder against opentelemetry-proto."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.span_strategies import ATTRIBUTES, SPANS
from tests.unit.spans import expected_messages as expected
from tests.unit.spans.support import CONTEXT, assert_same, encode, make_span
from trio_spanbatch._spans.batch import SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import InstrumentationScope, Resource, Span, SpanContext, SpanEvent, SpanLink


@given(SPANS)
def test_a_span_is_encoded_as_by_protobuf(span: Span) -> None:
    encoded = SpanEncoder().encode(span)
    message = expected.span_message(span)
    assert_same(encoded.to_message(), message)
    assert encoded.size == len(encoded.payload) == message.ByteSize()

    batch = SpanBatch("here", [encoded])
    request = expected.request_message(span)
    assert_same(batch.to_message(), request)
    assert batch.size == len(batch.to_request()) == request.ByteSize()


@settings(max_examples=20)
@given(st.lists(SPANS, min_size=2, max_size=3))
def test_an_encoder_that_has_seen_other_spans_encodes_as_a_new_one(spans: list[Span]) -> None:
    used = SpanEncoder()
    for span in [*spans, *spans]:
        encoded, fresh = used.encode(span), SpanEncoder().encode(span)
        assert encoded.payload == fresh.payload
        assert encoded.headers == fresh.headers


@given(ATTRIBUTES)
def test_attributes_of_spans_events_links_resources_and_scopes_are_encoded_alike(attributes: Mapping[str, Any]) -> None:
    wanted = [attribute.SerializeToString(deterministic=True) for attribute in expected.attributes(attributes)]
    span = make_span(
        attributes=attributes,
        events=[SpanEvent("event", 1, attributes)],
        links=[SpanLink(CONTEXT, attributes)],
        resource=Resource(attributes),
        instrumentation_scope=InstrumentationScope("scope", attributes=attributes),
    )
    (resource_spans,) = SpanBatch("here", [SpanEncoder().encode(span)]).to_message().resource_spans
    (scope_spans,) = resource_spans.scope_spans
    (message,) = scope_spans.spans
    owners: list[Any] = [message, message.events[0], message.links[0], resource_spans.resource, scope_spans.scope]
    for owner in owners:
        assert [attribute.SerializeToString(deterministic=True) for attribute in owner.attributes] == wanted


def test_a_span_needs_only_a_name_a_context_and_times() -> None:
    message = encode().to_message()
    assert message.kind == message.SPAN_KIND_INTERNAL
    assert message.flags == 0x100
    assert message.parent_span_id == b""
    assert message.HasField("status")
    assert SpanEncoder().encode(make_span()).headers.resource == b""


def test_an_encoded_span_is_returned_unchanged() -> None:
    encoded = encode()
    assert SpanEncoder().encode(encoded) is encoded


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 5), (5, 0), (7, 5), (2**64 - 1, 2**64 - 1)])
def test_an_end_before_the_start_and_times_at_the_limits_are_accepted(start: int, end: int) -> None:
    message = encode(start_time=start, end_time=end).to_message()
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == (start, end)


def test_flags_tell_whether_the_parent_is_remote() -> None:
    assert encode(parent=SpanContext(1, 2)).to_message().flags == 0x100
    assert encode(parent=SpanContext(1, 2, is_remote=True)).to_message().flags == 0x300
    assert encode(flags=0, parent=SpanContext(1, 2, is_remote=True)).to_message().flags == 0


def test_flags_combine_the_trace_flags_of_the_span_with_whether_its_parent_is_remote() -> None:
    context = SpanContext(1, 2, is_remote=True, trace_flags=3)
    assert encode(context=context).to_message().flags == 0x103
    assert encode(context=context, parent=SpanContext(1, 2, trace_flags=0xFF)).to_message().flags == 0x103
    assert encode(context=context, parent=SpanContext(1, 2, is_remote=True)).to_message().flags == 0x303
    assert encode(context=SpanContext(1, 2, trace_flags=0x1FF)).to_message().flags == 0x1FF
    assert encode(context=context, flags=0).to_message().flags == 0


def test_a_context_without_trace_flags_has_none_set() -> None:
    nothing: Any = None
    bare: Any = SimpleNamespace(trace_id=1, span_id=2, is_remote=False, trace_state="")
    for context in (SpanContext(1, 2, trace_flags=nothing), bare):
        message = encode(context=context, links=[SpanLink(context)]).to_message()
        assert (message.flags, message.links[0].flags) == (0x100, 0x100)


def test_a_link_is_sent_with_its_trace_state_and_trace_flags() -> None:
    link = SpanLink(SpanContext(1, 2, is_remote=True, trace_flags=3, trace_state={"a": "1", "b": "2"}))
    (message,) = encode(links=[link]).to_message().links
    assert (message.trace_state, message.flags) == ("a=1,b=2", 0x303)
