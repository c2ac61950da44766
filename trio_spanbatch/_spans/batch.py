"""Encoded spans, and batches of them.

An OTLP request has three levels of envelopes around spans::

    ExportTraceServiceRequest { resource_spans: [ ResourceSpans { resource, schema_url,
        scope_spans: [ ScopeSpans { scope, schema_url, spans: [ Span, ... ] } ] } ] }

Each span is encoded once, when it is added, and refers to the encoded resource and scope: one `SpanHeaders` object for
all spans that share them. A request is then made by joining bytes: spans are grouped by equal headers, and each
envelope's length is written in front. The size of the request is known at any time (`RequestSizer`), so that
``max_bytes`` is exact, envelopes included.

In the byte budgets, a pending span counts as its own bytes, plus those of its resource and scope unless the span before
it in its location has the same ones: spans with the same resource and scope nearly always follow each
other, and share them in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .._values import plain_location
from .checks import check_spans
from .wire import TABLE_SIZE, VARINTS, varint, varint_size

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


def cost_after(headers: SpanHeaders | None, span: EncodedSpan) -> int:
    """Return how many bytes ``span`` counts as after a span with ``headers``; None: as the first span."""
    size = len(span.payload)
    return size if span.headers is headers else size + span.headers.size


def cost_of(spans: Iterable[EncodedSpan], headers: SpanHeaders | None = None) -> int:
    """Return how many bytes consecutive ``spans`` count as after a span with ``headers``."""
    cost = 0
    for span in spans:
        cost += cost_after(headers, span)
        headers = span.headers
    return cost


def cost_of_headers(runs: Iterable[SpanHeaders], headers: SpanHeaders | None = None) -> int:
    """Return the bytes that the headers of consecutive runs of spans cost after a span with ``headers``."""
    cost = 0
    for run in runs:
        cost += 0 if run is headers else run.size
        headers = run
    return cost


# Field 1 (resource_spans) of ExportTraceServiceRequest, field 2 (scope_spans) of ResourceSpans and field 2 (spans)
# of ScopeSpans, each length-delimited: number << 3 | 2.
_RESOURCE_SPANS_TAG = b"\x0a"
_SCOPE_SPANS_TAG = b"\x12"
_SPAN_TAG = b"\x12"

# A span's tag and length, by the length. Nearly all spans are short enough for this table.
_FRAMES = tuple(_SPAN_TAG + length for length in VARINTS)


@attrs.frozen(weakref_slot=False)
class SpanHeaders:
    """The resource and scope that spans share, encoded."""

    resource: bytes = b""  # the fields ``resource`` and ``schema_url`` of ResourceSpans
    scope: bytes = b""  # the fields ``scope`` and ``schema_url`` of ScopeSpans
    is_redacted: bool = attrs.field(default=False, eq=False)  # whether their spans went through ``redact``

    @property
    def size(self) -> int:
        return len(self.resource) + len(self.scope)


_NO_HEADERS = SpanHeaders()


@attrs.frozen(repr=False, weakref_slot=False)
class EncodedSpan:
    """An encoded span. It can be added to a batcher like any other span.

    A queue holds only the bytes of its spans, so a batch has another, equal object in place of the one that was added.
    """

    # The fields of the span's message, without the tag and length of the message.
    payload: bytes
    headers: SpanHeaders = _NO_HEADERS

    @property
    def size(self) -> int:
        """The size of the span's own message in bytes, without the resource and scope that it shares."""
        return len(self.payload)

    def to_message(self) -> SpanMessage:
        """Return the span as opentelemetry-proto's ``Span`` message, without its resource and scope."""
        from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

        return SpanMessage.FromString(self.payload)

    def __repr__(self) -> str:
        return f"<EncodedSpan of {self.size} bytes>"


# Consecutive spans with the same headers, and their bytes.
Runs: TypeAlias = list[tuple[SpanHeaders, list[bytes]]]


@attrs.frozen(eq=False)
class SpansInRuns(Sequence[EncodedSpan]):
    """Spans of which only the bytes are needed, by a store that knows this class. For others it makes them."""

    runs: Runs

    def __len__(self) -> int:
        return sum(len(payloads) for _, payloads in self.runs)

    def __iter__(self) -> Iterator[EncodedSpan]:
        return (EncodedSpan(payload, headers) for headers, payloads in self.runs for payload in payloads)

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]


def _as_tuple(spans: Iterable[EncodedSpan]) -> tuple[EncodedSpan, ...]:
    check_spans(spans)
    spans = tuple(spans)
    for place, span in enumerate(spans):
        if not isinstance(span, EncodedSpan):
            raise TypeError(f"spans[{place}] is of type {type(span).__name__}; it must be an EncodedSpan")
    return spans


