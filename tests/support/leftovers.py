"""What must not be left when a batcher was left: tasks, timers, connections, channels, and complaints about them.

Two parts. `no_complaints` goes around a whole `trio.run` and sees what ends up elsewhere than in an exception of its
own: warnings, what could not be raised (in a ``__del__``), log records with a traceback, and memory channels that were
not closed. `Rest` is used inside of a run and compares what lives afterwards with what lived before.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import attrs
import trio

__all__ = ["Rest", "no_complaints", "tasks_of_batchers"]


@contextmanager
def no_complaints(expected_tracebacks: Collection[str] = (), *, collect: bool = True) -> Iterator[None]:
    """Fail at the end if anybody complained, or left a memory channel open. Not inside of a trio run.

    Args:
        expected_tracebacks: Log records with a traceback are fine if one of these is part of their message.
        collect: Collect garbage at the end, so that what is dropped in a cycle is noticed. It costs little if
            `gc.freeze` was called before.
    """
    complaints = _Complaints(expected_tracebacks)
    channels = _Channels()
    with (
        warnings.catch_warnings(),
        mock.patch.object(sys, "unraisablehook", complaints.take_unraisable),
        mock.patch.object(trio, "open_memory_channel", channels),
    ):
        warnings.simplefilter("error")
        logging.getLogger().addHandler(complaints)
        try:
            yield
            if collect:
                gc.collect()
        finally:
            logging.getLogger().removeHandler(complaints)
    assert not complaints.seen, "\n".join(complaints.seen)
    assert not (left := channels.left()), "\n".join(left)


class _Complaints(logging.Handler):
    def __init__(self, expected_tracebacks: Collection[str]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._expected = tuple(expected_tracebacks)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and not any(expected in message for expected in self._expected):
            self.seen.append(f"logged: {logging.Formatter().format(record)}")

    # It gets a private type of sys.
    def take_unraisable(self, unraisable: Any) -> None:
        self.seen.append(f"could not be raised: {unraisable.exc_value!r} in {unraisable.object!r}")


class _Channels:
    """In place of `trio.open_memory_channel`: remembers what that returns."""

    def __init__(self) -> None:
        self._open: Any = trio.open_memory_channel
        self._opened: list[tuple[trio.MemorySendChannel[Any], trio.MemoryReceiveChannel[Any]]] = []

    def __getitem__(self, item: Any) -> _Channels:
        return self

    def __call__(self, max_buffer_size: float) -> tuple[trio.MemorySendChannel[Any], trio.MemoryReceiveChannel[Any]]:
        send, receive = self._open(max_buffer_size)
        self._opened.append((send, receive))
        return send, receive

    def left(self) -> list[str]:
        statistics = [send.statistics() for send, _ in self._opened]
        return [
            f"a channel is left: {found}"
            for found in statistics
            if found.open_send_channels or found.open_receive_channels or found.current_buffer_used
        ]


@attrs.frozen
class Rest:
    """What lives in a trio run at some moment.

    Attributes:
        tasks: The names of all tasks.
        next_deadline: Seconds until the next timer of any of them goes off.
    """

    tasks: Counter[str]
    next_deadline: float

    @classmethod
    def now(cls) -> Rest:
        """Return what lives now. The timers of the scopes that the caller itself is in are among it."""
        statistics = trio.lowlevel.current_statistics()
        tasks = Counter(task.name for task in _living())
        assert statistics.tasks_living == tasks.total()
        return cls(tasks, statistics.seconds_to_next_deadline)

    def assert_again(self) -> None:
        """Assert that what lives now is what lived then, without a timer."""
        now = Rest.now()
        assert now.tasks == self.tasks, f"tasks are left: {sorted((now.tasks - self.tasks).elements())}"
        assert now.next_deadline == math.inf, f"a timer is left, it goes off in {now.next_deadline} s"


def tasks_of_batchers() -> list[str]:
    """Return the names of the tasks that any batcher has started and that are alive."""
    names = [task.name for task in _living()]
    return sorted(
        name for name in names if name.startswith("trio_spanbatch") and not name.startswith("trio_spanbatch.testing")
    )


def _living() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = [root]
    while found:
        task = found.pop()
        yield task
        found += (child for nursery in task.child_nurseries for child in nursery.child_tasks)
