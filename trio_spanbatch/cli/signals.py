"""Turn Ctrl-C and SIGTERM into a cancellation and an exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

import attrs
import trio


@attrs.define
class Interrupt:
    """Cancels ``scope`` at the first signal."""

    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)  # the scope to cancel
    signal: Signals | None = None  # the last signal, None if there was none

    async def watch(self, *numbers: Signals, task_status: trio.TaskStatus[None]) -> None:
        """Wait for signals until cancelled. Outside of the main thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            task_status.started()
            await trio.sleep_forever()
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                self._note(Signals(number))

    @contextmanager
    def body(self) -> Iterator[None]:
        """Make Ctrl-C cancel ``scope`` inside a batcher's body.

        The handler must be gone when the drain begins: a batcher ends its drain at a Ctrl-C only if no handler for
        SIGINT is installed.
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
        """Catch the KeyboardInterrupt that a batcher raises if Ctrl-C ended its drain early."""
        try:
            yield
        except* KeyboardInterrupt:
            self.signal = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """The exit code of a program that the signal ended; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal
