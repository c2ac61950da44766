"""`exit_on_sigterm`: end a program on SIGTERM with a cancel, so that its batchers drain."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import trio


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Cancel the code inside on SIGTERM, and raise ``SystemExit(143)`` once it has ended.

    Use it around everything else in the main task, so that batchers inside drain before the program ends::

        with exit_on_sigterm():
            async with SpanBatcher(shutdown_timeout=8) as batcher:
                await serve(batcher)

    143 is what shells report for a program that SIGTERM ended. If the code inside ends with an exception other than the
    cancel, that propagates instead. A second SIGTERM has no further effect. The previous handler is restored at the
    end.

    Raises:
        RuntimeError: Trio is not running here, or this is not the main thread, which alone handles signals.
    """
    if not trio.lowlevel.in_trio_task() or threading.current_thread() is not threading.main_thread():
        raise RuntimeError("exit_on_sigterm() can be used only in a trio task of the main thread")
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()
    terminated = False

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # A signal can interrupt anything, so let trio cancel when it is ready.
        token.run_sync_soon(scope.cancel, idempotent=True)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with scope:
            yield
    finally:
        # None means that the handler was not installed by Python, so that it cannot be restored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if terminated:
        sys.exit(128 + signal.SIGTERM)
