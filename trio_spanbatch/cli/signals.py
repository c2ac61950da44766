"""Ctrl-C and SIGTERM as a cancel: programs end in order, and their exit codes say what ended them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

import attrs
import trio

__all__ = ["Interrupt"]


@attrs.define
class Interrupt:
    """Cancels ``scope`` at the first signal.

    Attributes:
        scope: What is cancelled.
        signal: The signal that came, None as long as there was none.
    """

    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    signal: Signals | None = None

    async def watch(self, *numbers: Signals, task_status: trio.TaskStatus[None]) -> None:
        """Wait for signals until cancelled. They come to the main thread; in another one it waits for nothing."""
        if threading.current_thread() is not threading.main_thread():
            task_status.started()
            await trio.sleep_forever()
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                self._note(Signals(number))

    @contextmanager
    def body(self) -> Iterator[None]:
        """Have Ctrl-C cancel ``scope`` in here, the body of a batcher.

        Not in the drain that follows: a batcher leaves SIGINT to a handler that somebody has set, and ends its drain at
        once only if there is none.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        token = trio.lowlevel.current_trio_token()
        before = signal.signal(
            signal.SIGINT, lambda *_: token.run_sync_soon(self._note, signal.SIGINT, idempotent=True)
        )
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number: Signals) -> None:
        self.signal = number
        self.scope.cancel()

    @contextmanager
    def absorb(self) -> Iterator[None]:
        """End a KeyboardInterrupt here: a batcher raises one after a drain that a Ctrl-C has cut short."""
        try:
            yield
        except* KeyboardInterrupt:
            self.signal = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """What a shell reports for a program that such a signal ended, 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal
