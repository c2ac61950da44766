"""``force_flush``: a flush that is waited for in another thread, for no longer than it may take there.

The thread asks trio's for a flush, by its token, and waits for the answer on the real clock, whatever the trio thread
does meanwhile: if its loop is stalled, the answer does not come, and that is the answer. The flush runs in a system
task, so that it belongs to nobody's nursery, and is cancelled when nobody waits for it any more; that takes nothing
back, the spans are delivered later.
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
    """One call of ``force_flush`` that waits.

    Args:
        flush: Flushes; called in the trio thread. It returns whether all was delivered.
        logger: Told of an exception out of ``flush``, which would be a bug.
    """

    def __init__(self, flush: Callable[[], Awaitable[bool]], logger: AnyLogger) -> None:
        self._flush = flush
        self._logger = logger
        self._scope = trio.CancelScope()
        self._answer: Future[bool] = Future()

    def wait(self, token: trio.lowlevel.TrioToken, seconds: float) -> bool:
        """Return whether all was delivered within ``seconds``.

        Raises:
            trio.RunFinishedError: The run is over.
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
            # The run is so close to its end that it starts no tasks any more.
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
