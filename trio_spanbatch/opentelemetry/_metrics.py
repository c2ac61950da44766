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

``error.type`` says what the last attempt failed with: a status code, ``timeout``, or an exception's name, where the
exporter tells any of these. There is no location, as cardinality stays low; of what exporters say, at most
`MAX_ERROR_TYPES` are told apart.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, ref

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from .._http.exporter import OTLPExporter
from .._reporting.statistics import Settlement
from .._scheduler.shared import Shared
from .._version import __version__
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

# The conventions' word for an error that has no other.
_OTHER: Final = "_OTHER"
MAX_ERROR_TYPES: Final = 100

# What the conventions call an exporter of OTLP over HTTP in protobuf. For all else they want its name in the language.
_OTLP_TYPE: Final = "otlp_http_span_exporter"
_PROCESSOR_TYPE: Final = "trio_spanbatch.opentelemetry.BatcherSpanProcessor"

_Attributes: TypeAlias = dict[str, str | int]


class _Instruments:
    """The instruments of one ``MeterProvider``, which all batchers that it measures share.

    The SDK has one instrument of a name. Who makes it again gets the first one, and callbacks of its own are dropped.
    So there is one callback, which asks for each batcher's counts. Counts are kept, so that what a batcher did last is
    still read after it is gone; batchers are not.
    """

    def __init__(self, meter_provider: MeterProvider) -> None:
        self._members: tuple[BatcherMetrics, ...] = ()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        meter = meter_provider.get_meter("trio_spanbatch", __version__)
        for create, name, observe, description in (
            (meter.create_observable_up_down_counter, QUEUE_SIZE, BatcherMetrics.queue_size, "Spans that wait."),
            (
                meter.create_observable_up_down_counter,
                QUEUE_CAPACITY,
                BatcherMetrics.queue_capacity,
                "How many spans may wait, in the queues of all locations that there are.",
            ),
            (
                meter.create_observable_counter,
                PROCESSED,
                BatcherMetrics.processed,
                "Spans that were passed to the exporter, or dropped before.",
            ),
            (
                meter.create_observable_up_down_counter,
                INFLIGHT,
                BatcherMetrics.inflight,
                "Spans that were passed to the exporter, and whose export has not ended.",
            ),
            (
                meter.create_observable_counter,
                EXPORTED,
                BatcherMetrics.exported,
                "Spans whose export has ended, whether they were delivered or not.",
            ),
        ):
            create(name, [partial(self._observe, observe)], "{span}", description)
        description = "How long exporting a batch took, with all attempts and the time between them."
        try:
            # The conventions ask for no buckets: a count and a sum.
            self.duration = meter.create_histogram(DURATION, "s", description, explicit_bucket_boundaries_advisory=[])
        except TypeError:
            # Older versions of OpenTelemetry's API know no advice.
            self.duration = meter.create_histogram(DURATION, "s", description)

    def add(self, member: BatcherMetrics) -> None:
        """Ask for another batcher's counts too."""
        self._members = (*self._members, member)

    def component(self, kind: str, name: str) -> _Attributes:
        """Return the attributes of another component, which number it."""
        return {"otel.component.type": kind, "otel.component.name": f"{name}/{next(self._numbers[name])}"}

    def _observe(
        self, observe: Callable[[BatcherMetrics], Iterable[Observation]], _: CallbackOptions
    ) -> Iterable[Observation]:
        for member in self._members:
            yield from observe(member)


_instruments: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()
_instruments_lock: Final = threading.Lock()


