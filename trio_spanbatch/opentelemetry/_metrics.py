"""The batcher's own metrics, following OpenTelemetry's semantic conventions.

https://opentelemetry.io/docs/specs/semconv/otel/sdk-metrics/ (status Development). The *processor* of the conventions
queues spans, the *exporter* receives a batch when it is sealed, and an *export operation* is a delivery with all its
attempts. So a span is first in ``queue.size``, becomes ``processed`` and ``inflight`` in one step when its batch is
sealed, and finally ``exported``. Spans that are dropped, or handed back from the queue, are ``processed`` with an
``error.type`` and never in flight.

All instruments but one are observable, as ``on_end`` must not take the locks of the metrics SDK: a finalizer that ends
a span would deadlock. Readers call from their own threads, so each value is a single number or a dict copied in one
step, and in a difference the subtrahend is read first, so that it is never negative. The histogram of durations is
recorded in the trio thread, once per delivery.

The conventions have nothing for the state of the server. Its gauges have names of our own.

``error.type`` is the failure of the last attempt: a status code, ``timeout``, or the name of an exception, if the
exporter reports one. To keep the cardinality low there is no location, and at most `MAX_ERROR_TYPES` values.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, ref

import trio
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from .._http.exporter import OTLPExporter
from .._reporting.statistics import EndpointStatistics, Settlement
from .._runtime.runtime import Runtime
from .._version import __version__
from ._tally import Tally

_logger = logging.getLogger(__name__)

QUEUE_SIZE: Final = "otel.sdk.processor.span.queue.size"
QUEUE_CAPACITY: Final = "otel.sdk.processor.span.queue.capacity"
PROCESSED: Final = "otel.sdk.processor.span.processed"
INFLIGHT: Final = "otel.sdk.exporter.span.inflight"
EXPORTED: Final = "otel.sdk.exporter.span.exported"
DURATION: Final = "otel.sdk.exporter.operation.duration"
UP: Final = "trio_spanbatch.endpoint.up"
STATE_DURATION: Final = "trio_spanbatch.endpoint.state.duration"
ATTEMPTS: Final = "trio_spanbatch.endpoint.attempts"
NEXT_PROBE: Final = "trio_spanbatch.endpoint.next_probe"

ERROR_TYPE: Final = "error.type"
STATUS_CODE: Final = "http.response.status_code"
ENDPOINT_NAME: Final = "trio_spanbatch.endpoint.name"

MAX_ERROR_TYPES: Final = 100

_PROCESSOR_TYPE: Final = "trio_spanbatch.opentelemetry.BatcherSpanProcessor"

_Attributes: TypeAlias = dict[str, str | int]


def _next_probe(endpoint: EndpointStatistics, now: float) -> float | None:
    due = endpoint.next_probe_at
    return None if due is None or due == math.inf else max(0.0, due - now)


# What is observed of an endpoint, given the time; None for nothing.
_ENDPOINT_GAUGES: Final[tuple[tuple[str, Callable[[EndpointStatistics, float], float | None], str, str], ...]] = (
    (UP, lambda endpoint, _: int(endpoint.is_up), "1", "Whether the server is up, as far as is known: 1 or 0."),
    (STATE_DURATION, lambda endpoint, now: max(0.0, now - endpoint.since), "s", "Time since it went up or down."),
    (ATTEMPTS, lambda endpoint, _: endpoint.attempts, "{attempt}", "Attempts that have ended since then."),
    (NEXT_PROBE, _next_probe, "s", "Time until the next attempt is due, while it is down."),
)


class _Instruments:
    """The instruments of a ``MeterProvider``, shared by all batchers that it measures.

    The SDK keeps one instrument per name and ignores the callbacks of a second one, so a single callback observes all
    batchers. The counts outlive their batcher, so that its last ones are still read.
    """

    def __init__(self, meter_provider: MeterProvider) -> None:
        self._members: tuple[BatcherMetrics, ...] = ()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        meter = meter_provider.get_meter("trio_spanbatch", __version__)
        current, total = meter.create_observable_up_down_counter, meter.create_observable_counter
        for create, name, observe, description in (
            (current, QUEUE_SIZE, BatcherMetrics.queue_size, "Queued spans."),
            (current, QUEUE_CAPACITY, BatcherMetrics.queue_capacity, "Capacity of the queues of all locations."),
            (total, PROCESSED, BatcherMetrics.processed, "Spans that were passed to the exporter, or dropped before."),
            (current, INFLIGHT, BatcherMetrics.inflight, "Spans passed to the exporter whose export has not ended."),
            (total, EXPORTED, BatcherMetrics.exported, "Spans whose export has ended, successfully or not."),
        ):
            create(name, [partial(self._observe, observe)], "{span}", description)
        for name, read, unit, description in _ENDPOINT_GAUGES:
            observe = partial(BatcherMetrics.endpoints, read=read)
            meter.create_observable_gauge(name, [partial(self._observe, observe)], unit, description)
        description = "Duration of exporting a batch, including all attempts and the waits between them."
        try:
            # The conventions ask for no buckets: a count and a sum.
            self.duration = meter.create_histogram(DURATION, "s", description, explicit_bucket_boundaries_advisory=[])
        except TypeError:
            # Older versions of OpenTelemetry's API do not have this argument.
            self.duration = meter.create_histogram(DURATION, "s", description)

    def add(self, member: BatcherMetrics) -> None:
        self._members = (*self._members, member)

    def component(self, kind: str, name: str) -> _Attributes:
        """Return the attributes of a new component, numbered among those of its name."""
        return {"otel.component.type": kind, "otel.component.name": f"{name}/{next(self._numbers[name])}"}

    def _observe(
        self, observe: Callable[[BatcherMetrics], Iterable[Observation]], _: CallbackOptions
    ) -> Iterable[Observation]:
        for member in self._members:
            yield from observe(member)


_instruments: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()
_instruments_lock: Final = threading.Lock()


class BatcherMetrics:
    """Counts deliveries and reports a batcher's counts to a ``MeterProvider``. A `DeliveryObserver`."""

    def __init__(self, meter_provider: MeterProvider, runtime: Runtime, tally: Tally) -> None:
        self._runtime = ref(runtime)
        self._tally = tally
        # The clock of the batcher's run, which other threads can read; None before the first delivery.
        self._clock: trio.abc.Clock | None = None
        self._processed = 0
        # Spans that went back to the spool after a delivery, and are processed already when the next one begins.
        self._kept = 0
        self._handed_back = 0
        # By error.type; None for delivered spans.
        self._exported: Counter[str | None] = Counter()
        with _instruments_lock:
            instruments = _instruments.get(meter_provider)
            if instruments is None:
                instruments = _instruments[meter_provider] = _Instruments(meter_provider)
            self._processor = instruments.component(_PROCESSOR_TYPE, _PROCESSOR_TYPE)
            self._exporter = {**instruments.component(*_type_and_name(runtime.exporter)), **_server(runtime.exporter)}
            self._duration = instruments.duration
            instruments.add(self)

    # -- called by deliveries ----------------------------------------------------------------------------------

    def began(self, spans: int) -> None:
        self._clock = trio.lowlevel.current_clock()
        again = min(spans, self._kept)
        self._kept -= again
        self._processed += spans - again

    def kept(self, spans: int) -> None:
        """Count spans that go back to the spool, so that another delivery begins with them later."""
        self._kept += spans

    def settled(self, settlement: Settlement) -> None:
        self._exported[None] += settlement.delivered
        if settlement.rejected:
            self._exported[self._error_type(settlement, "rejected")] += settlement.rejected
        if settlement.undelivered:
            self._exported[self._error_type(settlement, "undelivered")] += settlement.undelivered

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        attributes = dict(self._exporter)
        if status_code is not None:
            attributes[STATUS_CODE] = status_code
        if loss is not None:
            attributes[ERROR_TYPE] = self._error_type(loss, "rejected" if loss.rejected else "undelivered")
        try:
            self._duration.record(seconds, attributes)
        except Exception:
            # A failing instrument must not end the delivery.
            _logger.exception("recording %s failed", DURATION)

    def _error_type(self, settlement: Settlement, outcome: str) -> str:
        status = settlement.status_code
        error = settlement.cause[:100] or outcome if status is None else str(status)
        # "_OTHER" is the conventions' value for all other errors.
        return error if error in self._exported or len(self._exported) < MAX_ERROR_TYPES else "_OTHER"

    def handed_back(self, spans: int) -> None:
        """Count spans that were handed back without having been passed to the exporter."""
        self._handed_back += spans

    # -- called by readers, in their threads -------------------------------------------------------------------

    def queue_size(self) -> Iterable[Observation]:
        """Yield the number of spans in the queues, including those handed over by other threads."""
        if (runtime := self._runtime()) is not None:
            queued = runtime.scheduler.ledger.total.queued
            yield Observation(queued + self._tally.statistics().handed_over, self._processor)

    def queue_capacity(self) -> Iterable[Observation]:
        """Yield the capacity of all locations' queues; before there is a location, that of one."""
        if (runtime := self._runtime()) is not None:
            scheduler = runtime.scheduler
            yield Observation(scheduler.limits.max_queued_spans * max(1, len(scheduler.locations)), self._processor)

    def processed(self) -> Iterable[Observation]:
        """Yield the number of spans that left the queue, or were never accepted, by ``error.type``."""
        failed = {**self._tally.statistics().dropped, "undelivered": self._handed_back}
        yield Observation(self._processed, self._processor)
        for error, count in failed.items():
            if count:
                yield Observation(count, {**self._processor, ERROR_TYPE: error})

    def inflight(self) -> Iterable[Observation]:
        exported = self._exported.copy().total()
        return [Observation(self._processed - self._kept - exported, self._exporter)]

    def exported(self) -> Iterable[Observation]:
        """Yield the number of spans whose delivery has settled them, by ``error.type``."""
        for error, count in self._exported.copy().items():
            yield Observation(count, self._exporter if error is None else {**self._exporter, ERROR_TYPE: error})

    def endpoints(self, *, read: Callable[[EndpointStatistics, float], float | None]) -> Iterable[Observation]:
        """Yield a number for each server that is in use, as soon as something was sent."""
        if (runtime := self._runtime()) is None or (clock := self._clock) is None:
            return
        for name, endpoint in runtime.scheduler.endpoints().items():
            value = read(endpoint, clock.current_time())
            if value is not None:
                yield Observation(value, {**self._exporter, ENDPOINT_NAME: name} if name else self._exporter)


def _type_and_name(exporter: object) -> tuple[str, str]:
    if isinstance(exporter, OTLPExporter):
        # The conventions' type for OTLP over HTTP in protobuf. The SDK's own exporters are counted under it too.
        return "otlp_http_span_exporter", "trio_spanbatch.OTLPExporter"
    name = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
    return name, name


def _server(exporter: object) -> _Attributes:
    """Return the server's address and port, if the exporter has an ``endpoint``."""
    try:
        parts = urlsplit(str(getattr(exporter, "endpoint", "")))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return {}
    if not parts.hostname:
        return {}
    return {"server.address": parts.hostname, **({} if port is None else {"server.port": port})}
