"""A batcher belongs to one trio run of one process, is entered and left once, and closes its exporter."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import make_span, make_spans, watched_batcher
from tests.support.processes import untraced_environment
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, OTLPExporter, SpanBatch, SpanBatcher
from trio_spanbatch.testing import InMemoryExporter, OTLPReceiver

ONE = BatchPolicy(max_spans=1)

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


async def add_span_nowait(batcher: SpanBatcher, location: str) -> None:
    batcher.add_span_nowait(location, make_span())
    await trio.lowlevel.checkpoint()


async def add_spans_nowait(batcher: SpanBatcher, location: str) -> None:
    batcher.add_spans_nowait(location, make_spans(2))
    await trio.lowlevel.checkpoint()


async def add_no_spans_nowait(batcher: SpanBatcher, location: str) -> None:
    batcher.add_spans_nowait(location, [])
    await trio.lowlevel.checkpoint()


async def add_span(batcher: SpanBatcher, location: str) -> None:
    await batcher.add_span(location, make_span())


async def add_spans(batcher: SpanBatcher, location: str) -> None:
    await batcher.add_spans(location, make_spans(2))


async def add_no_spans(batcher: SpanBatcher, location: str) -> None:
    await batcher.add_spans(location, [])


async def flush(batcher: SpanBatcher, location: str) -> None:
    await batcher.flush()


async def flush_location(batcher: SpanBatcher, location: str) -> None:
    await batcher.flush(location)


async def statistics(batcher: SpanBatcher, location: str) -> None:
    batcher.statistics()
    await trio.lowlevel.checkpoint()


async def leave(batcher: SpanBatcher, location: str) -> None:
    await batcher.__aexit__(None, None, None)


Use = Callable[[SpanBatcher, str], Awaitable[None]]

ADDING: list[Use] = [
    add_span_nowait,
    add_spans_nowait,
    add_no_spans_nowait,
    add_span,
    add_spans,
    add_no_spans,
    flush,
    flush_location,
]


# -- another run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["known", "new"])
@pytest.mark.parametrize("use", [*ADDING, statistics, leave])
async def test_another_trio_run_in_a_thread_gets_a_runtime_error_and_changes_nothing(use: Use, location: str) -> None:
    with trio.fail_after(60):
        async with watched_batcher(InMemoryExporter(), ONE) as batcher:
            await batcher.add_span("known", make_span())
            await batcher.flush()
            before = batcher.statistics().accepted
            with pytest.raises(RuntimeError, match="trio run"):
                await trio.to_thread.run_sync(trio.run, use, batcher, location)
            assert batcher.statistics().accepted == before
            await batcher.add_span("known", make_span())
    assert batcher.statistics().delivered == 2


async def test_a_thread_with_another_run_adds_with_the_batchers_trio_token() -> None:
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        token = trio.lowlevel.current_trio_token()

        async def other_run() -> None:
            # It waits for the other run, in a separate thread.
            await trio.to_thread.run_sync(
                lambda: trio.from_thread.run_sync(batcher.add_span_nowait, "a", make_span(), trio_token=token)
            )

        await trio.to_thread.run_sync(trio.run, other_run)
    assert batcher.statistics().delivered == 1


# Python discards tasks that trio can no longer end, with a message.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_batcher_that_was_never_left_is_closed_when_its_run_has_ended() -> None:
    use_in_two_runs()
    gc.collect()


def use_in_two_runs() -> None:
    batcher = SpanBatcher(InMemoryExporter())

    async def main() -> None:
        await batcher.__aenter__()

    with pytest.raises(trio.TrioInternalError):
        trio.run(main)
    with pytest.raises(trio.ClosedResourceError):
        batcher.add_span_nowait("a", make_span())

    async def in_the_next_run_of_this_thread() -> None:
        await trio.lowlevel.checkpoint()
        with pytest.raises(trio.ClosedResourceError):
            batcher.add_span_nowait("a", make_span())

    trio.run(in_the_next_run_of_this_thread)
    assert batcher.statistics().accepted == 0


async def test_statistics_can_be_read_in_any_thread_once_the_batcher_was_left() -> None:
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync\(batcher\.statistics\)"):
            await trio.to_thread.run_sync(batcher.statistics)
        counts = await trio.to_thread.run_sync(trio.from_thread.run_sync, batcher.statistics)
        assert counts.accepted == 1
    assert (await trio.to_thread.run_sync(batcher.statistics)).delivered == 1


# -- a forked child ------------------------------------------------------------------------------------------------


def errors_in_a_child(child: Callable[[], object]) -> str:
    """Return what ``child`` returns in a forked child, which ends by os._exit."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, str(child()).encode())
        except BaseException as error:  # noqa: ASYNC103  # the child must end here in any case
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        output = pipe.read().decode()
    os.waitpid(pid, 0)
    return output


