"""Hypothesis strategies for spans and their parts, ordinary and odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from trio_spanbatch._spans.records import (
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

TRACE_IDS = st.integers(1, 2**128 - 1)
SPAN_IDS = st.integers(1, 2**64 - 1)
TIMES = st.integers(0, 2**64 - 1)
COUNTS = st.integers(0, 2**32 - 1)

# Lengths around those at which a length takes another byte, or leaves the tables of the encoder.
_LENGTHS = st.sampled_from([0, 1, 125, 126, 127, 128, 1775, 1776, 2047, 2048, 16_383, 16_384, 70_000])


def _repeated(text: str, length: int) -> str:
    return text * length


# Characters include lone surrogates.
TEXTS = st.one_of(st.text(), st.text(st.characters()), st.builds(_repeated, st.characters(), _LENGTHS))
WELL_FORMED_TEXTS = st.one_of(st.text(), st.builds(_repeated, st.characters(codec="utf-8"), _LENGTHS))
KEYS = st.one_of(st.sampled_from(["http.method", "gen_ai.usage.input_tokens"]), TEXTS)

_OTHERS = st.one_of(st.decimals(), st.uuids(), st.datetimes(), st.complex_numbers(), st.fractions(), st.just({1}))
_SCALARS = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-(2**63) - 1, -(2**63), 2**63 - 1, 2**63, 10**4000, 127, 128, 2047, 2048]),
    st.floats(),
    st.binary(),
    st.none(),
    st.binary().map(bytearray),
    _OTHERS,
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(KEYS, values, max_size=4),
        st.dictionaries(st.one_of(KEYS, st.integers(), st.booleans()), values, max_size=4),
    ),
    max_leaves=8,
)
ATTRIBUTES: st.SearchStrategy[Mapping[str, Any]] = st.dictionaries(KEYS, VALUES, max_size=4)

TRACE_STATES = st.one_of(
    st.just(""), st.text(), st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=3)
)
CONTEXTS = st.builds(
    SpanContext,
    TRACE_IDS,
    SPAN_IDS,
    is_remote=st.booleans(),
    trace_flags=st.integers(0, 255),
    trace_state=TRACE_STATES,
)
EVENTS = st.builds(SpanEvent, TEXTS, TIMES, ATTRIBUTES, COUNTS)
LINKS = st.builds(SpanLink, CONTEXTS, ATTRIBUTES, COUNTS, flags=st.none() | COUNTS)
STATUSES = st.builds(Status, st.sampled_from(StatusCode), st.none() | TEXTS)
RESOURCES = st.builds(Resource, ATTRIBUTES, TEXTS, COUNTS)
SCOPES = st.builds(InstrumentationScope, TEXTS, st.none() | TEXTS, st.none() | TEXTS, ATTRIBUTES, COUNTS)

SPANS = st.builds(
    Span,
    TEXTS,
    CONTEXTS,
    start_time=TIMES,
    end_time=TIMES,
    kind=st.sampled_from(SpanKind),
    parent=st.none() | CONTEXTS,
    attributes=ATTRIBUTES,
    events=st.lists(EVENTS, max_size=2),
    links=st.lists(LINKS, max_size=2),
    status=st.none() | STATUSES,
    resource=st.none() | RESOURCES,
    instrumentation_scope=st.none() | SCOPES,
    dropped_attributes=st.just(0) | COUNTS,
    dropped_events=st.just(0) | COUNTS,
    dropped_links=st.just(0) | COUNTS,
    flags=st.none() | COUNTS,
)
