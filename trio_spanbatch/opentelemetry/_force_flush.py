"""``force_flush``: wait for a flush in a thread other than trio's, with a timeout.

The flush runs in a system task of trio, independent of all nurseries. The calling thread waits for its result on the
real clock, so that a stalled trio loop makes it time out too. Then the flush is cancelled; the spans are delivered
later.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress

import trio

from .._reporting.log import AnyLogger

__all__ = ["WaitingFlush"]


class WaitingFlush:
    """A call of ``force_flush`` that waits.

    Args:
        flush: Flushes, in the trio thread, and returns whether everything was delivered.
        logger: Receives an exception of ``flush``, which would be a bug.
    """

    def __init__(self, flush: Callable[[], Awaitable[bool]], logger: AnyLogger) -> None:
        self._flush = flush
        self._logger = logger
        self._scope = trio.CancelScope()
        self._answer: Future[bool] = Future()

    def wait(self, token: trio.lowlevel.TrioToken, seconds: float) -> bool:
        """Return whether everything was delivered within ``seconds``.

        Raises:
            trio.RunFinishedError: The run has ended.
        """
        token.run_sync_soon(self._start)
        try:
            return self._answer.result(min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        except TimeoutError:
            return False
        finally:
            if not self._answer.done():
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._scope.cancel)

    def _start(self) -> None:
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_spanbatch force_flush")
        except RuntimeError:
            # The run is ending and starts no more tasks.
            self._answer.set_exception(trio.RunFinishedError())

    async def _run(self) -> None:
        delivered = False
        try:
            with self._scope:
                delivered = await self._flush()
        except Exception:
            self._logger.exception("force_flush failed")
        finally:
            self._answer.set_result(delivered)
