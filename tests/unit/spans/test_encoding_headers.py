"""Resources and scopes: encoded once, never stale, never mixed up."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from collections import UserDict
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from tests.support.processes import DEADLINE
from tests.unit.spans import expected_messages as expected
from tests.unit.spans.support import encode, make_span
from trio_spanbatch._spans.batch import EncodedSpan, SpanHeaders
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import InstrumentationScope, Resource


def resource_of(encoded: EncodedSpan) -> Any:
    return ResourceSpans.FromString(encoded.headers.resource).resource


def test_spans_without_a_resource_get_the_default_one() -> None:
    own, default = Resource({"service.name": "own"}), Resource({"service.name": "default"}, "https://schema")
    encoder = SpanEncoder(default)
    assert (
        encoder.encode(make_span()).headers.resource
        == SpanEncoder().encode(make_span(resource=default)).headers.resource
    )
    assert resource_of(encoder.encode(make_span(resource=own))).attributes[0].value.string_value == "own"


def test_an_empty_resource_or_scope_is_sent_but_none_is_not() -> None:
    empty = encode(resource=Resource(), instrumentation_scope=InstrumentationScope(""))
    assert ResourceSpans.FromString(empty.headers.resource).HasField("resource")
    assert ScopeSpans.FromString(empty.headers.scope).HasField("scope")
    assert encode().headers == SpanHeaders(b"", b"")


def test_equal_resources_and_scopes_have_the_same_bytes_object() -> None:
    encoder = SpanEncoder()
    resources = [Resource({"service.name": "x", "numbers": [1]}) for _ in range(3)]
    scopes = [InstrumentationScope("x", attributes={"numbers": [1]}) for _ in range(3)]
    encoded = [
        encoder.encode(make_span(resource=resource, instrumentation_scope=scope))
        for resource, scope in itertools.product(resources, scopes)
    ]
    assert len({id(span.headers.resource) for span in encoded}) == 1
    assert len({id(span.headers.scope) for span in encoded}) == 1


class CountingResource:
    """A resource that counts how often it was read."""

    schema_url = ""

    def __init__(self, attributes: Any) -> None:
        self._attributes = attributes
        self.reads = 0

    @property
    def attributes(self) -> Any:
        self.reads += 1
        return self._attributes


@pytest.mark.parametrize(
    "attributes",
    [None, MappingProxyType({"a": 1, "b": (1, ("x", None)), "c": MappingProxyType({"d": b"x"})})],
    ids=["none", "constant"],
)
def test_a_resource_that_cannot_change_is_read_once(attributes: Any) -> None:
    resource, encoder = CountingResource(attributes), SpanEncoder()
    other = CountingResource(MappingProxyType({"other": 1}))
    for _ in range(3):
        encoder.encode(make_span(resource=resource))
        encoder.encode(make_span(resource=other))
    assert (resource.reads, other.reads) == (1, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: {"key": value},
        lambda value: UserDict(key=value),
        lambda value: MappingProxyType({"key": [value]}),
        lambda value: MappingProxyType({"key": (1, [value])}),
        lambda value: MappingProxyType({"key": MappingProxyType({"k": [value]})}),
    ],
)
def test_a_change_to_a_mutable_resource_is_seen(wrap: Any) -> None:
    resource = CountingResource(wrap("before"))
    encoder = SpanEncoder()
    assert resource_of(encoder.encode(make_span(resource=resource))).attributes == expected.attributes(wrap("before"))
    resource._attributes = wrap("after")
    assert resource_of(encoder.encode(make_span(resource=resource))).attributes == expected.attributes(wrap("after"))


def test_more_resources_than_the_cache_holds_are_never_mixed_up() -> None:
    encoder = SpanEncoder()
    kept = [Resource({"number": number}) for number in range(1500)]
    for number, resource in [*enumerate(kept), *enumerate(kept)]:
        header = resource_of(encoder.encode(make_span(resource=resource)))
        assert header.attributes[0].value.int_value == number
    # The ids of short-lived objects would be reused if the encoder did not keep the objects.
    for number in range(3000):
        header = resource_of(encoder.encode(make_span(resource=Resource({"number": number}))))
        assert header.attributes[0].value.int_value == number
    gc.collect()
    alive = sum(isinstance(thing, Resource) for thing in gc.get_objects()) - len(kept)
    assert alive <= 1100


@pytest.mark.parametrize("attributes", [{}, {"numbers": [1]}], ids=["constant", "mutable"])
def test_spans_of_one_large_resource_share_its_headers(attributes: dict[str, Any]) -> None:
    encoder = SpanEncoder()
    large = Resource({"text": "x" * 1_000_000, **attributes})
    scopes = [InstrumentationScope(name) for name in "ab"]
    spans = [
        encoder.encode(make_span(resource=large, instrumentation_scope=scope)) for _ in range(20) for scope in scopes
    ]
    assert len({id(span.headers) for span in spans}) == 2
    assert len({id(span.headers.resource) for span in spans}) == 1


def test_a_large_resource_that_cannot_change_is_read_once() -> None:
    resource, encoder = CountingResource(MappingProxyType({"text": "x" * 1_000_000})), SpanEncoder()
    for _ in range(3):
        encoder.encode(make_span(resource=resource))
    assert resource.reads == 1


def test_new_but_equal_resources_share_one_headers_object() -> None:
    encoder = SpanEncoder()
    spans = [encoder.encode(make_span(resource=Resource({"service.name": "x"}))) for _ in range(3000)]
    spans += [encoder.encode(make_span(resource=Resource({"service.name": "x", "no": [1]}))) for _ in range(3000)]
    assert len({id(span.headers) for span in spans}) == 2


def test_headers_over_2_mib_are_encoded_but_not_kept() -> None:
    encoder = SpanEncoder()
    large = Resource({"text": "x" * 2_100_000})
    first, second = (encoder.encode(make_span(resource=large)) for _ in range(2))
    assert first.headers.resource == second.headers.resource
    assert first.headers.resource is not second.headers.resource


def test_the_encoder_needs_no_opentelemetry_sdk() -> None:
    program = """
import sys
for name in ("opentelemetry.sdk", "opentelemetry.trace", "opentelemetry.attributes"):
    sys.modules[name] = None
from trio_spanbatch._spans.records import Span, SpanContext
from trio_spanbatch._spans.encoder import SpanEncoder
SpanEncoder().encode(Span("x", SpanContext(1, 2), start_time=1, end_time=2, attributes={"a": [1]}))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE)
