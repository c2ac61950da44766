"""``trio-spanbatch send``: send the spans in files of OTLP JSON or protobuf to a server, through a `SpanBatcher`."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import attrs
import trio

from .._batcher import SpanBatcher
from .._errors import InvalidLocationError, InvalidSpanError
from .._exporter import SpanExporter
from .._reporting.statistics import Loss, SpanBatcherStatistics
from .._settings.policies import BatchPolicy, Limits, RetryPolicy
from .._spans.batch import EncodedSpan
from .._spans.checks import shown
from .._spans.records import Span
from .._values import checked_location
from .circuit_breaker import CircuitBreaker
from .documents import Document, DocumentParser, Unreadable
from .input import InputFile, InputFileError
from .otlp_json import has_old_spans, read_request
from .progress import SendProgress, total_size
from .protobuf import Envelope, RequestParser, is_protobuf, is_undecided
from .screen import Screen
from .signals import Interrupt
from .tally import Tally

# Seconds after which a location is given up. Somebody waits for the command, so it is less than in a program.
MAX_ELAPSED = 300.0

# Seconds after which the command gives up if no request was ever answered. Its drain then takes no time.
PATIENCE = 20.0
# Advice for that case: if there was no connection, and if there was one.
NO_SERVER = "start a server there (trio-spanbatch receive is one), or name another one with --endpoint"
NO_ANSWER = "check that server, or name another one with --endpoint"
_SIGNS_OF_NO_SERVER = re.compile(r"\b(cannot connect to|no connection to|is it up\?)")
_SIGNS_OF_SILENCE = re.compile(r"\bno (complete )?answer from\b")
# Seconds after which a failing location is reported if there is no progress bar, and between two reports. Shorter
# failures are in the summary if they lost spans.
_REPORT_AFTER = 5.0
_REPORT_INTERVAL = 30.0
# Reported, and counted as one invalid span, once per file.
_OLD = "has instrumentationLibrarySpans, the scopeSpans of OTLP before 0.15, which are not read; convert the file"
# Seconds that the drain may take after a Ctrl-C.
SHUTDOWN_TIMEOUT = 10.0

# If there are more locations than `Limits.max_locations`, a batcher drops the counts of those that have ended. The
# summary needs the counts of all, so the batcher's limit is out of reach, and the sender limits the live locations.
_ANY_NUMBER = 2**62
# Seconds. Short, as there may be many locations, and few of them get more spans later.
_IDLE_TIMEOUT = 5.0


@attrs.frozen
class LocationOf:
    """Determines the location of a span: the same for all, or the value of an attribute."""

    name: str = "default"  # the location of all spans, unless there is an ``attribute``
    attribute: str | None = None  # the key of an attribute of the span, or else of its resource
    # Whether the field ``location`` of a line, which `JSONFileExporter` writes, takes precedence.
    from_lines: bool = False

    @property
    def only(self) -> str | None:
        """The location of all spans, None if it depends on the span."""
        return self.name if self.attribute is None else None

    def in_line(self, document: object) -> LocationOf:
        """Return the same for the spans of one line."""
        location = document.get("location") if self.from_lines and isinstance(document, dict) else None
        return LocationOf(location) if isinstance(location, str) and location else self

    def __call__(self, span: Span | EncodedSpan) -> str:
        """Return the location of ``span``; raise `ValueError` if it has none, or an invalid one."""
        if self.attribute is None:
            return self.name
        value: object
        if isinstance(span, EncodedSpan):
            value = _attribute_of_encoded(span, self.attribute)
        else:
            value = span.attributes.get(self.attribute)
            if value is None and span.resource is not None:
                value = span.resource.attributes.get(self.attribute)
        if isinstance(value, str) and value:
            return checked_location(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)  # for example one of MLflow's experiment ids
        if value is None:
            raise ValueError(f"no location: neither the span nor its resource has an attribute {self.attribute!r}")
        must = "it must not be empty" if value == "" else "it must be a string"
        raise ValueError(f"no location: the attribute {self.attribute!r} is {shown(value)}; {must}")


def _attribute_of_encoded(span: EncodedSpan, key: str) -> object:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    resource = ResourceSpans.FromString(span.headers.resource).resource
    # The last one counts.
    for pair in (*reversed(span.to_message().attributes), *reversed(resource.attributes)):
        kind = pair.value.WhichOneof("value")
        if pair.key == key and kind is not None:
            return getattr(pair.value, kind)
    return None


@attrs.frozen(kw_only=True)
class SendSettings:
    """How to send."""

    files: Sequence[str] = ()  # the names of the files; ``-`` is standard input
    location_of: LocationOf = LocationOf()  # determines the location of each span
    batch: BatchPolicy  # when a batch is due
    limits: Limits  # what may be pending. Input with more than ``max_locations`` locations is sent in several rounds
    retry: RetryPolicy  # how often and how long requests are retried
    # Seconds from the first attempt after which the command gives up if no request was ever answered.
    patience: float = PATIENCE
    server: str = "the server"  # the server's name for messages, as in ``localhost:4318``
    no_server: str = NO_SERVER  # advice if there is no server
    words: Callable[[str], str] = str  # translates a message of the library so that it names options


@attrs.frozen(kw_only=True)
class SendResult:
    """The outcome."""

    statistics: SpanBatcherStatistics  # the batcher's final counts
    tally: Tally  # invalid spans, and the reasons of losses
    failure: str | None  # why no request was ever answered, None if one was
    interrupted: int  # 128 plus the number of the signal that ended the command, 0 if there was none
    read_whole: bool  # whether the files were read to their ends
    no_server: str = NO_SERVER  # advice if there is no server

    @property
    def exit_code(self) -> int:
        """0 if everything that was read was delivered, else 1 or ``interrupted``."""
        if self.interrupted:
            return self.interrupted
        return 0 if self.failure is None and self.tally.is_complete(self.statistics) else 1

    def explanations(self) -> Iterator[str]:
        """Yield lines that say why spans were not delivered, and what to do."""
        if self.failure is not None:
            # Failures of TLS, proxies and credentials contain their own advice.
            advice = ""
            if _SIGNS_OF_NO_SERVER.search(self.failure):
                advice = f"; {self.no_server}"
            elif _SIGNS_OF_SILENCE.search(self.failure):
                advice = f"; {NO_ANSWER}"
            yield f"no request was ever answered: {self.failure}{advice}"
        else:
            yield from self.tally.losses()
        if not self.read_whole:
            yield f"{'interrupted' if self.interrupted else 'gave up'}: the rest of the input was not read"


class Source(Protocol):
    """Spans that are not in files."""

    total: int

    async def send(self, batcher: SpanBatcher, tally: Tally, progress: SendProgress) -> None:
        """Add all spans to ``batcher``."""

    def add_loss(self, loss: Loss) -> None:
        """Note a loss, which is in the summary already."""

    async def finish(self) -> None:
        """Called once the batcher has ended, unless that was cut short."""


async def send(
    settings: SendSettings, exporter: SpanExporter, screen: Screen, source: Source | None = None
) -> SendResult:
    """Send all files, or what is in ``source``, and return once every span is accounted for. Close the exporter."""
    tally = Tally()

    def add_loss(loss: Loss) -> None:
        tally.add_loss(loss)
        if source is not None:
            source.add_loss(loss)

    breaker = CircuitBreaker(exporter, settings.patience, settings.server, settings.retry.max_elapsed)
    interrupt = Interrupt()
    progress = SendProgress(total_size(settings.files) if source is None else source.total, screen)
    batcher = SpanBatcher(
        breaker,
        batch=settings.batch,
        limits=attrs.evolve(settings.limits, max_locations=_ANY_NUMBER, location_idle_timeout=_IDLE_TIMEOUT),
        retry=settings.retry,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        on_loss=add_loss,
        # Failing locations are shown below the progress bar, or reported here, and in the summary.
        log_level=logging.INFO,
    )
    with interrupt.absorb(), interrupt.on(signal.SIGTERM):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_if_no_server_answers, breaker, interrupt.scope)
            with progress.bars:
                if screen.err.is_terminal:
                    nursery.start_soon(progress.run, batcher.statistics, breaker.failing)
                else:
                    nursery.start_soon(_report_failing_locations, breaker, screen)
                async with batcher:
                    with interrupt.on(signal.SIGINT), interrupt.scope:
                        if source is not None:
                            await source.send(batcher, tally, progress)
                        live: set[str] = set()
                        for name in settings.files:
                            file = InputFile(name)
                            await _FileSender(file, batcher, settings, tally, screen, progress, live).send()
                        progress.read_whole = True
                        await batcher.flush()
                if source is not None:
                    await source.finish()
            nursery.cancel_scope.cancel()
    return SendResult(
        statistics=batcher.statistics(),
        tally=tally,
        failure=breaker.failure if breaker.gave_up else None,
        interrupted=interrupt.exit_code,
        read_whole=progress.read_whole,
        no_server=settings.no_server,
    )


async def _stop_if_no_server_answers(breaker: CircuitBreaker, scope: trio.CancelScope) -> None:
    await breaker.wait_to_give_up()
    scope.cancel()


async def _report_failing_locations(breaker: CircuitBreaker, screen: Screen) -> None:
    """Report locations that keep failing. If no request was ever answered, the summary says so instead."""
    while True:
        await trio.sleep(_REPORT_AFTER / 5)
        if not breaker.answered:
            continue
        latest = trio.current_time() - _REPORT_AFTER
        failing = [location for location in breaker.failing() if location.since <= latest and not location.is_reported]
        if not failing:
            continue
        first, *others = failing
        more = f" and {len(others):,} more locations" if others else ""
        screen.warn(
            f"{first.location}{more}: requests have failed for {_REPORT_AFTER:g} s, and are retried: {first.reason}"
        )
        for location in failing:
            location.is_reported = True
        await trio.sleep(_REPORT_INTERVAL)


@attrs.define
class _FileSender:
    """Sends the spans of one file, and reports what of it cannot be sent."""

    file: InputFile
    batcher: SpanBatcher
    settings: SendSettings
    tally: Tally
    screen: Screen
    progress: SendProgress
    live: set[str]  # locations that may hold spans: those that got one since the last flush, from any file
    found: int = 0  # spans, and parts that cannot be read
    is_old: bool = False  # whether spans of old versions of OTLP were reported

    async def send(self) -> None:
        parser: DocumentParser | RequestParser = DocumentParser()
        before = self.progress.position
        try:
            data = await self.file.read()
            while is_undecided(data) and (more := await self.file.read()):
                data += more
            if is_protobuf(data):
                parser = RequestParser()
            while data:
                await self._send_parsed(parser.feed(data))
                self.progress.position = before + self.file.position
                data = await self.file.read()
            await self._send_parsed(parser.finish())
        except InputFileError as error:
            line = parser.line
            # Requests that were read completely before the damage are sent; the rest of the data is not reported.
            await self._send_parsed(filter(_may_be_request, parser.finish()))
            self._leave_out(line, str(error), self.settings.location_of.only)
        else:
            if not self.found:
                self.screen.warn(f"{self.file.name}: contains no spans")
        finally:
            self.file.close()
        self.progress.position = before + (self.file.size() or 0)

    async def _send_parsed(self, parsed: Iterator[Document | Envelope | Unreadable]) -> None:
        for item in parsed:
            location_of = self.settings.location_of
            if isinstance(item, Document):
                location_of = location_of.in_line(item.value)
            for place, span in _spans_in(item):
                self.found += 1
                await self._send_span(item.line, place, span, location_of)
            if isinstance(item, Document) and not self.is_old and has_old_spans(item.value):
                self.is_old = True
                self.found += 1
                self._leave_out(item.line, _OLD, self.settings.location_of.only)

    async def _send_span(
        self, line: int, place: str, span: Span | EncodedSpan | InvalidSpanError, location_of: LocationOf
    ) -> None:
        location = location_of.only
        if isinstance(span, InvalidSpanError):
            self._leave_out(line, str(span), location)
            return
        try:
            location = location_of(span)
            if location not in self.live and len(self.live) >= self.settings.limits.max_locations:
                # After a flush, no location holds spans.
                await self.batcher.flush()
                self.live.clear()
            await self.batcher.add_span(location, span)
            self.live.add(location)
        except ValueError as error:
            reason = self.settings.words(str(error))
            if isinstance(error, InvalidLocationError) and location_of.attribute is not None:
                reason += f"; it is the value of the attribute {location_of.attribute!r}"
            self._leave_out(line, f"{place}: {reason}", location)

    def _leave_out(self, line: int, reason: str, location: str | None) -> None:
        self.screen.warn(f"{self.file.name}:{line}: {reason}" if line else f"{self.file.name}: {reason}")
        self.tally.add_invalid(location)


def _may_be_request(item: Document | Envelope | Unreadable) -> bool:
    # A number that was cut off may still be a number, but an object that was cut off is not JSON.
    return isinstance(item, Document) and isinstance(item.value, dict)


def _spans_in(item: Document | Envelope | Unreadable) -> Iterator[tuple[str, Span | EncodedSpan | InvalidSpanError]]:
    """Yield the spans of a part of a file with their places in it, and errors, which contain the place."""
    if isinstance(item, Unreadable):
        yield "", InvalidSpanError(item.reason)
    elif isinstance(item, Envelope):
        for number, encoded in enumerate(item.spans, 1):
            yield f"the envelope at byte {item.at}, span {number}", encoded
    else:
        try:
            for number, span in enumerate(read_request(item.value), 1):
                yield f"span {number}", span
        except ValueError as error:
            yield "", InvalidSpanError(str(error))
