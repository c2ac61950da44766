"""Which names are valid locations, in all APIs that take one."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from tests.support.batchers import make_span, make_spans
from trio_spanbatch import BatchPolicy, InvalidLocationError, Refused, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.testing import InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)
LONGEST = "x" * 1024
# This many characters, regardless of their size in UTF-8.
LONGEST_IN_UTF_8 = "\U0001f680" * 1024
MEGABYTE = "tenant-" + "\x00" * 1_000_000


class Understated(str):
    """A str that lies about its length."""

    __slots__ = ()

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("location", [LONGEST, LONGEST_IN_UTF_8, "a\nb"])
async def test_a_location_may_have_1024_characters(location: str) -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, batch=NEVER) as batcher:
        batcher.add_span_nowait(location, make_span())
        report = await batcher.flush(location)
    assert report.locations.keys() == batcher.statistics().locations.keys() == {location}


@pytest.mark.parametrize("location", [LONGEST + "x", LONGEST_IN_UTF_8 + "x", MEGABYTE, Understated(LONGEST + "x")])
async def test_a_location_with_more_characters_is_refused_by_every_call_before_any_other_check(location: str) -> None:
    asked: list[str] = []

    class Exporter(InMemoryExporter):
        def check_location(self, location: str) -> None:
            asked.append(location)

    def policy(location: str) -> BatchPolicy:
        asked.append(location)
        return NEVER

    async with SpanBatcher(Exporter(), batch=policy) as batcher:
        raised = []
        for add in (batcher.add_span_nowait, batcher.add_span):
            with pytest.raises(InvalidLocationError) as caught:
                done: Any = add(location, make_span())
                await done
            raised.append(caught)
        for add_all in (batcher.add_spans_nowait, batcher.add_spans):
            for count in (0, 2):
                with pytest.raises(InvalidLocationError) as caught:
                    done = add_all(location, make_spans(count))
                    await done
                raised.append(caught)
        with pytest.raises(InvalidLocationError) as caught:
            await batcher.flush(location)
        raised.append(caught)
        with pytest.raises(InvalidLocationError) as caught:
            use_location(location)
        raised.append(caught)
        with pytest.raises(InvalidLocationError) as caught:
            BatcherSpanProcessor(batcher, location=location)
        raised.append(caught)
        assert batcher.statistics().locations == {}
    assert asked == []
    length = str.__len__(location)
    for error in raised:
        message = str(error.value)
        assert f"has {length} characters; at most 1024 are allowed" in message
        assert str.__getitem__(location, slice(0, 7)) in message
        assert len(message) < 500


async def test_a_span_whose_location_function_returns_a_longer_name_is_counted_as_invalid() -> None:
    async with SpanBatcher(InMemoryExporter(), batch=NEVER) as batcher:
        processor = BatcherSpanProcessor(batcher, location=lambda *_: MEGABYTE)
        provider = TracerProvider()
        provider.add_span_processor(processor)
        provider.get_tracer("test").start_span("work").end()
        assert processor.statistics().dropped["invalid"] == 1
        assert batcher.statistics().accepted == 0


async def test_log_messages_about_a_location_are_bounded_and_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    location = "evil\n" + "\x1b" * 1019
    async with SpanBatcher(InMemoryExporter([Refused("no"), RuntimeError("bug")]), batch=NEVER) as batcher:
        for _ in range(2):
            batcher.add_span_nowait(location, make_span())
            await batcher.flush()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("trio_spanbatch")]
    assert any("evil" in message for message in said)
    for message in said:
        assert message.isprintable()
        assert len(message) < 10_000
