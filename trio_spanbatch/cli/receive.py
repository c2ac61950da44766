"""``trio-spanbatch receive``: an OTLP/HTTP server for development, with an optional SQLite store."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import trio

from ..testing import OTLPReceiver
from .collector import Collector
from .screen import Screen
from .signals import Interrupt
from .store import SpanStore

# The shortest time between two lines of counts, in seconds.
_INTERVAL = 1.0


async def receive(host: str, port: int, store: Path | None, location_header: str | None, screen: Screen) -> None:
    """Serve until a signal arrives.

    Args:
        host: The address to listen on.
        port: The port; 0 selects a free one.
        store: The SQLite file; if None, spans are only counted.
        location_header: The header that carries a request's location; if None, all requests are for ``default``.
        screen: The output.

    Raises:
        OSError: If the server cannot listen on the address.
        sqlite3.Error: If the store cannot be opened.
    """
    interrupt = Interrupt()
    failure: OSError | sqlite3.Error | None = None
    collector = Collector(None, screen.warn)
    receiver = OTLPReceiver(
        host=host,
        port=port,
        location_header=location_header,
        answers=collector.answer,
        on_request=collector.count,
        keep=False,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(interrupt.watch, signal.SIGINT, signal.SIGTERM)
        with interrupt.scope:
            try:
                await _serve(receiver, store, collector, screen)
            except (OSError, sqlite3.Error) as error:
                # Raised outside of the nursery, which would wrap it in an exception group.
                failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    screen.say(f"ended: {collector.counts}")


async def _serve(receiver: OTLPReceiver, store: Path | None, collector: Collector, screen: Screen) -> None:
    # The store is closed after the receiver, which may store spans until then.
    with ExitStack() as stack:
        async with receiver:
            if store is not None:
                # Opened after listening has succeeded, so that a failure leaves no file behind. No request can have
                # arrived yet, as there was no checkpoint.
                collector.store = stack.enter_context(closing(SpanStore(store)))
            screen.say(f"listening on {receiver.url}")
            if store is not None:
                screen.say(f"storing in {store}")
            await _show_counts(collector, screen)


async def _show_counts(collector: Collector, screen: Screen) -> None:
    while True:
        await collector.wait_for_change()
        screen.say(str(collector.counts))
        await trio.sleep(_INTERVAL)
