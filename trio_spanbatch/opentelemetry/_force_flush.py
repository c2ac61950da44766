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


def wait_for_flush(
    flush: Callable[[], Awaitable[bool]], token: trio.lowlevel.TrioToken, seconds: float, logger: AnyLogger
) -> bool:
    """Return whether everything was delivered within ``seconds``.

    Args:
        flush: Flushes, in the trio thread, and returns whether everything was delivered.
        token: The trio run.
        seconds: The longest time to wait.
        logger: Receives an exception of ``flush``, which would be a bug.

    Raises:
        trio.RunFinishedError: The run has ended.
    """
    scope = trio.CancelScope()
    answer: Future[bool] = Future()

    async def run() -> None:
        delivered = False
        try:
            with scope:
                delivered = await flush()
        except Exception:
            logger.exception("force_flush failed")
        finally:
            answer.set_result(delivered)

    def start() -> None:
        try:
            trio.lowlevel.spawn_system_task(run, name="trio_spanbatch force_flush")
        except RuntimeError:
            # The run is ending and starts no more tasks.
            answer.set_exception(trio.RunFinishedError())

    token.run_sync_soon(start)
    try:
        return answer.result(min(max(seconds, 0.0), threading.TIMEOUT_MAX))
    except TimeoutError:
        return False
    finally:
        if not answer.done():
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
