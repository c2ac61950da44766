"""The records: what they hold, and that nobody changes it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from trio_spanbatch._records import (
    InstrumentationScope,
    Resource,
    Span,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)

CONTEXT = SpanContext(1, 2)


def make_span(**fields: Any) -> Span:
    return Span("work", CONTEXT, **{"start_time": 1, "end_time": 2} | fields)


def test_a_span_has_sensible_defaults() -> None:
    span = make_span()
    assert span.kind is SpanKind.INTERNAL
    assert span.status == Status(StatusCode.UNSET, None)
    assert (span.parent, span.resource, span.instrumentation_scope, span.flags) == (None, None, None, None)
    assert (span.attributes, span.events, span.links) == ({}, (), ())
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (0, 0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda attributes: make_span(attributes=attributes),
        lambda attributes: SpanEvent("event", 1, attributes),
        lambda attributes: SpanLink(CONTEXT, attributes),
        lambda attributes: Resource(attributes),
        lambda attributes: InstrumentationScope("scope", attributes=attributes),
    ],
)
def test_attributes_are_a_read_only_copy(make: Any) -> None:
    attributes = {"key": 1}
    record = make(attributes)
    attributes["key"] = 2
    assert record.attributes == {"key": 1}
    with pytest.raises(TypeError):
        record.attributes["key"] = 3


def test_a_read_only_view_is_copied_too() -> None:
    attributes = {"key": 1}
    resource = Resource(MappingProxyType(attributes))
    attributes["key"] = 2
    assert resource.attributes == {"key": 1}


def test_a_trace_state_may_be_text_or_a_mapping_which_is_copied() -> None:
    entries = {"vendor": "1"}
    context = SpanContext(1, 2, trace_state=entries)
    entries["vendor"] = "2"
    assert context.trace_state == {"vendor": "1"}
    assert isinstance(context.trace_state, Mapping)
    assert SpanContext(1, 2, trace_state="vendor=1").trace_state == "vendor=1"


def test_none_stands_for_no_attributes_and_no_trace_state() -> None:
    assert Resource(None).attributes == {}
    assert SpanContext(1, 2, trace_state=None).trace_state == ""


def test_events_and_links_become_tuples() -> None:
    events, links = [SpanEvent("event", 1)], [SpanLink(CONTEXT)]
    span = make_span(events=events, links=iter(links))
    events.clear()
    assert span.events == (SpanEvent("event", 1),)
    assert span.links == (SpanLink(CONTEXT),)


def test_records_do_not_change() -> None:
    span = make_span()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        span.name = "other"  # type: ignore[misc]  # on purpose


def test_records_are_equal_by_value() -> None:
    assert make_span(attributes={"a": [1]}) == make_span(attributes={"a": [1]})
    assert make_span(attributes={"a": [1]}) != make_span(attributes={"a": [2]})


def test_what_is_no_mapping_is_kept_for_the_encoder_to_refuse() -> None:
    not_a_mapping: Any = ["a"]
    assert Resource(not_a_mapping).attributes is not_a_mapping
    assert SpanContext(1, 2, trace_state=not_a_mapping).trace_state is not_a_mapping
