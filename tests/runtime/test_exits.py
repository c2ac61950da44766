"""An exporter, ``on_loss`` or a log handler exits the program."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_span, make_spans, watched_batcher
from tests.support.processes import untraced_environment
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Loss, Refused, SpanBatch, SpanBatcher, TryLater
from trio_spanbatch.testing import Hang, InMemoryExporter

ONE = BatchPolicy(max_spans=1)


class Stop(BaseException):
    """A BaseException that a program defines, as pytest does."""


class Raises(InMemoryExporter):
    """Raises instead of exporting, or of closing."""

    def __init__(self, exit_: BaseException, *, in_export: bool) -> None:
        super().__init__()
        self._exit = exit_
        self._in_export = in_export

    async def export(self, batch: SpanBatch) -> ExportResult:
        result = await super().export(batch)
        if self._in_export:
            raise self._exit
        return result

    async def aclose(self) -> None:
        await super().aclose()
        if not self._in_export:
            raise self._exit


class ExitingHandler(logging.Handler):
    """Exits the program at the first message, or at each."""

    def __init__(self, exit_: BaseException) -> None:
        super().__init__()
        self._exit = exit_
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        raise self._exit


def exiting_logger(exit_: BaseException) -> tuple[logging.Logger, ExitingHandler]:
    logger = logging.Logger("exiting")  # noqa: LOG001  # it must have no parent to propagate to
    logger.addHandler(handler := ExitingHandler(exit_))
    return logger, handler


def exits_in_on_loss(exit_: BaseException) -> dict[str, Any]:
    def on_loss(loss: Loss) -> None:
        raise exit_

    return {"exporter": InMemoryExporter(lambda batch: Refused("no")), "on_loss": on_loss}


def exits_in_on_loss_of_the_drain(exit_: BaseException) -> dict[str, Any]:
    return {**exits_in_on_loss(exit_), "exporter": InMemoryExporter(lambda batch: Hang()), "shutdown_timeout": 1}


EXITS: dict[str, Callable[[BaseException], dict[str, Any]]] = {
    "the exporter": lambda exit_: {"exporter": Raises(exit_, in_export=True)},
    "closing the exporter": lambda exit_: {"exporter": Raises(exit_, in_export=False)},
    "on_loss": exits_in_on_loss,
    "on_loss in the drain": exits_in_on_loss_of_the_drain,
    "a log handler": lambda exit_: {
        "exporter": InMemoryExporter(lambda batch: Refused("no")),
        "logger": exiting_logger(exit_)[0],
    },
    "a log handler at the end": lambda exit_: {
        "exporter": InMemoryExporter(lambda batch: Hang()),
        "logger": exiting_logger(exit_)[0],
        "shutdown_timeout": 1,
    },
}


async def use(what: str, exit_: BaseException, body: BaseException | None, *, cancelled: bool = False) -> None:
    options = EXITS[what](exit_)
    with trio.CancelScope() as scope:
        async with watched_batcher(options.pop("exporter"), ONE, **options) as batcher:
            for location in "ab":
                batcher.add_spans_nowait(location, make_spans(3))
            await trio.sleep(2)
            if cancelled:
                scope.cancel()
                await trio.sleep_forever()
            if body is not None:
                raise body


# -- the exception that leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt(), Stop()], ids=repr)
@pytest.mark.parametrize("what", EXITS)
async def test_an_exit_propagates_when_the_body_ends_normally(
    what: str, exit_: BaseException, autojump_clock: MockClock
) -> None:
    with pytest.raises(type(exit_)) as caught:
        await use(what, exit_, None)
    assert caught.value is exit_


@pytest.mark.parametrize("what", EXITS)
async def test_an_exit_takes_precedence_over_the_cancel_of_the_body(what: str, autojump_clock: MockClock) -> None:
    exit_ = SystemExit(3)
    with pytest.raises(SystemExit) as caught:
        await use(what, exit_, None, cancelled=True)
    assert caught.value is exit_


@pytest.mark.parametrize("what", EXITS)
async def test_an_exit_replaces_the_bodys_exception_which_becomes_its_context_and_is_logged(
    what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exit_, error = SystemExit(3), ValueError("of the body")
    with pytest.raises(SystemExit) as caught:
        await use(what, exit_, error)
    assert caught.value is exit_
    assert exit_.__context__ is error
    if "log handler" not in what:
        assert "SystemExit is raised in place of the body's exception" in caplog.text
        assert "ValueError: of the body" in caplog.text


@pytest.mark.parametrize("body", [SystemExit(5), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("what", EXITS)
async def test_a_body_that_ends_the_program_itself_decides_how(
    what: str, body: BaseException, autojump_clock: MockClock
) -> None:
    with pytest.raises(type(body)) as caught:
        await use(what, SystemExit(3), body)
    assert caught.value is body


async def test_the_first_exit_of_several_leaves(autojump_clock: MockClock) -> None:
    exits = [SystemExit(code) for code in range(3)]
    expected = exits[0]

    def on_loss(loss: Loss) -> None:
        raise exits.pop(0)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(InMemoryExporter(lambda batch: Refused("no")), ONE, on_loss=on_loss) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
    assert caught.value is expected


async def test_an_exit_from_a_nursery_of_the_exporter_propagates_without_a_group(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(exc: BaseException) -> None:
        try:
            await trio.sleep(1)
        finally:
            raise exc

    class Grouped(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, ValueError("at the same time"))
                nursery.start_soon(fail, SystemExit(3))
            return Delivered()

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(Grouped(), ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
    assert caught.value.code == 3
    assert "ValueError: at the same time" in caplog.text


# -- what becomes of the spans ---------------------------------------------------------------------------------------


async def test_the_batch_whose_export_exits_and_all_others_are_handed_back_with_that_reason(
    autojump_clock: MockClock,
) -> None:
    class ExitsAtB(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.sleep(1)
            if batch.location == "b":
                raise SystemExit(3)
            await trio.sleep_forever()

    with pytest.raises(SystemExit):
        async with watched_batcher(ExitsAtB(), ONE) as batcher:
            for location in "ab":
                batcher.add_spans_nowait(location, make_spans(3))
            await trio.sleep(2)
            assert batcher.statistics().undelivered == 6
    assert {loss.reason for loss in batcher.undelivered} == {"the exporter raised SystemExit"}


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt(), Stop()], ids=repr)
@pytest.mark.parametrize(
    "answer", [Refused("no"), TryLater("busy", after=3), Delivered(1, "one"), Delivered(0, "hm"), Hang(), ValueError()]
)
async def test_a_log_handler_that_exits_at_each_message_loses_no_span_and_shows_no_group(
    exit_: BaseException, answer: ExportResult | Hang | Exception, autojump_clock: MockClock
) -> None:
    logger, handler = exiting_logger(exit_)
    losses: list[Loss] = []
    answers = iter([answer])
    with pytest.raises(type(exit_)) as caught:
        async with watched_batcher(
            InMemoryExporter(lambda batch: next(answers, answer)),
            BatchPolicy(max_spans=2),
            logger=logger,
            on_loss=losses.append,
            shutdown_timeout=5,
        ) as batcher:
            for location in "ab":
                batcher.add_spans_nowait(location, make_spans(4))
            await trio.sleep(1)
            # It continues until it is left.
            batcher.add_spans_nowait("c", make_spans(2))
    assert caught.value is exit_
    assert handler.messages
    statistics = batcher.statistics()
    assert_conserved(statistics)
    assert sum(loss.count for loss in losses) == statistics.rejected + statistics.undelivered


async def test_a_log_handler_that_exits_when_the_program_logs_ends_it_at_once(
    autojump_clock: MockClock,
) -> None:
    from trio_spanbatch.opentelemetry import BatcherSpanProcessor

    logger, _ = exiting_logger(SystemExit(3))
    left_early = True
    with pytest.raises(SystemExit):
        async with SpanBatcher(InMemoryExporter(), logger=logger) as batcher:
            # It warns that it cannot wait in the trio thread. No task of the batcher runs.
            BatcherSpanProcessor(batcher).force_flush()
            left_early = False
    assert left_early


def test_a_log_handler_that_exits_before_and_after_the_batcher_runs_is_not_held_back() -> None:
    logger, _ = exiting_logger(SystemExit(3))
    batcher = SpanBatcher(InMemoryExporter(), logger=logger)

    async def main() -> None:
        async with batcher:
            pass

    with pytest.raises(SystemExit):
        batcher._shared.logger.error("before")
    trio.run(main)
    with pytest.raises(SystemExit):
        batcher._shared.logger.error("after")


# -- the exit status -------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    import trio
    from trio_spanbatch import BatchPolicy, Refused, SpanBatcher
    from trio_spanbatch.testing import InMemoryExporter
    from tests.support.batchers import make_span

    class Exits(InMemoryExporter):
        async def export(self, batch):
            await trio.sleep(0)
            sys.exit(7)

    async def main():
        options = {options}
        with trio.CancelScope() as scope:
            async with SpanBatcher(**options, batch=BatchPolicy(max_spans=1)) as batcher:
                batcher.add_span_nowait("a", make_span())
                while not (batcher.statistics().rejected or batcher.statistics().undelivered):
                    await trio.sleep(0)
                {body}

    trio.run(main)
"""


@pytest.mark.long
@pytest.mark.parametrize("body", ["pass", "scope.cancel(); await trio.sleep(0)", "raise ValueError('of the body')"])
@pytest.mark.parametrize(
    "options",
    [
        "dict(exporter=Exits())",
        "dict(exporter=InMemoryExporter(lambda batch: Refused('no')), on_loss=lambda loss: sys.exit(7))",
    ],
)
def test_a_program_ends_with_the_status_of_its_exit(options: str, body: str) -> None:
    program = textwrap.dedent(PROGRAM).format(options=options, body=body)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=untraced_environment(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    # The body's exception is not lost: a log without any configuration shows errors.
    assert ("ValueError: of the body" in done.stderr) == body.startswith("raise"), done.stderr
