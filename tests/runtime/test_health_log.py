"""The first failure of a location, its recovery, and a summary at most every 30 seconds in between."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span, make_spans, watched_batcher
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Refused, SpanBatch, TryLater
from trio_spanbatch._reporting.health_log import HealthLog
from trio_spanbatch.testing import InMemoryExporter

ONE = BatchPolicy(max_spans=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> HealthLog:
    caplog.set_level(logging.DEBUG, "health")
    return HealthLog(logging.getLogger("health"), logging.INFO, clock, 3)


def test_the_first_failure_and_the_recovery_are_logged(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.failed("a", "503 Service Unavailable")
    for _ in range(5):
        log.failed("a", "503 Service Unavailable")
    log.rejected("a", 3, "no")
    log.handed_back("a", 2, "no")
    clock.now = 12.34
    log.succeeded("a")
    log.succeeded("a")
    log.succeeded("never failed")
    assert caplog.messages == [
        "exports to 'a' fail: 503 Service Unavailable",
        "exports to 'a' succeed again: 6 attempts failed in 12.3 s, 3 spans were rejected, 2 handed back",
    ]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_a_summary_comes_at_most_every_30_seconds(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(100):
        clock.now = float(second)
        log.failed("a", "reset")
        log.failed("b", "hung")
    summaries = [message for message in caplog.messages if " failing: " in message]
    text = (
        "2 locations are failing: %d attempts failed in the last 30 s, 0 spans were rejected, 0 handed back; "
        "the last: 'a': reset"
    )
    assert summaries == [text % 61, text % 60, text % 60]
    assert len(caplog.messages) == 2 + 3


def test_a_location_that_flaps_does_not_flood_the_log(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1000):
        clock.now = step / 10
        log.failed("a", "reset")
        log.succeeded("a")
    # In 100 s: four times a first failure and its recovery, and three summaries.
    assert len(caplog.messages) == 4 + 4 + 3


def test_warnings_are_rate_limited_too(log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for second in range(61):
        clock.now = float(second)
        log.warned("a", "deprecated\nuse v2")
    assert caplog.messages == ["the server for 'a' accepted a batch with a warning: deprecated use v2"] * 3


def test_the_number_of_remembered_locations_is_bounded(log: HealthLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(100):
        log.failed(str(number), "reset")
        log.warned(str(number), "old")
    log.succeeded("0")
    log.succeeded("99")
    recovered = [message for message in caplog.messages if "again" in message]
    assert recovered == [
        "exports to '99' succeed again: 1 attempt failed in 0.0 s, 0 spans were rejected, 0 handed back"
    ]


def test_a_message_of_the_server_stays_on_one_line(log: HealthLog, caplog: pytest.LogCaptureFixture) -> None:
    log.failed("a", "100 % lost\nCRITICAL root: all is well %s")
    assert caplog.messages == ["exports to 'a' fail: 100 % lost CRITICAL root: all is well %s"]


async def test_a_batcher_logs_to_the_logger_and_at_the_level_that_it_was_given(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mine")
    exporter = InMemoryExporter([TryLater("503 busy")] * 3)
    logger = logging.getLogger("mine")
    async with watched_batcher(exporter, ONE, logger=logger, log_level=logging.DEBUG) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
    assert {(record.name, record.levelno) for record in caplog.records} == {("mine", logging.DEBUG)}
    assert caplog.messages[0] == "SpanBatcher: exports to 'a' fail: 503 busy"
    assert caplog.messages[1].startswith("SpanBatcher: exports to 'a' succeed again: 3 attempts failed in")


async def test_rejected_spans_reach_the_log_with_a_summary_at_the_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(batch: SpanBatch) -> ExportResult:
        return Refused("404 Not Found: no such table", 404) if batch.location == "a" else Delivered(1, "too old")

    async with watched_batcher(InMemoryExporter(answer), BatchPolicy(max_spans=3)) as batcher:
        batcher.add_spans_nowait("a", make_spans(6))
        batcher.add_spans_nowait("b", make_spans(3))
        await trio.sleep(1)
    assert "SpanBatcher: exports to 'a' fail: 404 Not Found: no such table" in caplog.messages
    assert "SpanBatcher: spans for 'b' are rejected: too old" in caplog.messages
    last = caplog.records[-1]
    assert (last.levelno, last.getMessage()) == (
        logging.ERROR,
        "SpanBatcher: 7 of 9 spans were rejected (404 Not Found: no such table: 6; too old: 1)",
    )


def test_a_failure_after_a_quiet_time_is_logged_once(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.failed("a", "reset")
    log.succeeded("a")
    clock.now = 1000.0
    log.failed("a", "hung")
    assert caplog.messages[2:] == ["exports to 'a' fail: hung"]
    clock.now = 1030.0
    log.failed("a", "hung")
    assert len(caplog.messages) == 4
    assert "2 attempts failed in the last 30 s" in caplog.messages[3]


def test_a_location_that_failed_long_ago_and_was_not_used_since_does_not_count_as_failing(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.failed("once", "refused")
    for second in range(100):
        clock.now = float(second)
        log.failed("a", "reset")
    summaries = [message for message in caplog.messages if " failing: " in message]
    assert [summary.split()[0] for summary in summaries] == ["2", "1", "1"]


def test_a_summary_counts_each_location_once_and_not_those_that_have_recovered(
    log: HealthLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        for location in "abc":
            log.failed(location, "503")
    log.succeeded("b")
    clock.now += 31
    log.failed("a", "503")
    assert "2 locations are failing: 10 attempts failed" in caplog.messages[-1]