@attrs.frozen(eq=False, repr=False)
class SpanBatch:
    """Spans of one location that are sent in one request.

    Attributes:
        location: The location of the spans.
        spans: The spans, in the order in which they were accepted.
        size: The exact size of the request in bytes, before compression.
    """

    location: str = attrs.field(converter=plain_location)
    spans: tuple[EncodedSpan, ...] = attrs.field(converter=_as_tuple)
    size: int = attrs.field(kw_only=True)
    # Of a sealed batch: its spans in order, as runs with the same headers.
    _runs: Runs | None = attrs.field(default=None, init=False)

    @size.default
    def _measure(self) -> int:
        return request_size(self.spans)

    @classmethod
    def sealed(cls, location: str, runs: Runs, size: int) -> SpanBatch:
        """Return a batch of spans out of a queue, which holds only their bytes.

        Most exporters need only the request, so ``spans`` is made when it is first read.
        """
        batch = cls.__new__(cls)
        object.__setattr__(batch, "location", location)
        object.__setattr__(batch, "size", size)
        object.__setattr__(batch, "_runs", runs)
        return batch

    def spans_in_runs(self) -> SpansInRuns:
        """Return the spans without making an object for each."""
        return SpansInRuns(runs_of_spans(self.spans) if self._runs is None else self._runs)

    @classmethod
    def joined(cls, batches: Sequence[SpanBatch]) -> SpanBatch:
        """Return the spans of several batches of a location as one."""
        runs: Runs = []
        sizer = RequestSizer(sys.maxsize)
        for batch in batches:
            for headers, payloads in batch.spans_in_runs().runs:
                if runs and runs[-1][0] is headers:
                    runs[-1][1].extend(payloads)
                else:
                    runs.append((headers, payloads.copy()))
        for headers, payloads in runs:
            sizer.add_run(headers, payloads)
        return cls.sealed(batches[0].location, runs, sizer.size)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name != "spans":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            spans = tuple(EncodedSpan(payload, headers) for headers, payloads in self._runs for payload in payloads)
            object.__setattr__(self, "spans", spans)
            return spans

    def to_request(self) -> bytes:
        """Return the body of the request: an ``ExportTraceServiceRequest``, encoded."""
        # One join at the end rather than one per envelope, each of which would copy the whole request again.
        parts: list[bytes] = []
        for resource, scopes in _by_resource_and_scope(self.spans_in_runs().runs).items():
            content: list[bytes] = []
            for scope, payloads in scopes.items():
                content += _enveloped(_SCOPE_SPANS_TAG, scope, _framed(payloads))
            parts += _enveloped(_RESOURCE_SPANS_TAG, resource, content)
        return b"".join(parts)

    def to_message(self) -> ExportTraceServiceRequest:
        """Return the request as opentelemetry-proto's ``ExportTraceServiceRequest`` message."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return ExportTraceServiceRequest.FromString(self.to_request())

    @classmethod
    def from_request(cls, location: str, data: bytes) -> SpanBatch:
        """Return a batch of the spans in an encoded ``ExportTraceServiceRequest``, such as `to_request` returns.

        Each span's bytes stay as they are. Several requests in a row are one request, as protobuf has it.

        Raises:
            InvalidSpanError: ``data`` is something else. The message has the place of the first bad byte.
        """
        from .requests import scopes_of_request

        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data is of type {type(data).__name__}; it must be the bytes of a request")
        spans: list[EncodedSpan] = []
        known: dict[SpanHeaders, SpanHeaders] = {}
        for resource, scope, payloads in scopes_of_request(bytes(data)):
            headers = SpanHeaders(resource, scope)
            headers = known.setdefault(headers, headers)
            spans += [EncodedSpan(payload, headers) for payload in payloads]
        return cls(location, spans)

    def split(self) -> tuple[SpanBatch, SpanBatch]:
        """Return the first and the second half of the batch, each in order.

        Raises:
            ValueError: The batch has fewer than two spans.
        """
        if len(self.spans) < 2:
            raise ValueError(f"a batch of {len(self.spans)} spans cannot be split; it must have at least 2")
        middle = len(self.spans) // 2
        return SpanBatch(self.location, self.spans[:middle]), SpanBatch(self.location, self.spans[middle:])

    def __repr__(self) -> str:
        return f"<SpanBatch {self.location!r}: {len(self.spans)} spans, {self.size} bytes>"


def runs_of_spans(spans: Iterable[EncodedSpan]) -> Runs:
    """Return the headers of spans, each with the bytes of the consecutive spans that share them."""
    if isinstance(spans, SpansInRuns):
        return spans.runs
    runs: Runs = []
    headers = None
    for span in spans:
        # Nearly always the span before has the same headers.
        if span.headers is not headers:
            headers = span.headers
            runs.append((headers, []))
        runs[-1][1].append(span.payload)
    return runs


def _by_resource_and_scope(runs: Runs) -> dict[bytes, dict[bytes, list[bytes]]]:
    resources: dict[bytes, dict[bytes, list[bytes]]] = {}
    for headers, payloads in runs:
        resources.setdefault(headers.resource, {}).setdefault(headers.scope, []).extend(payloads)
    return resources


def _framed(payloads: list[bytes]) -> list[bytes]:
    """Return the payloads as fields of ScopeSpans, each after its tag and length."""
    framed = [b""] * (2 * len(payloads))
    framed[::2] = [_FRAMES[size] if size < TABLE_SIZE else _SPAN_TAG + varint(size) for size in map(len, payloads)]
    framed[1::2] = payloads
    return framed


def _enveloped(tag: bytes, header: bytes, content: list[bytes]) -> list[bytes]:
    return [tag, varint(len(header) + sum(map(len, content))), header, *content]


def request_size(spans: Iterable[EncodedSpan]) -> int:
    """Return the exact size in bytes of a request made of ``spans``."""
    sizer = RequestSizer(sys.maxsize)
    for span in spans:
        sizer.try_add(span)
    return sizer.size


def _enveloped_size(content: int) -> int:
    return 1 + varint_size(content) + content


def _headroom(content: int) -> int:
    """Return how many bytes can be added to ``content`` bytes before the envelope's length field grows by a byte."""
    return (1 << 7 * varint_size(content)) - 1 - content


def framed_size(payload: bytes) -> int:
    """Return the size of a span's field in a request: its payload with tag and length."""
    size = len(payload)
    return size + 3 if 0x80 <= size < 0x4000 else _enveloped_size(size)


class RequestSizer:
    """The exact size of a request to which spans are added one by one, in constant time for each.

    Nearly always a span has the same resource and scope as the one before it, no length of an envelope grows by a byte,
    and the request is not full yet. So the sizer remembers the headers of the last span and the size up to which none
    of these changes. Up to it, adding a span only adds its size; the envelopes are updated when that size is reached or
    the headers change. The ``limit`` is in bytes.
    """

    __slots__ = ("_limit", "_noted", "_others", "_resource", "_scope", "headers", "simple_up_to", "size")

    def __init__(self, limit: int) -> None:
        self.size = 0  # the size of the request in bytes
        # The size up to which spans with the same headers only add their own size. Less than the limit.
        self.simple_up_to = 0
        self.headers: SpanHeaders | None = None  # the headers of the last span; None if there is none
        self._limit = limit
        # The bytes inside the envelopes of ``headers``, and the value of ``size`` when they were last updated.
        self._resource = self._scope = self._noted = 0
        # The bytes inside the other envelopes, by resource or headers; None if all spans had the same headers.
        self._others: dict[bytes | SpanHeaders, int] | None = None

    def copy_from(self, other: RequestSizer) -> None:
        """Become a copy of another one with the same limit."""
        self.size, self.simple_up_to, self.headers = other.size, other.simple_up_to, other.headers
        self._noted, self._resource, self._scope = other._noted, other._resource, other._scope
        self._others = None if other._others is None else other._others.copy()

    def try_add(self, span: EncodedSpan) -> bool:
        """Add ``span`` unless the request would then be larger than ``limit``. Return whether it was added."""
        framed = framed_size(span.payload)
        if self.size + framed <= self.simple_up_to and span.headers is self.headers:
            self.size += framed
            return True
        return self._try_add_with_envelopes(span.headers, framed, self._limit)

    def add_first(self, span: EncodedSpan) -> None:
        """Add the first span, of any size."""
        self._try_add_with_envelopes(span.headers, framed_size(span.payload), sys.maxsize)

    def add_run(self, headers: SpanHeaders, payloads: list[bytes]) -> None:
        """Add consecutive spans with the same headers, of any size."""
        self._try_add_with_envelopes(headers, sum(map(framed_size, payloads)), sys.maxsize)

    def _try_add_with_envelopes(self, headers: SpanHeaders, framed: int, limit: int) -> bool:
        added = self.size - self._noted
        self._resource, self._scope, self._noted = self._resource + added, self._scope + added, self.size
        resource, scope = self._envelopes_of(headers)
        scope_before = 0 if scope is None else _enveloped_size(scope)
        scope = (len(headers.scope) if scope is None else scope) + framed
        resource_before = 0 if resource is None else _enveloped_size(resource)
        resource = len(headers.resource) if resource is None else resource
        resource += _enveloped_size(scope) - scope_before
        size = self.size + _enveloped_size(resource) - resource_before
        if size > limit:
            return False
        if (last := self.headers) is not None and last != headers:
            self._others = self._others or {}
            self._others[last.resource], self._others[last] = self._resource, self._scope
        self._resource, self._scope = resource, scope
        self.size = self._noted = size
        self.headers = headers
        self.simple_up_to = size + min(_headroom(resource), _headroom(scope), self._limit - 1 - size)
        return True

    def _envelopes_of(self, headers: SpanHeaders) -> tuple[int | None, int | None]:
        """Return the bytes inside the envelopes of resource and scope; None for one that is not in the request yet."""
        last, others = self.headers, self._others or {}
        if last is None:
            return None, None
        resource = self._resource if headers.resource == last.resource else others.get(headers.resource)
        return resource, self._scope if headers == last else others.get(headers)
