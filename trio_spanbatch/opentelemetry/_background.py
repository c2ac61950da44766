"""`background_batcher`: a `SpanBatcher` for programs that do not run on trio, in a thread that does."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from typing import Any

import outcome
import trio

from .._batcher import SpanBatcher
from .._exporter import SpanExporter
from ._location import LocationFunction
from ._processor import BatcherSpanProcessor


def background_batcher(
    exporter: SpanExporter | None = None, *, location: str | LocationFunction = "default", **options: Any
) -> AbstractContextManager[BatcherSpanProcessor]:
    """Run a `SpanBatcher` in a thread, for programs on asyncio or without an event loop.

    Use it around everything else, for instance around ``asyncio.run``::

        with background_batcher() as processor:
            tracer_provider.add_span_processor(processor)
            asyncio.run(main())

    When the ``with`` ends, for any reason, an exception and Ctrl-C included, the batcher drains as at the end of an
    ``async with``, within ``shutdown_timeout``: the caller waits until each accepted span is accounted for. A Ctrl-C
    during the drain ends it: the remaining spans are handed back and logged. Spans may end in any thread; see
    `BatcherSpanProcessor` for their limits. In a forked child they are dropped.

    Args:
        exporter: As for `SpanBatcher`.
        location: As for `BatcherSpanProcessor`.
        options: The other arguments of `SpanBatcher`. ``on_loss`` is called in the thread of the batcher.

    Returns:
        A context manager. It returns the span processor; the batcher is its ``batcher``.

    Raises:
        RuntimeError: This is a trio program, which needs no thread.
        TypeError: As for `SpanBatcher`.
        ValueError: As for `SpanBatcher`.
        UndeliveredSpansError: At the end, with ``strict=True``, as for `SpanBatcher`.
    """
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("background_batcher() blocks its thread; in a trio program use `async with SpanBatcher()`")
    batcher = SpanBatcher(exporter, **options)
    return _running(_Background(batcher), BatcherSpanProcessor(batcher, location))


@contextmanager
def _running(background: _Background, processor: BatcherSpanProcessor) -> Iterator[BatcherSpanProcessor]:
    # For a `with` that is never left, because an ExitStack is never closed or a Ctrl-C comes between two lines below.
    atexit.register(background.end)
    try:
        background.start()
        yield processor
    except BaseException as error:
        background.conclude(error)
        raise
    background.conclude(None)


class _Background:
    """A thread in which a batcher runs until `end` is called."""

    def __init__(self, batcher: SpanBatcher) -> None:
        self._batcher = batcher
        self._result: outcome.Maybe[None] | None = None
        self._entered = threading.Event()
        self._is_leaving = False
        self._leave = trio.Event()
        # Held until there is a result. A Ctrl-C in `Thread.join`, or in a method of `threading.Event`, may break them.
        self._running = threading.Lock()
        # A daemon, as Python waits for other threads before it calls the functions of atexit.
        # The context is the caller's, so that functions such as `on_loss` see its context variables.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="trio_spanbatch background", daemon=True
        )

    def _run(self) -> None:
        self._result = outcome.capture(trio.run, self._main)
        self._entered.set()
        self._running.release()

    async def _main(self) -> None:
        async with self._batcher:
            self._entered.set()
            if not self._is_leaving:
                await self._leave.wait()

    def start(self) -> None:
        """Return once the batcher is entered. Raise the exception if it cannot be entered."""
        self._running.acquire()
        self._thread.start()
        self._entered.wait()
        if isinstance(self._result, outcome.Error):
            self._result.unwrap()

    def end(self) -> None:
        """Leave the batcher, and return once it has drained. A Ctrl-C ends the drain. Can be called repeatedly."""
        self._is_leaving, interrupted = True, False
        while True:
            try:
                # In a forked child the thread is not alive.
                if self._result is not None or not self._thread.is_alive():
                    break
                self._call_soon(self._leave.set)
                if interrupted:
                    self._call_soon(self._batcher._supervisor.interrupt)
                self._running.acquire()
            except KeyboardInterrupt:
                interrupted = True
        if self._result is not None:
            self._thread.join()
        atexit.unregister(self.end)

    def _call_soon(self, function: Callable[[], None]) -> None:
        # Without a token, the batcher is not entered yet, and is left at once when it is.
        if (token := self._batcher._supervisor.token) is not None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function)

    def conclude(self, error: BaseException | None) -> None:
        """End. Add notes to the exception of the ``with``, if any. Raise one of the batcher that has precedence."""
        self.end()
        if error is not None:
            self._batcher._supervisor.add_notes(error)
        if not isinstance(self._result, outcome.Error) or (failure := self._result.error) is error:
            return
        ends_program = not isinstance(failure, Exception) and not isinstance(error, KeyboardInterrupt | SystemExit)
        if error is None or ends_program:
            raise failure
