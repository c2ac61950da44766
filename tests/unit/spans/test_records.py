"""The records: their values, and that these cannot change."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserString
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given

from tests.support.span_strategies import SPANS
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    FlushCounts,
    FlushReport,
    Limits,
    LocationStatistics,
    Loss,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcherStatistics,
    TryLater,
)
from trio_spanbatch._spans.records import (
    EntityRef,
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
from trio_spanbatch.opentelemetry._tally import SpanProcessorStatistics
from trio_spanbatch.testing import Answer, Drip, Hang, Reset

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


def test_none_means_no_attributes_and_no_trace_state() -> None:
    assert Resource(None).attributes == {}
    assert SpanContext(1, 2, trace_state=None).trace_state == ""


def test_events_and_links_become_tuples() -> None:
    events, links = [SpanEvent("event", 1)], [SpanLink(CONTEXT)]
    span = make_span(events=events, links=iter(links))
    events.clear()
    assert span.events == (SpanEvent("event", 1),)
    assert span.links == (SpanLink(CONTEXT),)


def test_records_are_immutable() -> None:
    span = make_span()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        span.name = "other"  # type: ignore[misc]  # on purpose


def test_a_mapping_that_raises_is_kept_for_the_encoder_to_read_in_part() -> None:
    class Broken(dict[str, int]):
        def keys(self) -> Any:
            raise OSError("gone")

        __iter__ = keys

    broken = Broken(a=1)
    assert make_span(attributes=broken).attributes is broken


RECORDS: list[Any] = [
    Span(
        "work",
        SpanContext(1, 2, trace_state={"a": "1"}),
        start_time=1,
        end_time=2,
        parent=CONTEXT,
        attributes={"list": [1, {}], "map": {"a": []}, "bytes": bytearray(b"x")},
        events=[SpanEvent("event", 1, {"list": []})],
        links=[SpanLink(CONTEXT, {"list": []})],
        resource=Resource({"list": []}, entity_refs=[EntityRef("service", ["a"])]),
        instrumentation_scope=InstrumentationScope("scope", attributes={"list": []}),
    ),
    SpanContext(1, 2, trace_state={"a": "1"}),
    SpanEvent("event", 1, {"list": []}),
    SpanLink(CONTEXT, {"map": {}}),
    Status(),
    Resource({"set": {1}}),
    EntityRef("service", ["service.name"]),
    InstrumentationScope("scope", attributes={"list": []}),
    SpanBatcherStatistics(locations={"a": LocationStatistics()}),
    FlushReport(locations={"a": FlushCounts()}),
    LocationStatistics(),
    FlushCounts(),
    Loss("here", SpanBatch("here", []), "rejected", "reason"),
    SpanBatch("here", []),
    EncodedSpan(b""),
    Delivered(1, "message"),
    TryLater("reason"),
    Refused("reason"),
    BatchPolicy(),
    Limits(),
    RetryPolicy(),
    SpanProcessorStatistics(ended=1, accepted=0, handed_over=0, dropped={"invalid": 1}),
    Answer(headers=[("a", "b")], rejected_spans=[]),
    Hang(),
    Reset(),
    Drip([b"x"]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_frozen_record_can_be_hashed(record: Any) -> None:
    assert hash(record) == hash(record)
    same = record if type(record) in (SpanBatch, EncodedSpan) else attrs.evolve(record)
    assert same == record
    assert hash(same) == hash(record)
    assert len({record, same}) == 1


EQUAL_VALUES: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (1, Decimal(1)),
    (b"x", bytearray(b"x")),
    (b"x", memoryview(b"x")),
    ((b"x",), (bytearray(b"x"),)),
    ({1}, frozenset({1})),
    ("x", UserString("x")),
    ({"a": 1, "b": 2}, OrderedDict(a=1, b=2)),
    ({"a": 1}, MappingProxyType({"a": 1})),
]


@pytest.mark.parametrize(
    ("one", "other"), EQUAL_VALUES, ids=[f"{one}-{type(other).__name__}" for one, other in EQUAL_VALUES]
)
def test_records_that_are_equal_have_the_same_hash(one: Any, other: Any) -> None:
    first, second = Resource({"key": one, "more": 1}), Resource({"more": 1, "key": other})
    assert first == second
    assert hash(first) == hash(second)


@given(SPANS)
def test_the_hash_of_any_span_is_that_of_its_copy(span: Span) -> None:
    assert hash(attrs.evolve(span)) == hash(span)


def test_records_with_different_values_mostly_have_different_hashes() -> None:
    assert len({hash(Resource({"service.instance.id": f"{number}"})) for number in range(1000)}) > 990
    assert hash(Status()) != hash(FlushCounts())


def test_records_are_equal_by_value() -> None:
    assert make_span(attributes={"a": [1]}) == make_span(attributes={"a": [1]})
    assert make_span(attributes={"a": [1]}) != make_span(attributes={"a": [2]})


def test_an_object_that_is_not_a_mapping_is_kept_for_the_encoder_to_refuse() -> None:
    not_a_mapping: Any = ["a"]
    assert Resource(not_a_mapping).attributes is not_a_mapping
    assert SpanContext(1, 2, trace_state=not_a_mapping).trace_state is not_a_mapping


def test_records_can_be_copied_and_pickled_with_their_contents() -> None:
    nested = MappingProxyType({"a": ({"b": [1]}, MappingProxyType({"c": b"d"}))})
    context = SpanContext(1, 2, trace_state={"a": "b"})
    span = make_span(
        attributes={"nested": nested},
        events=[SpanEvent("event", 1, {"k": nested})],
        links=[SpanLink(context, {"k": [nested["a"][0]]}, flags=1)],
        resource=Resource({"k": nested}, entity_refs=[EntityRef("service", ["k"])]),
        instrumentation_scope=InstrumentationScope("scope", attributes={"k": 1}),
        parent=context,
        status=Status(StatusCode.ERROR, "no"),
    )
    for record in (span, context, *span.events, *span.links, span.resource, span.instrumentation_scope):
        for other in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert other == record
            assert hash(other) == hash(record)
    changed = copy.deepcopy(span).attributes
    with pytest.raises(TypeError):
        changed["key"] = 1  # type: ignore[index]  # on purpose