def drive(coro: Any) -> object:
    """Run a coroutine that must not wait for anything."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    return "it waits"


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("use", [*ADDING, leave])
async def test_a_forked_child_gets_a_runtime_error_at_once_and_the_parent_goes_on(use: Use) -> None:
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        await batcher.add_span("known", make_span())
        for location in ("known", "new"):
            error = errors_in_a_child(lambda location=location: drive(use(batcher, location)))  # type: ignore[misc]  # a default
            assert error.startswith("RuntimeError('this is a forked child"), error
            assert "exec or os._exit" in error
        await batcher.add_span("known", make_span())
        await batcher.flush()
    assert (batcher.statistics().accepted, batcher.statistics().delivered) == (2, 2)


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_process_forked_by_multiprocessing_gets_a_runtime_error_too() -> None:
    context: Any = multiprocessing.get_context("fork")
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        read, write = context.Pipe(duplex=False)

        def child() -> None:
            try:
                batcher.add_span_nowait("a", make_span())
                write.send("it was accepted")
            except RuntimeError as error:
                write.send(str(error))

        process = context.Process(target=child)
        process.start()
        error = await trio.to_thread.run_sync(read.recv)
        await trio.to_thread.run_sync(process.join)
        assert error.startswith("this is a forked child")
        assert process.exitcode == 0
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_that_is_forked_while_the_batcher_is_entered_gets_a_runtime_error_too() -> None:
    batcher = SpanBatcher(InMemoryExporter(), batch=ONE)
    errors: list[str] = []

    class ForksAtTheFirstStep(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if "_supervise" in task.name and not errors:
                assert batcher._runtime.thread_id is None
                errors.append(errors_in_a_child(lambda: batcher.add_span_nowait("a", make_span())))

    trio.lowlevel.add_instrument(instrument := ForksAtTheFirstStep())
    try:
        async with batcher:
            batcher.add_span_nowait("a", make_span())
    finally:
        trio.lowlevel.remove_instrument(instrument)
    assert len(errors) == 1
    assert errors[0].startswith("RuntimeError('this is a forked child"), errors
    assert batcher.statistics().delivered == 1


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_the_counts_can_be_read_in_a_forked_child() -> None:
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        assert errors_in_a_child(lambda: batcher.statistics().accepted) == "1"


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_batcher_that_was_not_entered_yet_belongs_to_the_child_that_enters_it() -> None:
    batcher = SpanBatcher(InMemoryExporter())

    def child() -> int:
        trio.run(use)
        return batcher.statistics().delivered

    async def use() -> None:
        async with batcher:
            batcher.add_span_nowait("a", make_span())

    assert errors_in_a_child(child) == "1"


LEAVES_IN_A_CHILD = """
    import os, sys
    import trio
    from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher
    from trio_spanbatch.testing import OTLPReceiver
    from tests.support.batchers import make_span

    class Mine(Exception):
        pass

    async def main():
        child = None
        async with OTLPReceiver() as server:
            batcher = SpanBatcher(OTLPExporter(server.url), batch=BatchPolicy(max_spans=1))
            try:
                async with batcher:
                    # There is a connection, and another export is running.
                    batcher.add_span_nowait("a", make_span())
                    await batcher.flush()
                    batcher.add_span_nowait("a", make_span())
                    await trio.sleep(0)
                    child = os.fork()
                    if not child:
                        {end}
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                    batcher.add_span_nowait("a", make_span())
                    await batcher.flush()
            except RuntimeError as error:
                well = "forked child" in str(error) and ({context})
                os._exit(0 if child == 0 and well else 3)
            except BaseException:
                os._exit(4)
            finally:
                if child == 0:
                    os._exit(5)
            statistics = batcher.statistics()
            print(statistics.accepted, statistics.delivered, len(server.requests))

    trio.run(main)
