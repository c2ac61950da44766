"""What `print` shows of counts, flush reports and losses."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.support.batchers import make_spans
from trio_spanbatch import (
    BatchPolicy,
    FlushCounts,
    FlushReport,
    LocationStatistics,
    Loss,
    Refused,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    UndeliveredSpansError,
)
from trio_spanbatch._reporting.statistics import EndpointStatistics, _Counts
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.testing import InMemoryExporter


def batch_of(location: str, count: int) -> SpanBatch:
    return SpanBatch(location, map(SpanEncoder().encode, make_spans(count)))


async def test_printed_statistics_are_a_table_with_a_row_for_each_location() -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no such table") if batch.location == "b" else None)
    async with SpanBatcher(exporter, batch=BatchPolicy(max_spans=1000)) as batcher:
        await batcher.add_spans("main.agents.spans", make_spans(1200))
        await batcher.add_spans("b", make_spans(3))
    assert str(batcher.statistics()).splitlines() == [
        "location           accepted  delivered  rejected  undelivered  requests",
        "b                         3          0         3            0         1",
        "main.agents.spans     1,200      1,200         0            0         2",
        "total                 1,203      1,200         3            0         3",
    ]


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(_Counts)])
def test_every_count_that_is_not_zero_has_a_column(name: str) -> None:
    counts: dict[str, Any] = {name: 12345}
    heading, total = str(SpanBatcherStatistics(**counts)).splitlines()
    label = name.replace("_", " ")
    assert label in heading
    assert total[: heading.index(label) + len(label)].endswith(" 12,345")


def test_of_many_locations_those_with_the_most_lost_spans_are_shown() -> None:
    locations = {f"location {number}": LocationStatistics(accepted=number) for number in range(10_000)}
    locations["lossy"] = LocationStatistics(accepted=1, undelivered=1)
    lines = str(SpanBatcherStatistics(accepted=1, locations=locations)).splitlines()
    assert len(lines) == 28
    assert any(line.startswith("lossy ") for line in lines)
    assert any(line.startswith("location 9999 ") for line in lines)
    assert lines[-2] == "and 9,976 more"


def test_a_location_is_one_short_line_whatever_its_name_is() -> None:
    locations = {"a\n\x1b[31mb" + "x" * 1000: LocationStatistics()}
    text = str(SpanBatcherStatistics(locations=locations))
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 120


def test_a_server_that_is_down_is_named_below_the_table() -> None:
    endpoints = {"eu": EndpointStatistics(name="eu", is_up=False), "us": EndpointStatistics(name="us")}
    assert str(SpanBatcherStatistics(endpoints=endpoints)).splitlines()[2:] == ["eu is down"]
    only = {"": EndpointStatistics(is_up=False)}
    assert str(SpanBatcherStatistics(endpoints=only)).splitlines()[2:] == ["the server is down"]


def test_one_locations_statistics_are_its_counts_that_are_not_zero() -> None:
    assert str(LocationStatistics(accepted=1200, in_flight=1)) == "accepted 1,200, in flight 1"
    assert str(LocationStatistics()) == "no spans"


def test_a_flush_report_says_how_many_spans_were_delivered_and_where_some_were_not() -> None:
    good, bad = FlushCounts(delivered=1200), FlushCounts(delivered=1, undelivered=2)
    report = FlushReport(delivered=1201, undelivered=2, locations={"good": good, "b\nad": bad})
    assert str(report) == "1,201 delivered, 2 undelivered; b ad: 1 delivered, 2 undelivered"
    assert str(FlushReport(delivered=5, locations={"good": good})) == "5 delivered"
    assert str(FlushReport()) == "no spans"


def test_a_flush_report_names_a_limited_number_of_locations() -> None:
    locations = {f"location {number}": FlushCounts(rejected=1) for number in range(1000)}
    text = str(FlushReport(rejected=1000, locations=locations))
    assert text.endswith("; and 975 more locations with losses")
    assert len(text) < 1500


def test_a_loss_says_where_how_many_spans_were_lost_and_why() -> None:
    rejected = Loss("acme", batch_of("acme", 1200), "rejected", "HTTP 400:\nno such\x1b[31m table", 400)
    assert str(rejected) == "acme: 1,200 spans rejected: HTTP 400: no such [31m table"
    undelivered = Loss("acme", batch_of("acme", 1), "undelivered", "endpoint down")
    assert str(undelivered) == "acme: 1 span handed back undelivered: endpoint down"
    assert len(str(Loss("x" * 1024, batch_of("acme", 1), "rejected", "y" * 10_000))) < 450


async def test_the_error_of_a_strict_batcher_says_the_reasons_and_counts() -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no such table"))
    with pytest.raises(UndeliveredSpansError) as caught:
        async with SpanBatcher(exporter, strict=True) as batcher:
            await batcher.add_spans("a", make_spans(3))
    assert str(caught.value) == "3 spans were rejected: no such table (3)"
