"""``decode_json_attributes=True``: attributes that MLflow stores as JSON are sent decoded."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing
from hypothesis import strategies
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.destinations.databricks_support import TABLE
from tests.destinations.zerobus_support import setup_of, status_of
from trio_spanbatch import Delivered, EncodedSpan, SpanBatch
from trio_spanbatch.destinations.json_attributes import decoded
from trio_spanbatch.destinations.tables import UnityCatalogExporter
from trio_spanbatch.destinations.unity_catalog import unity_catalog
from trio_spanbatch.destinations.zerobus import ZerobusExporter, zerobus
from trio_spanbatch.destinations.zerobus_fallback import ZerobusFirst


def span_with(*texts: str) -> EncodedSpan:
    message = SpanMessage(trace_id=b"t" * 16, span_id=b"s" * 8, name="step")
    for number, text in enumerate(texts):
        message.attributes.add(key=f"key {number}", value=AnyValue(string_value=text))
    return EncodedSpan(message.SerializeToString())


async def sent(text: str) -> AnyValue:
    batch = await decoded(SpanBatch(TABLE, [span_with(text)]))
    (attribute,) = batch.spans[0].to_message().attributes
    assert attribute.key == "key 0"
    return attribute.value


def value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: value_of(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind)


@pytest.mark.parametrize(
    "document",
    [
        "text",
        "",
        'with "quotes" and \\ and é and \U0001f680',
        1,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        1.5,
        -0.0,
        1e300,
        True,
        False,
        None,
        [],
        {},
        [1, "two", 3.0, None, [True]],
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "empty": {}, "none": None},
    ],
    ids=repr,
)
async def test_an_attribute_that_is_json_is_decoded(document: Any) -> None:
    value = value_of(await sent(json.dumps(document)))
    assert value == document
    assert type(value) is type(document)


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "",
        "{not json}",
        '{"cut": ',
        "[1, 2",
        "NaN",
        "Infinity",
        "-Infinity",
        '{"a": NaN}',
        "[Infinity]",
        '{"a": 1, "a": 2}',
        '[{"b": {"c": 1, "c": 1}}]',
        '"\\ud800"',
        '{"\\udc00": 1}',
        "1 2",
        "01",
        "'single'",
        "None",
        "True",
        "\x00",
        "[" * 100_000,
        "[" * 60 + "]" * 60,
        '{"a":' * 40 + "1" + "}" * 40,
        json.dumps([0] * 20_000),
        json.dumps("x" * (1024 * 1024)),
        "9" * 30,
        "-" + "9" * 5000,
        "1e999",
    ],
    ids=lambda text: repr(text[:20]),
)
async def test_a_string_that_is_not_json_or_would_lose_information_stays_as_it_is(text: str) -> None:
    assert await sent(text) == AnyValue(string_value=text)


async def test_nested_numbers_without_a_64_bit_form_become_their_digits() -> None:
    text = '{"large": 123456789012345678901234567890, "huge": 1e999, "fine": 7}'
    assert value_of(await sent(text)) == {
        "large": "123456789012345678901234567890",
        "huge": "1e999",
        "fine": 7,
    }


async def test_values_nested_as_deep_as_servers_accept_are_decoded_and_the_request_parses() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deepest = 0
        for depth in range(1, 60):
            batch = await decoded(SpanBatch(TABLE, [span_with(opening * depth + "1" + closing * depth)]))
            # protobuf's own limit, for the whole request.
            (attribute,) = batch.to_message().resource_spans[0].scope_spans[0].spans[0].attributes
            if not attribute.value.HasField("string_value"):
                deepest = depth
        assert deepest == (47 if opening == "[" else 31)


async def test_only_attributes_of_spans_that_are_strings_are_decoded() -> None:
    message = SpanMessage(trace_id=b"t" * 16, span_id=b"s" * 8, name="1")
    message.attributes.add(key="bytes", value=AnyValue(bytes_value=b"1"))
    message.attributes.add(key="list").value.array_value.values.add(string_value="1")
    message.attributes.add(key="number", value=AnyValue(int_value=1))
    message.attributes.add(key="none")
    message.status.message = "1"
    message.events.add(name="1").attributes.append(KeyValue(key="k", value=AnyValue(string_value="1")))
    message.links.add(trace_id=b"t" * 16).attributes.append(KeyValue(key="k", value=AnyValue(string_value="1")))
    span = EncodedSpan(message.SerializeToString())
    batch = await decoded(SpanBatch(TABLE, [span]))
    assert batch.spans == (span,)


async def test_unknown_fields_and_bytes_that_are_not_a_span_are_kept() -> None:
    unknown = b"\xfa\x3f\x03abc"
    strange = EncodedSpan(span_with("1").payload + unknown)
    broken = EncodedSpan(b"\xff\xff")
    batch = await decoded(SpanBatch(TABLE, [strange, broken]))
    assert unknown in batch.spans[0].payload
    assert batch.spans[0].to_message().attributes[0].value.int_value == 1
    assert batch.spans[1] is broken


async def test_the_size_is_that_of_the_decoded_batch() -> None:
    batch = await decoded(SpanBatch(TABLE, [span_with('"text"', "3"), span_with("words")]))
    assert batch.size == len(batch.to_request())


async def test_decoding_yields_to_other_tasks() -> None:
    batch = SpanBatch(TABLE, [span_with(json.dumps(["x" * 50] * 1000)) for _ in range(20)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await decoded(batch)
        nursery.cancel_scope.cancel()
    # Each span has 1,000 values, and there is a checkpoint after at most 512.
    assert turns >= 20


async def test_decoding_nothing_is_a_checkpoint() -> None:
    with trio.testing.assert_checkpoints():
        assert (await decoded(SpanBatch(TABLE, []))).spans == ()


DOCUMENTS = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(strategies.characters(exclude_categories=["Cs"])),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text("abc"), inner),
    max_leaves=20,
)


@hypothesis.given(DOCUMENTS)
def test_decoding_inverts_mlflows_encoding(document: Any) -> None:
    async def main() -> None:
        assert value_of(await sent(json.dumps(document))) == document
        assert value_of(await sent(json.dumps(document, ensure_ascii=False))) == document

    trio.run(main)


@hypothesis.given(strategies.text())
def test_decoding_never_fails(text: str) -> None:
    async def main() -> None:
        batch = await decoded(SpanBatch(TABLE, [span_with(text.encode("utf-8", "replace").decode())]))
        assert batch.size == len(batch.to_request())

    trio.run(main)


def texts_in(receiver: Any) -> list[AnyValue]:
    return [attribute.value for span in receiver.stored[TABLE] for attribute in span.attributes]


BATCH = SpanBatch(TABLE, [span_with('"text"', "3")])
DECODED = [AnyValue(string_value="text"), AnyValue(int_value=3)]
AS_THEY_ARE = [AnyValue(string_value='"text"'), AnyValue(string_value="3")]


@pytest.mark.parametrize("decode", [True, False])
async def test_zerobus_gets_decoded_attributes_if_they_are_asked_for(
    decode: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of(ZerobusExporter, decode=decode) as setup:
        assert await setup.export(BATCH) == Delivered()
        assert texts_in(setup.zerobus.receiver) == (DECODED if decode else AS_THEY_ARE)


@pytest.mark.parametrize("decode", [True, False])
async def test_zerobus_and_the_workspace_get_the_same_attributes(
    decode: bool, autojump_clock: trio.testing.MockClock
) -> None:
    # Decoding twice would change the value.
    twice = SpanBatch(TABLE, [span_with('"\\"3\\""')])
    async with setup_of(ZerobusFirst, decode=decode) as setup:
        assert await setup.export(twice) == Delivered()
        setup.zerobus.answers = status_of(429)
        assert await setup.export(twice) == Delivered()
        expected = [AnyValue(string_value='"3"' if decode else '"\\"3\\""')]
        assert texts_in(setup.zerobus.receiver) == texts_in(setup.workspace.receiver) == expected


@pytest.mark.parametrize("make", [unity_catalog, zerobus])
def test_decoding_is_an_option_of_both_destinations_and_off_by_default(make: Any) -> None:
    host = "https://dbc-1.cloud.databricks.com"
    assert make(host, decode_json_attributes=True)._decodes
    assert not make(host)._decodes
    assert isinstance(unity_catalog(host), UnityCatalogExporter)


async def test_the_size_limit_of_a_request_applies_to_the_decoded_batch(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The two characters of a number and its comma are four bytes when they are decoded.
    batch = SpanBatch(TABLE, [span_with(json.dumps([1] * 2000, separators=(",", ":")))])
    larger = (await decoded(batch)).size
    assert larger > batch.size
    async with setup_of(ZerobusExporter, decode=True) as setup:
        exporter = await setup.exporter._zerobus.find()
        exporter._max_request_bytes = larger - 1
        result = await setup.export(batch)
        assert result.status_code == 413
        exporter._max_request_bytes = larger
        assert await setup.export(batch) == Delivered()
