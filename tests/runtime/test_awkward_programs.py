"""Awkward programs: log handlers that raise, exceptions that take no notes, cancelled entering."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_spans, watched_batcher
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Loss,
    Refused,
    RetryPolicy,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import Hang, InMemoryExporter

FOUR = BatchPolicy(max_spans=4, max_delay=60)


class _RaisingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log server is gone")


def _raising_filter(record: logging.LogRecord) -> bool:
    raise OSError("the log server is gone")


def raising_logger(by: str) -> logging.Logger:
    logger = logging.Logger("raising")  # noqa: LOG001  # it must have no parent to propagate to
    if by == "filter":
        logger.addFilter(_raising_filter)
    else:
        logger.addHandler(_RaisingHandler())
    return logger


def _raise(loss: Loss) -> None:
    raise RuntimeError("on_loss")


ANSWERS: dict[str, Callable[[], Any]] = {
    "busy for a moment": lambda: iter([TryLater("busy"), *[Delivered()] * 20]),
    "refuses": lambda: lambda batch: Refused("no"),
    "partial success": lambda: lambda batch: Delivered(1, "one of them"),
    "warns": lambda: lambda batch: Delivered(0, "do not do that"),
    "hangs": lambda: lambda batch: Hang(),
    "is no exporter": lambda: lambda batch: 200,
}


@pytest.mark.parametrize("by", ["handler", "filter"])
@pytest.mark.parametrize("on_loss", [None, _raise])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_logs_that_raise_lose_no_span_and_disturb_neither_the_body_nor_the_drain(
    by: str,
    on_loss: Callable[[Loss], None] | None,
    answer: str,
    autojump_clock: MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exporter = InMemoryExporter(ANSWERS[answer]())
    failure = ValueError("the body's own")
    batcher = watched_batcher(exporter, FOUR, logger=raising_logger(by), on_loss=on_loss, shutdown_timeout=3)
    with pytest.raises(ValueError, match="the body's own") as caught:
        async with batcher as entered:
            for location in "ab":
                entered.add_spans_nowait(location, make_spans(10))
            await trio.sleep(1)
            raise failure
    assert caught.value is failure
    statistics = entered.statistics()
    assert (statistics.accepted, statistics.queued, statistics.in_flight) == (20, 0, 0)
    assert exporter.closed
    assert "OSError: the log server is gone" in capsys.readouterr().err


class _CancellingHandler(logging.Handler):
    """Cancels a scope when the endpoint is up again, which is logged in the step that admits the next waiting span."""

    def __init__(self, scope: trio.CancelScope) -> None:
        super().__init__()
        self._scope = scope

    def emit(self, record: logging.LogRecord) -> None:
        if "is up again" in record.getMessage():
            self._scope.cancel()


@pytest.mark.parametrize("count", [1, 2])
async def test_an_adder_that_a_log_handler_cancels_after_its_span_was_admitted_is_told_that_it_was(
    count: int, autojump_clock: MockClock
) -> None:
    scope, logger = trio.CancelScope(), logging.Logger("cancelling")  # noqa: LOG001  # see above
    logger.addHandler(_CancellingHandler(scope))
    exporter = InMemoryExporter([*[TryLater("down", endpoint=True)] * 3, *[None] * 20])
    added = 0
    async with watched_batcher(
        exporter, BatchPolicy(max_spans=1), limits=Limits(max_queued_spans=1), logger=logger
    ) as batcher:
        # One is tried in vain, one is queued, and the next one waits.
        await batcher.add_spans("a", make_spans(2))
        with scope:
            try:
                await batcher.add_spans("a", make_spans(count))
            except trio.Cancelled as cancelled:
                added = cancelled.accepted  # type: ignore[attr-defined]  # see add_spans
                raise
            added = count
        assert scope.cancel_called
        await batcher.flush()
        assert batcher.statistics().accepted == 2 + added == 3


async def test_log_handlers_that_raise_print_nothing_if_raise_exceptions_is_false(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    exporter = InMemoryExporter(lambda batch: Refused("no"))
    async with watched_batcher(exporter, FOUR, logger=raising_logger("handler")) as batcher:
        batcher.add_spans_nowait("a", make_spans(4))
    assert batcher.statistics().rejected == 4
    assert capsys.readouterr().err == ""


async def test_a_log_record_names_the_code_that_logs_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_batcher(InMemoryExporter(lambda batch: Refused("no")), FOUR) as batcher:
        batcher.add_spans_nowait("a", make_spans(4))
    assert {record.module for record in caplog.records} == {"health_log", "supervisor"}


@dataclass(frozen=True)
class _Frozen(Exception):
    code: int


class _HasOtherNotes(Exception):
    __notes__: Any = ()


class _TakesNoNotes(Exception):
    def add_note(self, note: str, /) -> None:
        raise RuntimeError("no notes, please")


@pytest.mark.parametrize("failure", [_Frozen(3), _HasOtherNotes(), _TakesNoNotes()], ids=lambda e: type(e).__name__)
async def test_an_exception_without_support_for_notes_propagates_unchanged(
    failure: Exception, autojump_clock: MockClock
) -> None:
    async def run() -> None:
        async with watched_batcher(InMemoryExporter(lambda batch: Hang()), shutdown_timeout=1) as batcher:
            batcher.add_spans_nowait("a", make_spans(1))
            raise failure

    caught: BaseException | None = None
    try:
        await run()
    except Exception as exc:
        caught = exc
    assert caught is failure


class _Interrupted(InMemoryExporter):
    """Closing it raises KeyboardInterrupt, as if by a Ctrl-C."""

    async def aclose(self) -> None:
        raise KeyboardInterrupt


async def test_a_ctrl_c_while_a_batcher_that_was_never_open_closes_its_exporter_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(KeyboardInterrupt):
            async with SpanBatcher(_Interrupted()):
                raise AssertionError("the body runs")


async def test_force_flush_of_a_batcher_that_was_never_open_ends_at_once() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with batcher:
            raise AssertionError("the body runs")
    # Otherwise the test would wait until it is ended from outside.
    assert await trio.to_thread.run_sync(processor.force_flush, 10_000_000)


async def test_batches_that_are_not_kept_are_logged_twice_a_minute_at_most(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemoryExporter(itertools.repeat(TryLater("down")))
    limits = Limits(max_pending_bytes=1000, max_pending_bytes_per_location=1000)
    options = {"limits": limits, "retry": RetryPolicy(initial=0.01, max_elapsed=0.02)}
    async with watched_batcher(exporter, BatchPolicy(max_delay=0.1), **options) as batcher:
        for _ in range(600):
            await batcher.add_spans("a", make_spans(5))
            await trio.sleep(0.5)
    messages = [record.getMessage() for record in caplog.records if "are not kept" in record.getMessage()]
    assert 5 <= len(messages) <= trio.current_time() / 30 + 1
    assert "give on_loss= to receive all of them" in messages[0]
    assert batcher.statistics().undelivered == 3000


def test_invalid_arguments_are_refused_when_a_batcher_is_created() -> None:
    async def on_loss(loss: Loss) -> None: ...

    make: Any = SpanBatcher
    with pytest.raises(TypeError, match=r"on_loss is .*which is async; it must be a synchronous function"):
        SpanBatcher(InMemoryExporter(), on_loss=on_loss)
    with pytest.raises(TypeError, match=r"log_level is 'INFO'; it must be an int, for instance logging\.INFO"):
        make(InMemoryExporter(), log_level="INFO")
    with pytest.raises(TypeError, match="log_level is True"):
        SpanBatcher(InMemoryExporter(), log_level=True)
    with pytest.raises(TypeError, match=r"shutdown_timeout is 1000.*number of seconds"):
        SpanBatcher(InMemoryExporter(), shutdown_timeout=10**400)
    with pytest.raises(TypeError, match=r"batch is <class .*; it must be a BatchPolicy, or a function"):
        make(InMemoryExporter(), batch=BatchPolicy)


@pytest.mark.parametrize("value", [True, math.nan, -1, 10**400, "5"])
def test_an_error_names_a_try_later_wait_that_is_not_a_number_of_seconds(value: float) -> None:
    with pytest.raises(ValueError, match=r"TryLater\.after is .*; it must be 0 or more seconds, or None"):
        TryLater("busy", after=value)


def test_results_accept_neither_bools_as_numbers_nor_strings_as_bools() -> None:
    number: Any = 5
    word: Any = "no"
    results: list[Callable[[], ExportResult]] = [
        lambda: Delivered(True),
        lambda: Refused("no", True),
        lambda: Refused("no", isolate=number),
        lambda: TryLater("busy", ambiguous=word),
    ]
    for make in results:
        with pytest.raises(TypeError, match="it must be"):
            make()
