"""The batcher's own metrics, as OpenTelemetry's semantic conventions name them.

https://opentelemetry.io/docs/specs/semconv/otel/sdk-metrics/ (status Development). The convention's words, in ours: the
*processor* is what takes spans and queues them, the *exporter* is what a batch is passed to when it is sealed, and an
*export operation* is a delivery with all its attempts. So a span is first in ``queue.size``, then counted as
``processed`` and ``inflight`` in one step when its batch is sealed, and at last counted as ``exported``. Spans that are
dropped, or handed back out of the queue, are ``processed`` with an ``error.type`` and never in flight.

All but one are observable instruments, which ask for the counts when somebody reads them: ``on_end`` must not take the
locks of the metrics SDK, in which a finalizer that ends a span would wait for its own thread. The reader asks in a
thread of its own. Everything that it gets is one number, or a dict that is copied in one step; what is read second was
counted first, so that no difference is ever negative. The histogram of durations is recorded in the trio thread, once
a delivery.

``error.type`` is the status code of the last response, or a word: cardinality stays low. So there is no location.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from .._ledger import Settlement
from .._shared import Shared
from .._version import __version__
from ..otlp.http import OTLPExporter
from ._tally import Tally

__all__ = ["BatcherMetrics"]

_logger = logging.getLogger(__name__)

QUEUE_SIZE: Final = "otel.sdk.processor.span.queue.size"
QUEUE_CAPACITY: Final = "otel.sdk.processor.span.queue.capacity"
PROCESSED: Final = "otel.sdk.processor.span.processed"
INFLIGHT: Final = "otel.sdk.exporter.span.inflight"
EXPORTED: Final = "otel.sdk.exporter.span.exported"
DURATION: Final = "otel.sdk.exporter.operation.duration"

ERROR_TYPE: Final = "error.type"
STATUS_CODE: Final = "http.response.status_code"

_SPANS: Final = "{span}"

# What the conventions call an exporter of OTLP over HTTP in protobuf. For all else they want its name in the language.
_OTLP_TYPE: Final = "otlp_http_span_exporter"
_PROCESSOR_TYPE: Final = "trio_spanbatch.opentelemetry.BatcherSpanProcessor"

# Numbers of components, unique within an SDK, that is within its MeterProvider.
_numbers: Final[WeakKeyDictionary[MeterProvider, defaultdict[str, Iterator[int]]]] = WeakKeyDictionary()


class BatcherMetrics:
    """Counts deliveries, and shows the counts of a batcher to a ``MeterProvider``. A `DeliveryObserver`."""

    def __init__(self, meter_provider: MeterProvider, shared: Shared, tally: Tally) -> None:
        self._shared = shared
        self._tally = tally
        self._processed = 0
        self._handed_back = 0
        # By error.type; None for what was delivered.
        self._exported: Counter[str | None] = Counter()
        self._processor = _component(meter_provider, _PROCESSOR_TYPE, _PROCESSOR_TYPE)
        self._exporter = {**_exporter_component(meter_provider, shared.exporter), **_server(shared.exporter)}
        meter = meter_provider.get_meter("trio_spanbatch", __version__)
        meter.create_observable_up_down_counter(
            QUEUE_SIZE, [self._observe_queue_size], _SPANS, "The number of spans that wait to be sent."
        )
        meter.create_observable_up_down_counter(
            QUEUE_CAPACITY, [self._observe_queue_capacity], _SPANS, "How many spans the queues of all locations hold."
        )
        meter.create_observable_counter(
            PROCESSED, [self._observe_processed], _SPANS, "The number of spans passed to the exporter, or dropped."
        )
        meter.create_observable_up_down_counter(
            INFLIGHT, [self._observe_inflight], _SPANS, "The number of spans passed to the exporter, not exported yet."
        )
        meter.create_observable_counter(
            EXPORTED, [self._observe_exported], _SPANS, "The number of spans whose export has ended, well or not."
        )
        self._duration = meter.create_histogram(
            DURATION, "s", "The duration of exporting a batch, repetitions included."
        )

    # -- what deliveries tell ----------------------------------------------------------------------------------

    def began(self, spans: int) -> None:
        """Count the spans of a batch that was sealed."""
        self._processed += spans

    def settled(self, settlement: Settlement) -> None:
        """Count spans that are accounted for."""
        self._exported[None] += settlement.delivered
        if settlement.rejected:
            self._exported[_error_type(settlement, "rejected")] += settlement.rejected
        if settlement.undelivered:
            self._exported[_error_type(settlement, "undelivered")] += settlement.undelivered

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        """Record how long a delivery took."""
        attributes = dict(self._exporter)
        if status_code is not None:
            attributes[STATUS_CODE] = status_code
        if loss is not None:
            attributes[ERROR_TYPE] = _error_type(loss, "rejected" if loss.rejected else "undelivered")
        try:
            self._duration.record(seconds, attributes)
        except Exception:
            # Of whoever made the instrument. It must not end a delivery.
            _logger.exception("recording %s failed", DURATION)

    def handed_back(self, spans: int) -> None:
        """Count spans that were handed back without having been passed to the exporter."""
        self._handed_back += spans

    # -- what readers ask, in threads of their own -------------------------------------------------------------

    def _observe_queue_size(self, _: CallbackOptions) -> Iterable[Observation]:
        handed_over = self._tally.statistics().handed_over
        return [Observation(self._shared.ledger.queued + handed_over, self._processor)]

    def _observe_queue_capacity(self, _: CallbackOptions) -> Iterable[Observation]:
        queues = max(1, len(self._shared.lanes))
        return [Observation(self._shared.limits.max_queued_spans * queues, self._processor)]

    def _observe_processed(self, _: CallbackOptions) -> Iterable[Observation]:
        failed = {**self._tally.statistics().dropped, "undelivered": self._handed_back}
        yield Observation(self._processed, self._processor)
        for error, count in failed.items():
            if count:
                yield Observation(count, {**self._processor, ERROR_TYPE: error})

    def _observe_inflight(self, _: CallbackOptions) -> Iterable[Observation]:
        exported = self._exported.copy().total()
        return [Observation(self._processed - exported, self._exporter)]

    def _observe_exported(self, _: CallbackOptions) -> Iterable[Observation]:
        for error, count in self._exported.copy().items():
            yield Observation(count, self._exporter if error is None else {**self._exporter, ERROR_TYPE: error})


def _error_type(settlement: Settlement, outcome: str) -> str:
    return outcome if settlement.status_code is None else str(settlement.status_code)


def _component(meter_provider: MeterProvider, kind: str, name: str) -> dict[str, str | int]:
    numbers = _numbers.setdefault(meter_provider, defaultdict(itertools.count))
    return {"otel.component.type": kind, "otel.component.name": f"{name}/{next(numbers[name])}"}


def _exporter_component(meter_provider: MeterProvider, exporter: object) -> dict[str, str | int]:
    name = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
    # Not named by its type: the SDK's own exporters count those too.
    if isinstance(exporter, OTLPExporter):
        return _component(meter_provider, _OTLP_TYPE, "trio_spanbatch.OTLPExporter")
    return _component(meter_provider, name, name)


def _server(exporter: object) -> dict[str, str | int]:
    """Return the address and port of the server, of an exporter that tells its endpoint."""
    try:
        parts = urlsplit(str(getattr(exporter, "endpoint", "")))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return {}
    if not parts.hostname:
        return {}
    return {"server.address": parts.hostname, **({} if port is None else {"server.port": port})}
