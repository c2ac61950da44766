"""``send`` with files of protobuf requests."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.cli.support import Ended, request_line, run_command, run_in_process, span_document
from trio_spanbatch import SpanBatch
from trio_spanbatch.cli import protobuf
from trio_spanbatch.cli.documents import Unreadable
from trio_spanbatch.cli.protobuf import Envelope, RequestParser, is_protobuf, is_undecided
from trio_spanbatch.testing import OTLPReceiver


def attribute(key: str, value: str | int | bool) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    return KeyValue(
        key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
    )


def request(*numbers: int, resource: Sequence[KeyValue] = (), attributes: Sequence[KeyValue] = ()) -> bytes:
    spans = [
        Span(name="step", trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), attributes=attributes)
        for number in numbers
    ]
    envelope = ResourceSpans(resource=Resource(attributes=resource), scope_spans=[ScopeSpans(spans=spans)])
    return ExportTraceServiceRequest(resource_spans=[envelope]).SerializeToString()


async def send(path: Path, *more: object) -> tuple[Ended, dict[str, list[int]]]:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        ended = await run_in_process(
            "send", path, "--endpoint", receiver.url, "--location-header", "X-Scope-OrgID", "--json", *more
        )
    stored = {
        location: [int.from_bytes(span.span_id, "big") for span in spans] for location, spans in receiver.stored.items()
    }
    return ended, stored


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.pb"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_requests_in_a_row_are_read_and_every_span_sent(pack: type[bytes], path: Path) -> None:
    path.write_bytes(pack(request(1, 2, resource=[attribute("a", "b")]) + request(3) + request(4)))
    ended, stored = await send(path)
    assert (ended.exit_code, ended.err) == (0, "")
    assert stored == {"default": [1, 2, 3, 4]}


async def test_standard_input_may_be_protobuf() -> None:
    async with OTLPReceiver() as receiver:
        ended = await run_command("send", "-", "--endpoint", receiver.url, stdin=request(1, 2))
    assert (ended.exit_code, ended.err) == (0, "")
    assert len(receiver.stored["default"]) == 2


async def test_a_batch_that_was_handed_back_and_kept_is_sent(path: Path) -> None:
    batch = SpanBatch.from_request("main.spans", request(1, 2))
    path.write_bytes(batch.to_request())
    ended, stored = await send(path, "--location", "main.spans")
    assert ended.exit_code == 0
    assert stored == {"main.spans": [1, 2]}


async def test_the_location_may_be_an_attribute_of_the_span_or_the_resource(path: Path) -> None:
    path.write_bytes(
        request(1, attributes=[attribute("tenant", "x"), attribute("tenant", "a")])
        + request(2, resource=[attribute("tenant", "b")])
        + request(3, resource=[attribute("tenant", "b")], attributes=[attribute("tenant", 7)])
        + request(4)
        + request(5, attributes=[attribute("tenant", value=True)])
    )
    ended, stored = await send(path, "--location-attribute", "tenant")
    assert ended.exit_code == 1
    assert stored == {"a": [1], "b": [2], "7": [3]}
    assert "span 1: no location: neither the span nor its resource has an attribute 'tenant'" in ended.err
    assert "span 1: no location: the attribute 'tenant' is True; it must be a string" in ended.err
    assert f"{path}: the envelope at byte " in ended.err


async def test_an_envelope_that_is_damaged_costs_itself_only(path: Path) -> None:
    first, bad, last = request(1), bytearray(request(2)), request(3)
    bad[-1] = 0xFF
    bad[-2] = 0xFF
    path.write_bytes(first + bad + last)
    ended, stored = await send(path)
    assert ended.exit_code == 1
    assert stored == {"default": [1, 3]}
    (line,) = ended.err.splitlines()
    place = int(line.partition(f"{path}: byte ")[2].split()[0])
    assert len(first) < place < len(first) + len(bad)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_a_file_that_is_cut_off_is_sent_up_to_there(pack: type[bytes], path: Path) -> None:
    data = request(1) + request(2)
    path.write_bytes(pack(data[:-3]))
    ended, stored = await send(path)
    assert ended.exit_code == 1
    assert stored == {"default": [1]}
    assert ended.err == f"{path}: the file is cut off: the envelope that begins at byte {len(request(1))} has no end\n"


async def test_gzip_that_is_cut_off_is_sent_up_to_there(path: Path) -> None:
    path.write_bytes(gzip.compress(request(1) + request(2))[:-9])
    ended, stored = await send(path)
    assert ended.exit_code == 1
    assert stored["default"][:1] == [1]
    assert ended.err.count("\n") == 1
    assert f"{path}: the gzip data is damaged" in ended.err


async def test_what_follows_something_else_is_not_read(path: Path) -> None:
    path.write_bytes(request(1) + b"\x12\x00" + request(2))
    ended, stored = await send(path)
    assert ended.exit_code == 1
    assert stored == {"default": [1]}
    assert ended.err == (
        f"{path}: byte {len(request(1))} does not begin a ResourceSpans of an ExportTraceServiceRequest; the rest of "
        "the file is not read\n"
    )


async def test_json_after_empty_lines_is_still_json(path: Path) -> None:
    path.write_bytes(b"\n\n" + request_line(span_document(1)) + b"\n")
    ended, stored = await send(path)
    assert (ended.exit_code, stored) == (0, {"default": [1]})


async def test_an_empty_request_contains_no_spans(path: Path) -> None:
    path.write_bytes(b"\x0a\x00")
    ended, _ = await send(path)
    assert (ended.exit_code, ended.err) == (0, f"{path}: contains no spans\n")


def test_an_envelope_that_is_too_large_ends_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_DOCUMENT_BYTES", 1024**2)
    parser = RequestParser()
    (item,) = parser.feed(b"\x0a\xff\xff\xff\xff\x07")
    assert isinstance(item, Unreadable)
    assert item.reason == "byte 0 begins an envelope larger than 1 MiB; the rest of the file is not read"
    assert not [*parser.feed(bytes(100)), *parser.finish()]


def test_a_size_without_an_end_ends_the_file() -> None:
    (item,) = RequestParser().feed(b"\x0a" + b"\x80" * 11)
    assert isinstance(item, Unreadable)
    assert "byte 0 begins an envelope whose size does not end" in item.reason


@given(st.lists(st.integers(1, 60), max_size=5), st.lists(st.integers(0, 400), max_size=6))
def test_the_pieces_in_which_a_file_is_read_make_no_difference(sizes: list[int], cuts: list[int]) -> None:
    data = b"".join(request(*range(1, size + 1)) for size in sizes)
    parser = RequestParser()
    found: list[Envelope | Unreadable] = []
    begin = 0
    for end in [*sorted(cuts), len(data)]:
        found += parser.feed(data[begin:end])
        begin = max(begin, end)
    found += parser.finish()
    assert all(isinstance(item, Envelope) for item in found)
    assert [len(item.spans) for item in found if isinstance(item, Envelope)] == sizes


@given(st.integers(1, 300), st.text(max_size=40))
def test_protobuf_is_told_from_json(count: int, value: str) -> None:
    data = request(*range(1, count + 1), resource=[attribute("service.name", value)])
    assert is_protobuf(data)
    assert not is_protobuf(b"\n" + request_line(span_document(1, name=value)))
    assert is_undecided(b"")
    assert is_undecided(b"\n")
    assert not is_undecided(data)
    assert not is_undecided(b"{")
