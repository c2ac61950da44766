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

    @contextmanager
    def on(self, *numbers: Signals) -> Iterator[None]:
        """Make signals cancel ``scope`` during the body. Outside of the main thread there are none.

        With a batcher, SIGINT is for the batcher's body only: the handler must be gone when the drain begins, as a
        batcher ends its drain at a Ctrl-C only if no handler for SIGINT is installed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        token = trio.lowlevel.current_trio_token()

        def handle(number: int, _frame: object) -> None:
            token.run_sync_soon(self._note, Signals(number), idempotent=True)

        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
