"""``trio-spanbatch receive``: an OTLP/HTTP server for development, with an optional SQLite store."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import attrs
import trio

from ..testing import Answer, OTLPReceiver, Outcome, ReceivedRequest, partial_success
from .screen import Screen
from .signals import Interrupt
from .store import SpanStore, StoredCounts, has_ids

# The shortest time between two lines of counts, in seconds.
_INTERVAL = 1.0

_BAD_IDS = "a trace id must have 16 bytes, a span id 8, and neither may be all zero"


@attrs.define
class CollectorCounts:
    """Counts since the start."""

    requests: int = 0  # all requests that were answered
    refused: int = 0  # requests that were answered with an error
    spans: int = 0  # spans that were stored
    repeated: int = 0  # spans that had been stored before
    rejected: int = 0  # spans that were not stored because their ids are invalid
    locations: Counter[str] = attrs.Factory(Counter)  # spans that were stored, by location

    def __str__(self) -> str:
        parts = [
            _counted(self.spans, "span"),
            _counted(len(self.locations), "location"),
            _counted(self.requests, "request"),
            *(f"{count:,} {name}" for name in ("repeated", "rejected", "refused") if (count := getattr(self, name))),
        ]
        return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Collector:
    """Answers a receiver's requests. Spans are committed to the store before their request is acknowledged.

    Without a store, spans are only counted. ``warn`` is called with a message if the store fails.
    """

    def __init__(self, store: SpanStore | None, warn: Callable[[str], object]) -> None:
        self.counts: CollectorCounts = CollectorCounts()
        self.store: SpanStore | None = store
        self._warn = warn
        self._changed = trio.Event()

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        """Used as `OTLPReceiver`'s ``answers``."""
        if request.message is None or request.default_answer.status != 200:
            return None
        rejected = [span for span in request.spans if not has_ids(span)]
        counts = StoredCounts(len(request.spans) - len(rejected), 0)
        try:
            if self.store is not None:
                counts = self.store.add(request.location, request.message)
        except sqlite3.Error as error:
            self._warn(f"cannot store spans: {error}; answered 503, so that clients retry")
            return Answer(503, headers=[("retry-after", "1")], body=b"cannot write to the store")
        self.counts.spans += counts.stored
        self.counts.repeated += counts.repeated
        self.counts.locations[request.location] += counts.stored
        self.counts.rejected += len(rejected)
        return partial_success(len(rejected), _BAD_IDS, rejected_spans=rejected) if rejected else None

    def count(self, _request: ReceivedRequest, status: int | None) -> None:
        """Used as `OTLPReceiver`'s ``on_request``."""
        self.counts.requests += 1
        if status is None or status >= 300:
            self.counts.refused += 1
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Wait until another request has been counted since the last call."""
        await self._changed.wait()
        self._changed = trio.Event()


async def receive(host: str, port: int, store: Path | None, location_header: str | None, screen: Screen) -> None:
    """Serve until a signal arrives. Without a ``store``, spans are only counted."""
    interrupt = Interrupt()
    collector = Collector(None, screen.warn)
    receiver = OTLPReceiver(
        host=host,
        port=port,
        location_header=location_header,
        answers=collector.answer,
        on_request=collector.count,
        keep=False,
    )
    # The store is closed after the receiver, which may store spans until then.
    with interrupt.on(signal.SIGINT, signal.SIGTERM), interrupt.scope, ExitStack() as stack:
        async with receiver:
            if store is not None:
                # Opened after listening has succeeded, so that a failure leaves no file behind. No request can have
                # arrived yet, as there was no checkpoint.
                collector.store = stack.enter_context(closing(SpanStore(store)))
            screen.say(f"listening on {receiver.url}")
            if store is not None:
                screen.say(f"storing in {store}")
            while True:
                await collector.wait_for_change()
                screen.say(str(collector.counts))
                await trio.sleep(_INTERVAL)
    screen.say(f"ended: {collector.counts}")
