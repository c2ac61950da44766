"""The worlds in which scenarios run: the same program with different servers behind it.

A `Script` gives the server's answer to each request. In a `MemoryWorld`, an `InMemoryExporter` follows the script. In
an `HTTPWorld`, the real exporter sends real requests (gzip, credentials, httpcore's pool, h11) over memory streams to a
real server, which follows the same script in terms of HTTP: a ``TryLater`` is a 503 or, if its outcome is unknown, a
broken connection. A server cannot refuse a connection, so `Settings.refused` says how many the network refuses first.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import attrs
import trio

from tests.spool.batchers import stored_ids, use_store
from tests.spool.memory import MemoryStore
from tests.support.batchers import span_ids
from tests.support.deliveries import LOCATION_HEADER, exporter_to, ids_of_messages
from tests.support.oracle import Oracle
from trio_spanbatch import (
    Delivered,
    ExportResult,
    Limits,
    Loss,
    Refused,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanExporter,
    Spool,
    TryLater,
)
from trio_spanbatch._scheduler.orders import Lost
from trio_spanbatch._spool.store import NewRecord, Record
from trio_spanbatch.testing import (
    Answer,
    Hang,
    InMemoryExporter,
    MemoryNetwork,
    MemoryTransport,
    OTLPReceiver,
    Outcome,
    ReceivedRequest,
    Reset,
    partial_success,
)

__all__ = ["HTTPWorld", "MemoryWorld", "Script", "Settings", "Step", "World", "everything_is_delivered"]

# The server's answer to a request. An exception is raised by the exporter after the server has answered.
Step: TypeAlias = ExportResult | Hang | Exception

# Its arguments: the location, the ids of the spans, and the number of earlier requests for the location.
Script: TypeAlias = Callable[[str, Sequence[int], int], Step]


def everything_is_delivered(location: str, ids: Sequence[int], before: int) -> Step:
    return Delivered()


@attrs.frozen
class Settings:
    """The settings of a world.

    Attributes:
        script: The server's answers.
        delay: Seconds that the server needs for an answer.
        refused: How many connections are refused in an `HTTPWorld`, before any is accepted.
        closing_hangs: Whether the exporter's ``aclose()`` hangs until it is cancelled.
        shutdown_timeout: The batcher's argument.
        batcher: Other arguments of the batcher.
    """

    script: Script = everything_is_delivered
    delay: float = 0.0
    refused: int = 0
    closing_hangs: bool = False
    shutdown_timeout: float = 20.0
    batcher: Mapping[str, Any] = attrs.field(factory=dict)


class World(ABC):
    """A batcher, its server, and the scopes that can be cancelled.

    Attributes:
        oracle: Follows every span.
        scopes: The scopes by name. Every run enters all of them, so that runs differ only in the cancel.
        outside: A nursery around the ``async with`` of the batcher, for adders and flushers that outlive its body.
        entered: The scopes that were entered.
        victims: The ids of the spans of the adder that can be cancelled.
        when_lost: Called with each `Loss`, if set.
        active: The number of running exports for each location.
        limits: The batcher's.
    """

    outside: trio.Nursery

    def __init__(self, settings: Settings, *, spool: bool = False) -> None:
        self.settings = settings
        self.oracle = Oracle()
        self.scopes = {name: trio.CancelScope() for name in ("everything", "body", "adder", "flusher")}
        self.entered: set[str] = set()
        self.victims: set[int] = set()
        self.when_lost: Callable[[Loss], None] | None = None
        self._requests: Counter[str] = Counter()
        self.active: Counter[str] = Counter()
        self.limits = settings.batcher.get("limits") or Limits()
        self.oracle.batcher = self.batcher = SpanBatcher(
            _Counted(self.oracle.observe(self._make_exporter()), self.active, closing_hangs=settings.closing_hangs),
            **{
                "on_loss": self._on_loss,
                "rng": random.Random(1),
                "shutdown_timeout": settings.shutdown_timeout,
                "limits": self.limits,
                **settings.batcher,
                # Otherwise a flush would wait forever for spans of which the exporter never accepts any.
                **({"spool": Spool("/nowhere", max_age=100.0)} if spool else {}),
            },
        )
        self.store: _Store | None = None
        if spool:
            self.store = _Store(self.oracle)
            use_store(self.batcher, self.store)
            self._watch_losses(self.store, self.batcher._scheduler)

    def _watch_losses(self, store: _Store, scheduler: Any) -> None:
        """Tell the oracle which spans are dropped, as a loss of spans that were not read has only their number."""
        lost = scheduler.lost

        def tell(order: Lost, now: float) -> None:
            piece = order.piece
            _, encoded = store.disk.records[piece.record.token]
            self.oracle.cannot_be_read(order.name, span_ids(encoded)[piece.start : piece.start + piece.count])
            lost(order, now)

        scheduler.lost = tell

    # -- what programs do --------------------------------------------------------------------------------------

    def spans(self, count: int, *, size: int = 0) -> list[Span]:
        """Return new spans. Call this at the beginning, so that ids do not depend on the cancel."""
        return self.oracle.make_spans(count, size=size)

    async def add(self, location: str, spans: Sequence[Span]) -> None:
        """Add spans, waiting for space; stop when the batcher is closed."""
        with suppress(trio.ClosedResourceError):
            await self.oracle.add(location, spans)

    async def add_each(self, location: str, spans: Sequence[Span]) -> None:
        """Add spans with a call for each."""
        for span in spans:
            await self.add(location, [span])

    async def add_as_victim(self, location: str, spans: Sequence[Span]) -> None:
        """Add spans with a call for each, as the adder that can be cancelled."""
        self.victims |= {span.context.span_id for span in spans}
        with self._entered("adder"):
            await self.add_each(location, spans)

    async def add_list_as_victim(self, location: str, spans: Sequence[Span]) -> None:
        """Add spans in one call, as the adder that can be cancelled."""
        self.victims |= {span.context.span_id for span in spans}
        with self._entered("adder"):
            await self.add(location, spans)

    async def flush(self, location: str | None = None) -> None:
        """Flush, and check that the spans added before are accounted for. Stop when the batcher is closed."""
        statistics = self.batcher.statistics()
        chosen = statistics if location is None else statistics.locations.get(location)
        pending = 0 if chosen is None else chosen.queued + chosen.in_flight + chosen.spooled
        waited_for = self.oracle.pending(location)
        with suppress(trio.ClosedResourceError):
            report = await self.batcher.flush(location)
            told = report.delivered + report.rejected + report.undelivered + report.spooled
            assert told == pending, f"flush reports {told} spans, {pending} were pending"
            late = waited_for & self.oracle.pending(location)
            if report.spooled:
                late -= self.on_disk()
            assert not late, f"flush returned, and these are not accounted for: {sorted(late)}"

    async def flush_as_victim(self, location: str | None = None) -> None:
        """Flush as the flusher that can be cancelled."""
        with self._entered("flusher"):
            await self.flush(location)

    def _on_loss(self, loss: Loss) -> None:
        self.oracle.on_loss(loss)
        if self.when_lost is not None:
            self.when_lost(loss)

    def _entered(self, name: str) -> trio.CancelScope:
        self.entered.add(name)
        return self.scopes[name]

    # -- the server --------------------------------------------------------------------------------------------

    def decide(self, location: str, ids: Sequence[int]) -> Step:
        """Return the script's answer to a request, and tell the oracle which spans it leaves out."""
        step = self.settings.script(location, ids, self._requests[location])
        self._requests[location] += 1
        if isinstance(step, Delivered) and step.rejected:
            # The last ones; see InMemoryExporter and Answer.rejected.
            self.oracle.left_out_of(ids, ids[-step.rejected :])
        return step

    def on_disk(self) -> set[int]:
        """Return the ids of the spans in the spool."""
        return set() if self.store is None else stored_ids(self.store.disk)

    # -- for the runner ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Run the server."""
        yield

    @abstractmethod
    async def come_to_rest(self) -> None:
        """Wait until the server has finished the requests that its clients gave up."""

    @abstractmethod
    def stored(self) -> list[tuple[str, int]]:
        """Return the location and id of each span that the server stored."""

    @abstractmethod
    def what_the_exporter_left(self) -> list[str]:
        """Describe the parts of the exporter that are still open."""

    @abstractmethod
    def _make_exporter(self) -> SpanExporter: ...