"""


@forks
@pytest.mark.parametrize(
    ("end", "context"),
    [
        ("return", "error.__context__ is None"),
        ("raise Mine", "isinstance(error.__context__, Mine)"),
        ("sys.exit(9)", "isinstance(error.__context__, SystemExit)"),
    ],
)
def test_leaving_in_a_forked_child_raises_at_once_and_does_not_affect_the_parents_connections(
    end: str, context: str
) -> None:
    program = textwrap.dedent(LEAVES_IN_A_CHILD).format(end=end, context=context)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env=untraced_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["3", "3", "3"]), done.stderr


# -- leaving -------------------------------------------------------------------------------------------------------


async def test_leaving_a_batcher_that_was_not_entered_says_how_to_enter_it() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    with pytest.raises(RuntimeError, match="not entered: use `async with SpanBatcher"):
        await batcher.__aexit__(None, None, None)
    async with batcher:
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1


async def test_leaving_a_batcher_twice_says_that_it_was_left_already() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        batcher.add_span_nowait("a", make_span())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="left already"):
            await batcher.__aexit__(None, None, None)
    assert batcher.statistics().delivered == 1


async def test_the_error_for_leaving_a_batcher_whose_entering_was_cancelled_says_that_it_was_left() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    with trio.CancelScope() as scope:
        scope.cancel()
        async with batcher:
            pytest.fail("was entered")
    with pytest.raises(RuntimeError, match="left already"):
        await batcher.__aexit__(None, None, None)


async def test_leaving_a_batcher_in_another_task_is_refused_and_the_batcher_stays_open(
    autojump_clock: MockClock,
) -> None:
    batcher = SpanBatcher(InMemoryExporter(delay=5), batch=ONE)
    entered, refused = trio.Event(), trio.Event()

    async def use() -> None:
        async with batcher:
            entered.set()
            await refused.wait()
            batcher.add_span_nowait("a", make_span())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await entered.wait()
        with pytest.raises(RuntimeError, match="by the task that entered it"):
            await batcher.__aexit__(None, None, None)
        refused.set()
        await wait_all_tasks_blocked()
        assert batcher._scheduler.draining
        with pytest.raises(RuntimeError, match="is being left"):
            await batcher.__aexit__(None, None, None)
    assert batcher.statistics().delivered == 1


# -- exporters that are closed -----------------------------------------------------------------------------------------


class Own:
    """An exporter without a ``closed`` attribute, which can be used again."""

    def __init__(self) -> None:
        self.spans = 0
        self.times_closed = 0

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        self.spans += len(batch.spans)
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.times_closed += 1


class OwnWithAMethod(Own):
    """Has an attribute ``closed`` that is not True."""

    def closed(self) -> bool:
        return True


async def test_the_error_for_entering_with_an_exporter_that_a_batcher_has_closed_names_it_and_the_remedy() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter):
        pass
    second = SpanBatcher(exporter)
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(2):
        with pytest.raises(
            trio.ClosedResourceError, match=r"the InMemoryExporter is closed.*make an exporter for each batcher"
        ):
            async with second:
                pytest.fail("was entered")
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    with pytest.raises(RuntimeError, match="not entered"):
        second.add_span_nowait("a", make_span())


async def test_entering_with_an_otlp_exporter_that_is_closed_raises_and_does_not_close_it_again() -> None:
    async with OTLPReceiver(listen=False) as server:
        exporter = OTLPExporter(server.url, transport=server.memory_transport())
        closed = [exporter.closed]
        async with SpanBatcher(exporter, batch=ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
        assert batcher.statistics().delivered == 1
        assert [*closed, exporter.closed] == [False, True]
        with pytest.raises(trio.ClosedResourceError, match="the OTLPExporter is closed"):
            async with SpanBatcher(exporter):
                pytest.fail("was entered")


@pytest.mark.parametrize("exporter", [Own(), OwnWithAMethod()])
async def test_a_custom_exporter_that_can_be_used_again_is_used_again(exporter: Own) -> None:
    for _ in range(2):
        async with SpanBatcher(exporter, batch=ONE) as batcher:
            batcher.add_span_nowait("a", make_span())
    assert (exporter.spans, exporter.times_closed) == (2, 2)


async def test_the_reason_says_if_another_batcher_has_closed_the_exporter(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, ONE) as first:
        async with watched_batcher(exporter, ONE) as second:
            second.add_span_nowait("a", make_span())
        first.add_span_nowait("a", make_span())
        await first.flush()
    assert [loss.reason for loss in first.undelivered] == ["the exporter is closed; make an exporter for each batcher"]
    assert second.statistics().delivered == 1
