"""``trio-spanbatch receive``: an OTLP/HTTP server for development, with a store to look into."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path

import attrs
import trio

from ..testing import OTLPReceiver
from .collector import Collector
from .screen import Screen
from .signals import Interrupt
from .store import SpanStore

__all__ = ["ReceiveSettings", "receive"]

# Seconds between two lines of counts, at least.
_INTERVAL = 1.0


@attrs.frozen(kw_only=True)
class ReceiveSettings:
    """What to listen on and where to store.

    Attributes:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        store: The SQLite file; None: spans are counted and thrown away.
        location_header: The header that carries a request's location; None: all are in ``default``.
    """

    host: str
    port: int
    store: Path | None
    location_header: str | None


async def receive(settings: ReceiveSettings, screen: Screen) -> None:
    """Serve until a signal comes.

    Raises:
        OSError: The address cannot be listened on.
        sqlite3.Error: The store cannot be opened.
    """
    interrupt = Interrupt()
    failure: OSError | None = None
    store = None if settings.store is None else SpanStore(settings.store)
    with nullcontext() if store is None else closing(store):
        collector = Collector(store, screen.warn)
        async with trio.open_nursery() as nursery:
            await nursery.start(interrupt.watch)
            with interrupt.scope:
                try:
                    await _serve(settings, collector, screen)
                except OSError as error:
                    # Kept out of the nursery, which would put it into a group.
                    failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    screen.say(f"ended: {collector.counts}")


async def _serve(settings: ReceiveSettings, collector: Collector, screen: Screen) -> None:
    receiver = OTLPReceiver(
        host=settings.host,
        port=settings.port,
        location_header=settings.location_header,
        answers=collector.answer,
        on_request=collector.count,
        keep=False,
    )
    async with receiver:
        screen.say(f"listening on {receiver.url}")
        if settings.store is not None:
            screen.say(f"storing in {settings.store}")
        await _show_counts(collector, screen)


async def _show_counts(collector: Collector, screen: Screen) -> None:
    while True:
        await collector.wait_for_change()
        screen.say(str(collector.counts))
        await trio.sleep(_INTERVAL)