class BatcherMetrics:
    """Counts deliveries, and shows the counts of a batcher to a ``MeterProvider``. A `DeliveryObserver`."""

    def __init__(self, meter_provider: MeterProvider, shared: Shared, tally: Tally) -> None:
        self._shared = ref(shared)
        self._tally = tally
        self._processed = 0
        self._handed_back = 0
        # By error.type; None for what was delivered.
        self._exported: Counter[str | None] = Counter()
        with _instruments_lock:
            instruments = _instruments.get(meter_provider)
            if instruments is None:
                instruments = _instruments[meter_provider] = _Instruments(meter_provider)
            self._processor = instruments.component(_PROCESSOR_TYPE, _PROCESSOR_TYPE)
            self._exporter = {
                **instruments.component(*_type_and_name(shared.exporter)),
                **_server(shared.exporter),
            }
            self._duration = instruments.duration
            instruments.add(self)

    # -- what deliveries tell ----------------------------------------------------------------------------------

    def began(self, spans: int) -> None:
        """Count the spans of a batch that was sealed."""
        self._processed += spans

    def settled(self, settlement: Settlement) -> None:
        """Count spans that are accounted for."""
        self._exported[None] += settlement.delivered
        if settlement.rejected:
            self._exported[self._error_type(settlement, "rejected")] += settlement.rejected
        if settlement.undelivered:
            self._exported[self._error_type(settlement, "undelivered")] += settlement.undelivered

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        """Record how long a delivery took."""
        attributes = dict(self._exporter)
        if status_code is not None:
            attributes[STATUS_CODE] = status_code
        if loss is not None:
            attributes[ERROR_TYPE] = self._error_type(loss, "rejected" if loss.rejected else "undelivered")
        try:
            self._duration.record(seconds, attributes)
        except Exception:
            # Of whoever made the instrument. It must not end a delivery.
            _logger.exception("recording %s failed", DURATION)

    def _error_type(self, settlement: Settlement, outcome: str) -> str:
        status = settlement.status_code
        error = settlement.cause[:100] or outcome if status is None else str(status)
        return error if error in self._exported or len(self._exported) < MAX_ERROR_TYPES else _OTHER

    def handed_back(self, spans: int) -> None:
        """Count spans that were handed back without having been passed to the exporter."""
        self._handed_back += spans

    # -- what readers ask, in threads of their own -------------------------------------------------------------

    def queue_size(self) -> Iterable[Observation]:
        """Yield how many spans wait: in the queues, and handed over."""
        if (shared := self._shared()) is not None:
            yield Observation(shared.ledger.queued + self._tally.statistics().handed_over, self._processor)

    def queue_capacity(self) -> Iterable[Observation]:
        """Yield how many spans the queues hold. Each location has one; before there is any, it is the first one's."""
        if (shared := self._shared()) is not None:
            yield Observation(shared.limits.max_queued_spans * max(1, len(shared.lanes)), self._processor)

    def processed(self) -> Iterable[Observation]:
        """Yield how many spans left the queue, or never came in, by ``error.type``."""
        failed = {**self._tally.statistics().dropped, "undelivered": self._handed_back}
        yield Observation(self._processed, self._processor)
        for error, count in failed.items():
            if count:
                yield Observation(count, {**self._processor, ERROR_TYPE: error})

    def inflight(self) -> Iterable[Observation]:
        """Yield how many spans are in deliveries."""
        exported = self._exported.copy().total()
        return [Observation(self._processed - exported, self._exporter)]

    def exported(self) -> Iterable[Observation]:
        """Yield how many spans of deliveries are accounted for, by ``error.type``."""
        for error, count in self._exported.copy().items():
            yield Observation(count, self._exporter if error is None else {**self._exporter, ERROR_TYPE: error})


def _type_and_name(exporter: object) -> tuple[str, str]:
    if isinstance(exporter, OTLPExporter):
        # Not named by its type: the SDK's own exporters count those too.
        return _OTLP_TYPE, "trio_spanbatch.OTLPExporter"
    name = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
    return name, name


def _server(exporter: object) -> _Attributes:
    """Return the address and port of the server, of an exporter that tells its endpoint."""
    try:
        parts = urlsplit(str(getattr(exporter, "endpoint", "")))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return {}
    if not parts.hostname:
        return {}
    return {"server.address": parts.hostname, **({} if port is None else {"server.port": port})}
