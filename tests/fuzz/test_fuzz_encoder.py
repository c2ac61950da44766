"""Any object as a span: it is encoded to a valid message, or refused with an `InvalidSpanError`."""

from __future__ import annotations

import gc
import sys
from types import MappingProxyType, SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.support import GARBAGE, Boxed, assert_no_growth, fuzz, nothing_logged
from tests.support.span_strategies import VALUES
from tests.unit.spans.support import CONTEXT, make_span, span_like
from trio_spanbatch import (
    BatchPolicy,
    EncodedSpan,
    InstrumentationScope,
    InvalidLocationError,
    InvalidSpanError,
    Resource,
    SpanBatch,
    SpanBatcher,
    SpanEvent,
    SpanLink,
    Status,
)
from trio_spanbatch._spans import attributes
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.testing import InMemoryExporter

# The report of a failure may be long; as an error, this warning would hide the failure.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

# The maximum length of a message: a path, a key, a value, and a sentence.
MAX_MESSAGE = 700

# The parts of a span by their paths: an attribute, or an attribute, an index and an attribute.
PARTS = {
    "": Any,
    "context": CONTEXT,
    "parent": CONTEXT,
    "status": Status(),
    "resource": Resource({"service.name": "x"}),
    "instrumentation_scope": InstrumentationScope("library"),
    "events": SpanEvent("event", 1, {"key": "value"}),
    "links": SpanLink(CONTEXT, {"key": "value"}),
}
MISSING = object()


class Loose(SimpleNamespace):
    """Attributes whose ``repr`` does not visit their values."""

    def __repr__(self) -> str:
        return "<Loose>"


def loose(record: Any) -> Loose:
    """An object with a record's attributes, which can be set to any value."""
    return Loose(**{field.name: getattr(record, field.name) for field in attrs.fields(type(record))})


def loose_span() -> Loose:
    span = Loose(**vars(span_like()))
    for name, record in PARTS.items():
        if name:
            setattr(span, name, [loose(record)] if name in ("events", "links") else loose(record))
    return span


PLACES = [
    (part, name) for part, record in PARTS.items() for name in (vars(loose_span()) if not part else vars(loose(record)))
]
ATTRIBUTES = [place for place in PLACES if place[1] == "attributes"]


@pytest.fixture(autouse=True)
def _small_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the size limit: some garbage grows up to it, which takes seconds with the real one."""
    monkeypatch.setattr(attributes, "_MAX_CONTAINER_SIZE", 4 * 1024)


@st.composite
def spoilt_spans(draw: st.DrawFn) -> Boxed:
    """A valid span with garbage, or nothing, in one to three places."""
    span, spoilt = loose_span(), []
    # Attributes are drawn more often, as most garbage is valid there.
    places = st.sampled_from(ATTRIBUTES) | st.sampled_from(PLACES)
    for part, name in draw(st.lists(places, min_size=1, max_size=3, unique=True)):
        owner = getattr(span, part, None) if part else span
        # Check the exact type, as it may be garbage by now, with methods that raise.
        owner = owner[0] if type(owner) is list and owner else owner
        if type(owner) is not Loose or not hasattr(owner, name):
            continue
        value = MISSING if draw(st.integers(0, 9)) == 0 else draw(st.one_of(GARBAGE, VALUES))
        if value is not MISSING and name == "attributes" and draw(st.integers(0, 3)):
            value = {"fine": 1, "bad": value, "lone \udfff": "lone \ud800"}
        spoilt.append(f"{part}.{name}: {type(value).__name__}")
        if value is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    return Boxed(span, ", ".join(spoilt))


BOXED_GARBAGE = GARBAGE.map(lambda thing: Boxed(thing, type(thing).__name__))
ANYTHING = st.integers(0, 9).flatmap(lambda choice: spoilt_spans() if choice else BOXED_GARBAGE)


def encoded_or_refused(encoder: SpanEncoder, thing: object) -> EncodedSpan | None:
    """Encode ``thing``; fail on any exception except the documented one, or if its message cannot be printed."""
    try:
        return encoder.encode(thing)  # type: ignore[arg-type]  # things that are no spans are tried too
    except InvalidSpanError as error:
        assert 0 < len(str(error)) <= MAX_MESSAGE
        return None


@fuzz(250)
@given(ANYTHING)
def test_any_span_is_encoded_readably_or_refused(thing: Boxed) -> None:
    encoded = encoded_or_refused(SpanEncoder(), thing.content)
    if encoded is not None:
        message = encoded.to_message()
        assert len(message.trace_id) == 16
        assert len(message.span_id) == 8
        batch = SpanBatch("here", [encoded])
        assert batch.size == len(batch.to_request())
        (resource_spans,) = batch.to_message().resource_spans
        (scope_spans,) = resource_spans.scope_spans
        assert scope_spans.spans[0].span_id == message.span_id


@fuzz(40)
@given(st.lists(ANYTHING, min_size=1, max_size=4))
def test_refused_spans_do_not_change_the_encoding_of_good_spans(things: list[Boxed]) -> None:
    good = make_span(attributes={"http.method": "GET", "key": 1, "fine": 2}, resource=Resource({"key": "x"}))
    expected = SpanEncoder().encode(good)
    encoder = SpanEncoder()
    for thing in things:
        encoded_or_refused(encoder, thing.content)
    encoded = encoder.encode(good)
    assert (encoded.payload, encoded.headers) == (expected.payload, expected.headers)


LOCATIONS = st.one_of(st.just(Boxed("here", "here")), BOXED_GARBAGE)


@fuzz(25)
@given(st.lists(st.tuples(LOCATIONS, ANYTHING), min_size=1, max_size=8))
def test_a_batcher_accepts_what_it_can_send_and_refuses_the_rest(things: list[tuple[Boxed, Boxed]]) -> None:
    async def play() -> None:
        exporter = InMemoryExporter()
        accepted = 0
        async with SpanBatcher(exporter, batch=BatchPolicy(max_spans=3)) as batcher:
            for location, thing in things:
                try:
                    batcher.add_span_nowait(location.content, thing.content)
                except (InvalidSpanError, InvalidLocationError) as error:
                    assert len(str(error)) <= MAX_MESSAGE
                else:
                    accepted += 1
                assert batcher.statistics().accepted == accepted
        assert batcher.statistics().delivered == accepted
        assert sum(len(batch.spans) for batch in exporter.batches) == accepted

    with nothing_logged():
        trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


@fuzz(3, shrink=False)
@given(st.lists(ANYTHING, min_size=3, max_size=8))
def test_an_encoder_holds_no_more_after_more_of_the_same_garbage(things: list[Boxed]) -> None:
    encoder = SpanEncoder()

    def run() -> None:
        for thing in things:
            encoded_or_refused(encoder, thing.content)

    assert_no_growth(run)


@pytest.mark.long
def test_an_encoder_holds_no_more_after_100_000_resources_scopes_and_keys_than_after_6_000() -> None:
    encoder, span = SpanEncoder(), span_like()
    for number in range(100_000):
        if number == 6_000:
            gc.collect()
            before = sys.getallocatedblocks()
        text = f"number {number}"
        span.attributes = {text: number}
        span.resource = SimpleNamespace(attributes=MappingProxyType({"service.instance.id": text}), schema_url=None)
        span.instrumentation_scope = SimpleNamespace(name=text, version=None, attributes=None, schema_url=None)
        encoder.encode(span)
    gc.collect()
    # The cache of keys is emptied when it is full, and has up to 4,096 keys with two blocks each at other times.
    assert sys.getallocatedblocks() - before < 20_000
