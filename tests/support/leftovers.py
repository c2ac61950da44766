"""Check that a batcher leaves nothing behind: no task, timer, connection, channel or complaint about one.

`no_complaints` goes around a whole `trio.run` and finds problems that raise no exception: warnings, unraisable
exceptions (in a ``__del__``), log records with a traceback, and memory channels that were not closed. `Rest` is used
inside a run and compares the tasks and timers afterwards with those before.
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
    """Fail at the end if there was a complaint or a memory channel is open. Not for use inside a trio run.

    Args:
        expected_tracebacks: Log records with a traceback are allowed if their message contains one of these.
        collect: Collect garbage at the end, so that objects dropped in a cycle are noticed. It costs little if
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

    # The argument's type is private to sys.
    def take_unraisable(self, unraisable: Any) -> None:
        self.seen.append(f"could not be raised: {unraisable.exc_value!r} in {unraisable.object!r}")


class _Channels:
    """A replacement of `trio.open_memory_channel` that remembers the channels."""

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
    """The tasks and timers of a trio run at some moment.

    Attributes:
        tasks: The names of all tasks.
        next_deadline: Seconds until the next deadline of any task.
    """

    tasks: Counter[str]
    next_deadline: float

    @classmethod
    def now(cls) -> Rest:
        """Return the present tasks and timers, including those of scopes around the caller."""
        statistics = trio.lowlevel.current_statistics()
        tasks = Counter(task.name for task in _living())
        assert statistics.tasks_living == tasks.total()
        return cls(tasks, statistics.seconds_to_next_deadline)

    def assert_again(self) -> None:
        """Check that the same tasks are alive, and no timer is set."""
        now = Rest.now()
        assert now.tasks == self.tasks, f"tasks are left: {sorted((now.tasks - self.tasks).elements())}"
        assert now.next_deadline == math.inf, f"a timer is left, it goes off in {now.next_deadline} s"


def tasks_of_batchers() -> list[str]:
    """Return the names of the living tasks that batchers have started."""
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