class _Store(MemoryStore):
    """A spool whose operations take some time, and that tells the oracle of commits whose end is unknown."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.lands = True
        self._oracle = oracle

    async def open(self) -> None:
        await super().open()
        self.slow = 0.03

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        try:
            return await super().commit(records, settled)
        except trio.Cancelled:
            self._oracle.commit_is_doubtful(span_id for record in records for span_id in span_ids(record.spans))
            raise


class MemoryWorld(World):
    """A world without a network."""

    _exporter: InMemoryExporter

    async def come_to_rest(self) -> None:
        """There is no server."""

    def stored(self) -> list[tuple[str, int]]:
        delivered = self._exporter.delivered.items()
        return [(location, span_id) for location, spans in delivered for span_id in span_ids(spans)]

    def what_the_exporter_left(self) -> list[str]:
        return [] if self._exporter.closed else ["the exporter was not closed"]

    def _make_exporter(self) -> SpanExporter:
        self._exporter = InMemoryExporter(
            lambda batch: self.decide(batch.location, span_ids(batch.spans)),
            delay=self.settings.delay,
        )
        return self._exporter


class HTTPWorld(World):
    """A world with the whole HTTP path except sockets."""

    def __init__(self, settings: Settings, *, spool: bool = False) -> None:
        self._failures: dict[tuple[int, ...], Exception] = {}
        self._connections = 0
        super().__init__(settings, spool=spool)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self._receiver:
            yield

    async def come_to_rest(self) -> None:
        # The server may be slow, and there is no event for the end of a request whose client has gone.
        await trio.sleep(10)
        assert not self._receiver.open_connections

    def stored(self) -> list[tuple[str, int]]:
        stored = self._receiver.stored.items()
        return [(location, span_id) for location, spans in stored for span_id in ids_of_messages(spans)]

    def what_the_exporter_left(self) -> list[str]:
        left = [] if self._transport._closed else ["the transport was not closed"]
        return left + [f"connections are idle: {idle}" for idle in self._transport._idle.items()]

    def _make_exporter(self) -> SpanExporter:
        self._receiver = OTLPReceiver(listen=False, location_header=LOCATION_HEADER, answers=self._answer)
        network = MemoryNetwork(self._accepts)
        network.connect_delay = 0.001
        self._transport = MemoryTransport(network)
        self._exporter = exporter_to(
            self._receiver,
            transport=self._transport,
            timeout=float("inf"),
            compression="gzip",
            auth=_credentials,
        )
        return _Failing(self._exporter, self._failures)

    def _accepts(self, stream: trio.abc.Stream) -> bool:
        """Serve a connection. Return False if it is refused."""
        self._connections += 1
        return self._connections > self.settings.refused and self._receiver.network._serve(stream)

    def _answer(self, request: ReceivedRequest) -> Outcome:
        ids = ids_of_messages(request.spans)
        step = self.decide(request.location, ids)
        delay = self.settings.delay
        match step:
            case Hang():
                return step
            case TryLater(endpoint=True):
                # The network has refused connections instead.
                return attrs.evolve(request.default_answer, delay=delay)
            case TryLater(ambiguous=True):
                return Reset(store=True)
            case TryLater(after=after):
                return Answer(503, headers=[] if after is None else [("retry-after", f"{after:.0f}")], delay=delay)
            case Refused(status_code=int(status)):
                return Answer(status, delay=delay)
            case Delivered(rejected=rejected, message=message) if rejected or message:
                return attrs.evolve(partial_success(rejected, message), delay=delay)
            case Delivered():
                return attrs.evolve(request.default_answer, delay=delay)
            case Exception():
                self._failures[tuple(ids)] = step
                return attrs.evolve(request.default_answer, delay=delay)
        raise TypeError(f"{step!r} has no equivalent in HTTP")


async def _credentials(location: str) -> Mapping[str, str]:
    await trio.lowlevel.checkpoint()
    return {"authorization": "Bearer token"}


@attrs.frozen(eq=False)
class _Failing:
    """An exporter that raises the exceptions of the server's script, after its request was answered."""

    _exporter: SpanExporter
    _failures: Mapping[tuple[int, ...], Exception]

    async def export(self, batch: SpanBatch) -> ExportResult:
        result = await self._exporter.export(batch)
        if (failure := self._failures.get(tuple(span_ids(batch.spans)))) is not None:
            raise failure
        return result

    async def aclose(self) -> None:
        await self._exporter.aclose()


@attrs.frozen(eq=False)
class _Counted:
    """An exporter that counts its running exports, and whose `aclose` may close it and then hang."""

    _exporter: SpanExporter
    _active: Counter[str]
    _closing_hangs: bool

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._active[batch.location] += 1
        try:
            return await self._exporter.export(batch)
        finally:
            self._active[batch.location] -= 1

    async def aclose(self) -> None:
        await self._exporter.aclose()
        if self._closing_hangs:
            await trio.sleep_forever()
