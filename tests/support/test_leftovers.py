"""Every kind of thing that a batcher must not leave behind is noticed."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from tests.support.batchers import make_span
from tests.support.leftovers import Rest, no_complaints, tasks_of_batchers
from tests.support.seeded_trio import run_seeded
from trio_spanbatch import BatchPolicy, Limits, SpanBatcher
from trio_spanbatch.testing import InMemoryExporter

LOGGER = logging.getLogger("trio_spanbatch")


class Unraisable:
    def __del__(self) -> None:
        raise KeyError("nobody sees this")


class InACycle(Unraisable):
    def __init__(self) -> None:
        self.me = self


async def leave_a_channel_open() -> None:
    send, _ = trio.open_memory_channel[int](1)
    send.close()
    await trio.lowlevel.checkpoint()


async def leave_something_in_a_channel() -> None:
    send, receive = trio.open_memory_channel[int](1)
    receive.close()
    other, unread = trio.open_memory_channel[int](1)
    other.send_nowait(1)
    other.close()
    send.close()
    await trio.lowlevel.checkpoint()
    del unread


async def warn() -> None:
    await trio.lowlevel.checkpoint()
    warnings.warn("something is deprecated", stacklevel=1)


async def log_a_traceback() -> None:
    await trio.lowlevel.checkpoint()
    try:
        raise KeyError
    except KeyError:
        LOGGER.exception("the exporter raised")


async def raise_in_del() -> None:
    await trio.lowlevel.checkpoint()
    Unraisable()


async def raise_in_del_later() -> None:
    await trio.lowlevel.checkpoint()
    InACycle()


async def leave_a_generator() -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC102  # it is never reached

    await anext(numbers())


@pytest.mark.parametrize(
    ("leave", "complaint"),
    [
        (leave_a_channel_open, "a channel is left: .*open_receive_channels=1"),
        (leave_something_in_a_channel, "a channel is left: .*current_buffer_used=1"),
        (log_a_traceback, "logged: the exporter raised\nTraceback"),
        (raise_in_del, "could not be raised: KeyError"),
        (raise_in_del_later, "could not be raised: KeyError"),
        (leave_a_generator, "could not be raised: ResourceWarning"),
    ],
)
def test_an_unexpected_log_message_is_noticed(leave: Callable[[], Awaitable[None]], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint), no_complaints():
        run_seeded(1, leave)


def test_a_warning_is_an_exception() -> None:
    with pytest.raises(UserWarning, match="deprecated"), no_complaints():
        run_seeded(1, warn)


def test_an_expected_traceback_is_not_reported() -> None:
    with no_complaints(["exporter raised"]):
        run_seeded(1, log_a_traceback)


def test_garbage_is_not_collected_unless_requested() -> None:
    gc.disable()
    try:
        with no_complaints(collect=False):
            run_seeded(1, raise_in_del_later)
        with pytest.raises(AssertionError, match="could not be raised"), no_complaints():
            pass
    finally:
        gc.enable()


def test_after_a_run_all_patches_are_undone() -> None:
    before = trio.open_memory_channel, logging.getLogger().handlers[:], warnings.filters[:]
    with no_complaints():
        pass
    assert (trio.open_memory_channel, logging.getLogger().handlers, warnings.filters) == before


async def test_a_task_that_is_left_is_named() -> None:
    rest = Rest.now()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="a guest")
        with pytest.raises(AssertionError, match=r"tasks are left: \['a guest'\]"):
            rest.assert_again()
        nursery.cancel_scope.cancel()
    rest.assert_again()


async def test_a_timer_that_is_left_is_noticed() -> None:
    rest = Rest.now()
    with trio.move_on_after(3600):
        await trio.lowlevel.checkpoint()
        with pytest.raises(AssertionError, match="a timer is left, it goes off in 3"):
            rest.assert_again()
    rest.assert_again()


async def test_the_tasks_of_a_batcher_are_told_from_others() -> None:
    async with SpanBatcher(InMemoryExporter(), batch=BatchPolicy(max_delay=3600)) as batcher:
        batcher.add_span_nowait("a", make_span())
        assert tasks_of_batchers() == [
            "trio_spanbatch driver",
            "trio_spanbatch._runtime.supervisor.Supervisor._supervise",
        ]
    assert tasks_of_batchers() == []


def test_a_location_that_ends_by_itself_leaves_no_channel_open() -> None:
    async def live() -> None:
        async with SpanBatcher(InMemoryExporter(), limits=Limits(location_idle_timeout=1)) as batcher:
            await batcher.add_span("a", make_span())
            await trio.sleep(60)
            assert not batcher._live

    with no_complaints():
        run_seeded(1, live)
