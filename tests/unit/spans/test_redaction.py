"""``SpanBatcher(redact=..., max_attribute_bytes=...)``, for `Span` and for OpenTelemetry's ``ReadableSpan``."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource as OTelResource
from opentelemetry.sdk.trace import TracerProvider

import trio_spanbatch
from tests.support.span_strategies import SPANS
from tests.tracing.support import attributes
from trio_spanbatch import (
    DROP,
    EncodedSpan,
    InstrumentationScope,
    InvalidSpanError,
    Loss,
    Refused,
    Resource,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanContext,
    SpanEvent,
    SpanLink,
    Status,
    StatusCode,
)
from trio_spanbatch._arguments import encoder_for
from trio_spanbatch._reporting.log import Log
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter

Redact = Callable[[str, Any], Any]


def span(**options: Any) -> Span:
    return Span(**{"name": "work", "context": SpanContext(1, 2), "start_time": 1, "end_time": 2, **options})


async def sent(given: Any, **options: Any) -> tuple[SpanBatch, SpanBatcher]:
    """Return the batch that is sent for a span."""
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, **options) as batcher:
        batcher.add_span_nowait("a", given)
    (batch,) = exporter.batches
    return batch, batcher


async def sent_attributes(values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    batch, _ = await sent(span(attributes=values), **options)
    return attributes(batch.spans[0].to_message().attributes)


def noting(seen: list[str]) -> Redact:
    """Return a function that changes nothing and notes the keys."""

    def redact(key: str, value: Any) -> Any:
        seen.append(key)
        return value

    return redact


def everything() -> Span:
    """Return a span with a secret in each place that can be redacted."""
    return span(
        name="secret",
        attributes={"a": "secret"},
        events=[SpanEvent("secret", 1, {"b": "secret"})],
        links=[SpanLink(SpanContext(3, 4), {"c": "secret"})],
        status=Status(StatusCode.ERROR, "secret"),
        resource=Resource({"d": "secret"}),
        instrumentation_scope=InstrumentationScope("scope", attributes={"e": "secret"}),
    )


KEYS = {"a", "b", "c", "d", "e", "span.name", "event.name", "status.message"}


def of_opentelemetry(_name: str = "") -> Any:
    """Return the same as a span of the SDK."""
    provider = TracerProvider(resource=OTelResource({"d": "secret"}), shutdown_on_exit=False)
    tracer = provider.get_tracer("scope", attributes={"e": "secret"})
    link = trace.Link(trace.SpanContext(3, 4, is_remote=False), {"c": "secret"})
    made = tracer.start_span("secret", attributes={"a": "secret"}, links=[link])
    made.add_event("secret", {"b": "secret"})
    made.set_status(trace.StatusCode.ERROR, "secret")
    made.end()
    return made


@pytest.mark.parametrize("make", [everything, of_opentelemetry], ids=["Span", "ReadableSpan"])
async def test_redact_sees_every_attribute_name_and_message_before_it_is_sent(make: Callable[[], Any]) -> None:
    seen: dict[str, Any] = {}

    def redact(key: str, value: Any) -> Any:
        seen[key] = value
        return "hidden"

    batch, _ = await sent(make(), redact=redact)
    assert seen == dict.fromkeys(KEYS, "secret")
    assert b"secret" not in batch.to_request()
    assert batch.to_request().count(b"hidden") == len(KEYS)


@pytest.mark.parametrize("make", [everything, of_opentelemetry], ids=["Span", "ReadableSpan"])
async def test_what_is_dropped_is_counted_as_absent_and_a_name_is_sent_empty(make: Callable[[], Any]) -> None:
    batch, _ = await sent(make(), redact=lambda _key, _value: DROP)
    message = batch.to_message().resource_spans[0]
    (one,) = message.scope_spans[0].spans
    assert b"secret" not in batch.to_request()
    assert (one.name, one.events[0].name, one.status.message) == ("", "", "")
    assert one.status.code == one.status.STATUS_CODE_ERROR
    counts: list[Any] = [one, one.events[0], one.links[0], message.resource, message.scope_spans[0].scope]
    assert [each.dropped_attributes_count for each in counts] == [1] * 5


@pytest.mark.parametrize("make", [everything, of_opentelemetry], ids=["Span", "ReadableSpan"])
async def test_what_redact_fails_on_is_not_sent_and_not_logged(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def redact(_key: str, value: Any) -> Any:
        raise ValueError(f"cannot redact {value}")

    with caplog.at_level(logging.DEBUG):
        batch, _ = await sent(make(), redact=redact)
    assert b"secret" not in batch.to_request()
    assert batch.spans[0].to_message().dropped_attributes_count == 1
    messages = [record.getMessage() for record in caplog.records if record.name == "trio_spanbatch"]
    assert [record.levelno for record in caplog.records if "redact" in record.getMessage()] == [logging.ERROR]
    assert messages[0].startswith("SpanBatcher: redact raised ValueError for the key 'span.name' (")
    assert __file__ in messages[0]
    assert "secret" not in caplog.text


class Url:
    def __str__(self) -> str:
        return "https://secret"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "harmless"


class Color(Enum):
    RED = "secret"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("secret", "secret"),
        (Text("secret"), "secret"),
        (Url(), "https://secret"),
        (ValueError("secret"), "secret"),
        (Color.RED, "Color.RED"),
        (b"secret", b"secret"),
        (bytearray(b"secret"), b"secret"),
        (memoryview(b"secret"), b"secret"),
        (True, True),
        (5, 5),
        (0.5, 0.5),
        (None, None),
        ((1, "secret"), [1, "secret"]),
        ({"a": Url(), 5: ["b", {"c": Url()}]}, {"a": "https://secret", "5": ["b", {"c": "https://secret"}]}),
        (MappingProxyType({"a": Text("secret")}), {"a": "secret"}),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_redact_gets_a_value_as_it_would_be_sent(value: Any, plain: Any) -> None:
    seen: list[Any] = []

    def redact(key: str, value: Any) -> Any:
        if key == "key":
            seen.append(value)
        return value

    assert await sent_attributes({"key": value}, redact=redact) == {"key": plain}
    assert seen == [plain]
    assert type(seen[0]) is type(plain)


async def test_redact_may_return_anything_that_can_be_an_attribute() -> None:
    given: dict[str, Any] = {"none": None, "list": [1, {"a": (2, 3)}], "object": Url(), "number": 7}
    found = await sent_attributes(dict.fromkeys(given, "x"), redact=lambda key, value: given.get(key, value))
    assert found == {"none": None, "list": [1, {"a": [2, 3]}], "object": "https://secret", "number": 7}


async def test_redact_may_drop_items_of_lists_and_mappings() -> None:
    def redact(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: redact(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [redact("", item) for item in value]
        return DROP if value == "secret" else value

    given = {"a": {"b": "secret", "c": 1, "d": ["secret", {"e": "secret"}, 2]}}
    assert await sent_attributes(given, redact=redact) == {"a": {"c": 1, "d": [{}, 2]}}


async def test_a_value_that_redact_changes_in_place_stays_as_it_was_in_the_program() -> None:
    messages = [{"content": "secret"}]

    def redact(key: str, value: Any) -> Any:
        if key == "messages":
            value[0]["content"] = "hidden"
        return value

    assert await sent_attributes({"messages": messages}, redact=redact) == {"messages": [{"content": "hidden"}]}
    assert messages == [{"content": "secret"}]


async def test_a_value_that_cannot_be_sent_is_counted_and_redact_does_not_see_it() -> None:
    nested: list[Any] = []
    nested.append(nested)
    seen: list[str] = []
    batch, _ = await sent(span(attributes={"a": nested, "b": 1}), redact=noting(seen))
    message = batch.spans[0].to_message()
    assert (attributes(message.attributes), message.dropped_attributes_count) == ({"b": 1}, 1)
    assert "a" not in seen


async def test_page_of_aliases_does_not_exhaust_memory() -> None:
    value: list[Any] = ["x"] * 10
    for _ in range(40):
        value = [value, value]
    assert await sent_attributes({"a": value, "b": 1}, redact=lambda _key, value: value) == {"b": 1}


async def test_attributes_that_can_only_be_read_in_part_are_redacted() -> None:
    class Broken(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            if key == "bad":
                raise RuntimeError
            return "secret"

        def __iter__(self) -> Any:
            return iter(["good", "bad"])

        def __len__(self) -> int:
            return 2

    batch, _ = await sent(span(attributes=Broken()), redact=lambda _key, _value: "hidden")
    message = batch.spans[0].to_message()
    assert (attributes(message.attributes), message.dropped_attributes_count) == ({"good": "hidden"}, 1)


async def test_redact_is_called_once_for_a_resource_and_scope_that_spans_share() -> None:
    seen: list[str] = []
    resource, scope = Resource({"d": "secret"}), InstrumentationScope("scope", attributes={"e": "secret"})
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, redact=noting(seen)) as batcher:
        for _ in range(10):
            batcher.add_span_nowait("a", span(resource=resource, instrumentation_scope=scope))
    assert (seen.count("d"), seen.count("e"), seen.count("span.name")) == (1, 1, 10)


async def test_the_resource_of_the_environment_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "owner=secret")
    batch, _ = await sent(span(), redact=lambda key, value: DROP if key == "owner" else value)
    assert b"secret" not in batch.to_request()


async def test_spans_that_opentelemetry_ends_in_other_threads_are_redacted() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, redact=lambda _key, _value: "hidden") as batcher:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatcherSpanProcessor(batcher))
        tracer = provider.get_tracer("tests")
        thread = threading.Thread(target=lambda: tracer.start_span("secret", attributes={"a": "secret"}).end())
        thread.start()
        thread.join()
    assert [one.to_message().name for one in exporter.delivered["default"]] == ["hidden"]


async def test_what_is_told_to_on_loss_is_redacted_and_can_be_added_again() -> None:
    losses: list[Loss] = []
    calls: list[str] = []

    def redact(key: str, value: Any) -> Any:
        calls.append(key)
        return f"hidden {value == 'secret'}"

    refusing = InMemoryExporter([Refused("no")])
    async with SpanBatcher(refusing, redact=redact, on_loss=losses.append) as batcher:
        batcher.add_span_nowait("a", everything())
    assert b"secret" not in losses[0].batch.to_request()
    before = len(calls)
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, redact=redact) as batcher:
        await batcher.add_spans("a", losses[0].batch.spans)
    assert exporter.batches[0].to_request() == losses[0].batch.to_request()
    assert len(calls) == before


async def test_an_encoded_span_that_was_not_redacted_is_refused() -> None:
    encoded = SpanEncoder().encode(everything())
    async with SpanBatcher(InMemoryExporter(), redact=lambda _key, value: value) as batcher:
        with pytest.raises(InvalidSpanError, match="already encoded, so redact cannot be applied to it"):
            batcher.add_span_nowait("a", encoded)
        with pytest.raises(InvalidSpanError, match="already encoded"):
            await batcher.add_spans("a", [EncodedSpan(encoded.payload)])
    assert batcher.statistics().accepted == 0


async def test_an_exception_that_ends_the_program_passes_through_redact() -> None:
    def redact(_key: str, _value: Any) -> Any:
        raise SystemExit(3)

    async with SpanBatcher(InMemoryExporter(), redact=redact) as batcher:
        with pytest.raises(SystemExit):
            batcher.add_span_nowait("a", span())
    assert batcher.statistics().accepted == 0


@given(SPANS)
def test_a_function_that_changes_nothing_changes_nothing(span: Span) -> None:
    plain = SpanEncoder().encode(span)
    encoded = encoder_for(lambda _key, value: value, None, Log(logging.getLogger())).encode(span)
    assert (encoded.payload, encoded.headers) == (plain.payload, plain.headers)


@given(SPANS, st.integers(30, 200))
def test_nothing_is_larger_than_the_limit_and_the_rest_is_as_it_was(span: Span, limit: int) -> None:
    plain = SpanEncoder().encode(span).to_message()
    cut = encoder_for(None, limit, Log(logging.getLogger())).encode(span).to_message()
    assert [pair.key for pair in cut.attributes] == [pair.key for pair in plain.attributes]
    for pair, before in zip(cut.attributes, plain.attributes, strict=True):
        assert pair.value == before.value or pair.value.ByteSize() <= limit + 8


# -- cutting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "cut"),
    [
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 31 + "... [cut, 51 bytes]"),
        ("x" * 1_234_567, "x" * 24 + "... [cut, 1,234,567 bytes]"),
        ("é" * 25, "é" * 25),
        ("é" * 26, "é" * 15 + "... [cut, 52 bytes]"),
        ("𝄞" * 20, "𝄞" * 7 + "... [cut, 80 bytes]"),
        (b"x" * 51, b"x" * 31 + b"... [cut, 51 bytes]"),
        (10**60, "1" + "0" * 30 + "... [cut, 61 bytes]"),
        ([1, 2, 3], [1, 2, 3]),
        (12, 12),
        (None, None),
    ],
    ids=str,
)
async def test_a_value_is_cut_between_characters_and_says_its_size(value: Any, cut: Any) -> None:
    batch, batcher = await sent(span(attributes={"a": value}), max_attribute_bytes=50)
    message = batch.spans[0].to_message()
    assert attributes(message.attributes) == {"a": cut}
    assert batcher.statistics().cut == (value != cut)
    # That is for absent attributes.
    assert message.dropped_attributes_count == 0


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "word " * 500}, {"role": "tool"}]


async def test_a_nested_value_is_cut_inside_so_that_the_whole_is_no_larger() -> None:
    batch, batcher = await sent(span(attributes={"messages": MESSAGES}), max_attribute_bytes=400)
    (pair,) = batch.spans[0].to_message().attributes
    assert 300 < pair.value.ByteSize() <= 400
    first, second, marker = attributes([pair])["messages"]
    assert first == MESSAGES[0]
    assert second["role"] == "user"
    assert second["content"].startswith("word word")
    assert second["content"].endswith("... [cut, 2,500 bytes]")
    assert marker.startswith("... [cut, 2,")
    # However much of it was cut.
    assert batcher.statistics().cut == 1


@pytest.mark.parametrize("limit", [64, 100, 1000, 5000])
@pytest.mark.parametrize(
    "value",
    [
        list(range(10_000)),
        ["word"] * 5000,
        {f"key {number}": number for number in range(5000)},
        {"a": {"b": {"c": ["x" * 10_000, "y" * 10_000]}}},
        [[[["é" * 10_000]]]],
        {"k" * 10_000: 1},
        [10**50] * 1000,
    ],
    ids=range(7),
)
async def test_no_value_is_larger_than_the_limit(value: Any, limit: int) -> None:
    batch, batcher = await sent(span(attributes={"a": value}), max_attribute_bytes=limit)
    (pair,) = batch.spans[0].to_message().attributes
    assert pair.value.ByteSize() <= limit
    assert b"... [cut, " in batch.to_request()
    assert batcher.statistics().cut == 1


@pytest.mark.parametrize("make", [everything, of_opentelemetry], ids=["Span", "ReadableSpan"])
async def test_everything_that_redact_sees_is_cut_after_it(make: Callable[[], Any]) -> None:
    batch, batcher = await sent(make(), redact=lambda _key, value: value * 100, max_attribute_bytes=100)
    assert batch.to_request().count(b"secret... [cut, 600 bytes]"[6:]) == len(KEYS)
    assert batcher.statistics().cut == len(KEYS)


async def test_a_limit_below_the_marker_leaves_the_marker() -> None:
    assert await sent_attributes({"a": "x" * 100}, max_attribute_bytes=1) == {"a": "... [cut, 100 bytes]"}


async def test_without_redact_an_encoded_span_is_taken_as_it_is() -> None:
    encoded = SpanEncoder().encode(span(attributes={"a": "x" * 100}))
    batch, batcher = await sent(encoded, max_attribute_bytes=10)
    assert batch.spans == (encoded,)
    assert batcher.statistics().cut == 0


# -- mistakes ------------------------------------------------------------------------------------------------------


async def asynchronous(_key: str, value: Any) -> Any:  # noqa: ASYNC124  # its kind matters
    return value


class AsynchronousObject:
    async def __call__(self, _key: str, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"redact": 5}, TypeError, "redact is 5; it must be a function"),
        ({"redact": asynchronous}, TypeError, "which is async; it must be a synchronous function"),
        ({"redact": functools.partial(asynchronous)}, TypeError, "which is async; it must be a synchronous function"),
        ({"redact": lambda value: value}, TypeError, "it must be a function of two arguments, a key and a value"),
        ({"max_attribute_bytes": "5"}, TypeError, "max_attribute_bytes is '5'; it must be an int, or None"),
        ({"max_attribute_bytes": True}, TypeError, "max_attribute_bytes is True; it must be an int, or None"),
        ({"max_attribute_bytes": 1.5}, TypeError, "max_attribute_bytes is 1.5; it must be an int, or None"),
        ({"max_attribute_bytes": 0}, ValueError, "max_attribute_bytes is 0; it must be at least 1, or None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_when_the_batcher_is_made(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        SpanBatcher(InMemoryExporter(), **options)


def test_a_builtin_function_without_a_signature_is_accepted() -> None:
    SpanBatcher(InMemoryExporter(), redact=max)


async def test_what_an_async_object_returns_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    assert await sent_attributes({"a": "secret"}, redact=AsynchronousObject()) == {}
    assert "redact raised TypeError" in caplog.text


def test_drop_is_shown_by_its_name() -> None:
    assert repr(DROP) == "DROP"
    assert trio_spanbatch.DROP is DROP
