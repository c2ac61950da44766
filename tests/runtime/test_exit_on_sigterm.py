"""`exit_on_sigterm`, with signals to this process. tests/processes/test_real_processes.py sends them to programs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.support.batchers import make_spans
from trio_spanbatch import SpanBatcher, exit_on_sigterm
from trio_spanbatch.testing import InMemoryExporter

TERMINATED = 128 + signal.SIGTERM


@pytest.fixture(autouse=True)
def handler() -> Iterator[object]:
    """The program's own handler, which must be restored."""

    def own(*_: object) -> None:
        raise AssertionError("the program's handler was called")

    before = signal.signal(signal.SIGTERM, own)
    try:
        yield own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_sigterm_cancels_the_code_inside_and_the_program_exits_with_143_after_the_drain() -> None:
    exporter = InMemoryExporter()
    with pytest.raises(SystemExit) as caught, exit_on_sigterm():
        async with SpanBatcher(exporter) as batcher:
            await batcher.add_spans("a", make_spans(5))
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep_forever()
    assert caught.value.code == TERMINATED
    assert len(exporter.delivered["a"]) == 5


async def test_sigterm_in_the_drain_lets_it_continue_and_further_ones_have_no_effect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def terminate_repeatedly(_: object) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)

    exporter = InMemoryExporter(terminate_repeatedly, delay=5)
    with pytest.raises(SystemExit) as caught, exit_on_sigterm():
        async with SpanBatcher(exporter) as batcher:
            await batcher.add_spans("a", make_spans(5))
    assert caught.value.code == TERMINATED
    assert batcher.statistics().delivered == 5


async def test_without_a_signal_it_does_nothing() -> None:
    with exit_on_sigterm():
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("terminated", [False, True])
async def test_another_exception_of_the_code_inside_propagates_unchanged(terminated: bool) -> None:
    error = ValueError("x")
    with pytest.raises(ValueError, match="x") as caught, exit_on_sigterm():
        try:
            if terminated:
                signal.raise_signal(signal.SIGTERM)
            await trio.lowlevel.checkpoint()
        finally:
            raise error
    assert caught.value is error


async def test_code_inside_that_swallows_the_cancel_still_exits() -> None:
    with pytest.raises(SystemExit) as caught, exit_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
    assert caught.value.code == TERMINATED


async def test_a_cancel_from_outside_passes_through() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with exit_on_sigterm():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_handler_that_python_cannot_restore_becomes_the_default(  # noqa: ASYNC124  # it must be in a trio task
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed: list[object] = []
    # Undone before trio restores the handler of SIGINT.
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda _, handler: installed.append(handler))
        with exit_on_sigterm():
            pass
    assert installed[1] == signal.SIG_DFL


def test_outside_of_trio_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="can be used only in a trio task of the main thread"), exit_on_sigterm():
        raise AssertionError("it was entered")


def test_in_another_thread_it_is_an_error_there() -> None:
    async def main() -> None:  # noqa: ASYNC124  # it must be in a trio task
        with pytest.raises(RuntimeError, match="can be used only in a trio task of the main thread"), exit_on_sigterm():
            raise AssertionError("it was entered")

    failed: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: ASYNC103  # reported in the other thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed
