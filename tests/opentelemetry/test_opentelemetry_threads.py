"""Spans of OpenTelemetry that end outside the trio thread, or in code that interrupts the batcher."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import Span, Tracer
from tests.opentelemetry.support import (
    assert_all_counted,
    delivered_names,
    delivered_places,
    drops,
    end_spans,
    in_thread,
    tracer_of,
)
from tests.support.batchers import Watched, make_span, make_spans, watched_batcher
from tests.support.processes import DEADLINE
from tests.support.receivers import wait_until
from trio_spanbatch import BatchPolicy, Limits, Loss, Refused, SpanBatcher
from trio_spanbatch._spans.envelopes import HeaderEncoder
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.opentelemetry._tally import SpanProcessorStatistics
from trio_spanbatch.testing import InMemoryExporter

NEVER_BY_ITSELF = BatchPolicy(max_delay=1e6)


class WhereEncoded:
    """A value that records the thread in which it is encoded."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __str__(self) -> str:
        self.threads.append(threading.get_ident())
        return "encoded"


def with_value(tracer: Tracer, value: object) -> Callable[[], None]:
    """Return a function that ends a span with ``value`` in its attributes, which the SDK would convert."""

    def end() -> None:
        span: Any = tracer.start_span("span")
        span._attributes._dict["value"] = value
        span.end()

    return end


# -- handed over -------------------------------------------------------------------------------------------------


async def test_spans_of_worker_threads_are_encoded_there_and_delivered() -> None:
    exporter = InMemoryExporter()
    value = WhereEncoded()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end = with_value(tracer_of(processor), value)

        def work() -> int:
            end()
            return threading.get_ident()

        worker = await trio.to_thread.run_sync(work)
        # It was added before the worker's result arrived.
        assert batcher.statistics().accepted == 1
    assert value.threads == [worker]
    assert delivered_names(exporter) == {"default": ["span"]}
    assert_all_counted(processor, batcher)


async def test_a_thread_that_trio_did_not_start_hands_over_too() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 3))
        counts = processor.statistics()
        assert (counts.ended, counts.accepted, counts.handed_over) == (3, 0, 3)
        await wait_until(lambda: not processor.statistics().handed_over)
        assert batcher.statistics().accepted == 3
    assert len(exporter.delivered["default"]) == 3


async def test_spans_handed_over_before_the_end_are_drained() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 100))
        # No checkpoint from here to the end.
        assert processor.statistics().handed_over == 100
    assert_all_counted(processor, batcher)
    assert len(exporter.delivered["default"]) == 100


async def test_a_flush_includes_spans_handed_over_before_it() -> None:
    async with watched_batcher(InMemoryExporter(), NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 5))
        assert (await batcher.flush()).delivered == 5


async def test_many_spans_wake_the_trio_thread_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        calls: list[None] = []
        feed = processor._intake.feed

        def noting() -> None:
            calls.append(None)
            feed()

        monkeypatch.setattr(processor._intake, "feed", noting)
        in_thread(lambda: end_spans(tracer, 200))
        await wait_until(lambda: not processor.statistics().handed_over)
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("limits", "fit"), [(Limits(max_queued_spans=7), 7), (Limits(max_pending_bytes=1000), 1000 // 63)]
)
async def test_the_number_of_handed_over_spans_is_bounded_while_the_trio_thread_is_stalled(
    limits: Limits, fit: int
) -> None:
    async with watched_batcher(InMemoryExporter(), limits=limits) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        size = batcher._encoder.encode(ended_span(tracer, "span 00")).size
        fit = fit if limits.max_queued_spans == fit else 1000 // size
        in_thread(lambda: [tracer.start_span(f"span {number:02}").end() for number in range(60)])
        assert processor.statistics().handed_over == fit
        assert drops(processor) == {"queue_full": 60 - fit}
    assert_all_counted(processor, batcher)


async def test_more_spans_can_be_handed_over_once_earlier_ones_are_taken() -> None:
    async with watched_batcher(InMemoryExporter(), limits=Limits(max_pending_bytes=1000)) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        for _ in range(10):
            in_thread(lambda: end_spans(tracer, 5))
            assert (await batcher.flush()).delivered == 5
        assert drops(processor) == {}


def ended_span(tracer: Tracer, name: str) -> ReadableSpan:
    """Return a span that has ended and that no processor has seen."""
    span: Any = tracer.start_span(name)
    span._span_processor = tracer_of().span_processor  # type: ignore[attr-defined]  # the SDK's own tracer has one
    span.end()
    readable: ReadableSpan = span._readable_span()
    return readable


async def test_a_full_queue_drops_handed_over_spans() -> None:
    limits = Limits(max_queued_spans=3)
    async with watched_batcher(InMemoryExporter(delay=math.inf), limits=limits, shutdown_timeout=0) as batcher:
        processor = BatcherSpanProcessor(batcher)
        for _ in range(2):
            batcher.add_spans_nowait("default", make_spans(3))
            await trio.testing.wait_all_tasks_blocked()
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 2))
        await trio.testing.wait_all_tasks_blocked()
        assert drops(processor) == {"queue_full": 2}


async def test_an_invalid_span_of_a_thread_is_counted_there() -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: tracer.start_span("wrong", start_time=-1).end())
        assert drops(processor) == {"invalid": 1}
    assert_all_counted(processor, batcher)


async def test_an_exception_when_a_handed_over_span_is_added_is_counted_and_does_not_end_the_run() -> None:
    def policy(location: str) -> BatchPolicy:
        raise OSError("broken")

    async with watched_batcher(InMemoryExporter(), policy) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 2))
        await wait_until(lambda: not processor.statistics().handed_over)
        assert drops(processor) == {"invalid": 2}
    assert_all_counted(processor, batcher)


async def test_threads_keep_the_location_of_where_the_span_started() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        tracer = tracer_of(BatcherSpanProcessor(batcher))
        with use_location("a"):
            span = tracer.start_span("span")
        in_thread(span.end)
    assert delivered_places(exporter) == {"span": "a"}


# -- many threads at once ----------------------------------------------------------------------------------------


async def test_many_threads_at_once_lose_no_span_without_counting_it() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=50)) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)

        def work(number: int) -> None:
            with use_location(f"location {number % 3}"):
                for index in range(300):
                    tracer.start_span(f"{number}.{index}").end()
                    counts = processor.statistics()
                    assert counts.ended == counts.accepted + counts.handed_over + sum(counts.dropped.values())

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(trio.to_thread.run_sync, work, number)
            for number in range(300):
                tracer.start_span(f"trio.{number}").end()
                await trio.lowlevel.checkpoint()
    assert_all_counted(processor, batcher)
    assert processor.statistics().ended == 7 * 300
    assert len(delivered_places(exporter)) == processor.statistics().accepted


def test_headers_are_cached_correctly_while_several_threads_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds two headers, so threads constantly evict each other's."""
    monkeypatch.setattr("trio_spanbatch._spans.envelopes._MAX_REMEMBERED", 2)
    batcher = SpanBatcher(InMemoryExporter())
    spans = [make_span_of(f"service {number}") for number in range(5)]
    alone = [SpanBatcher(InMemoryExporter())._encoder.encode(span) for span in spans]
    wrong: list[object] = []

    def work(offset: int) -> None:
        try:
            for turn in range(2000):
                number = (turn + offset) % len(spans)
                encoded = batcher._encoder.encode(spans[number])
                if encoded.headers != alone[number].headers:
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def make_span_of(service: str) -> Any:
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    span: Any = provider.get_tracer(service, attributes={"service": service}).start_span("span")
    span.end()
    return span._readable_span()


def test_a_span_is_encoded_even_if_another_thread_removes_its_cached_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    spans = [make_span_of("one"), make_span_of("two")]
    headers: HeaderEncoder = batcher._encoder._headers
    expected = [batcher._encoder.encode(span).headers.resource for span in spans]

    class Forgetful(dict[Any, Any]):
        """A dict that another thread clears between any two operations."""

        def get(self, key: object, default: object = None) -> Any:
            found = super().get(key, default)
            self.clear()
            return found

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    for table in ("_resources", "_scopes", "_pairs", "_headers", "_interned"):
        monkeypatch.setattr(headers, table, Forgetful(getattr(headers, table)))
        for _ in range(3):
            assert [batcher._encoder.encode(span).headers.resource for span in spans] == expected


# -- after the run -----------------------------------------------------------------------------------------------


def test_after_the_run_spans_are_counted_and_no_exception_is_raised() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    tracer = tracer_of(processor)

    async def main() -> None:
        async with batcher:
            end_spans(tracer, 1)

    trio.run(main)
    end_spans(tracer, 1)
    in_thread(lambda: end_spans(tracer, 1))
    assert drops(processor) == {"already_shutdown": 2}
    assert_all_counted(processor, batcher)


def test_a_span_handed_over_while_the_run_ends_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has seen an open batcher, and calls trio after the run has ended."""
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    tracer = tracer_of(processor)

    async def main() -> None:
        async with batcher:
            pass

    trio.run(main)
    monkeypatch.setattr(batcher._runtime, "thread_id", 1)
    end_spans(tracer, 2)
    assert drops(processor) == {"already_shutdown": 2}
    assert_all_counted(processor, batcher)


async def test_spans_handed_over_after_the_batcher_closed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        feed = processor._intake.feed

        def feed_then_end_more() -> None:
            feed()
            monkeypatch.setattr(processor._intake, "feed", feed)
            in_thread(lambda: end_spans(tracer, 4))

        monkeypatch.setattr(processor._intake, "feed", feed_then_end_more)
    assert processor.statistics().ended == 4
    assert drops(processor) == {"already_shutdown": 4}
    assert_all_counted(processor, batcher)


def test_spans_are_counted_after_a_run_that_crashes() -> None:
    """Handed-over spans that are not taken keep counting as handed over until the next call for them."""
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    tracer = tracer_of(processor)

    async def main() -> None:
        async with batcher:
            in_thread(lambda: end_spans(tracer, 3))
            raise SystemExit

    with pytest.raises(SystemExit):
        trio.run(main)
    assert_all_counted(processor, batcher)
    assert batcher.statistics().delivered == 3


async def test_spans_of_another_trio_run_are_handed_over() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)

        async def other() -> None:
            await trio.lowlevel.checkpoint()
            end_spans(tracer, 2)

        in_thread(lambda: trio.run(other))
        assert processor.statistics().handed_over == 2
    assert len(exporter.delivered["default"]) == 2


# -- interrupting the batcher ------------------------------------------------------------------------------------


async def test_a_span_that_ends_while_the_batcher_is_interrupted_is_handed_over() -> None:
    """A finalizer or a signal handler can end it anywhere; here, while the batcher opens a location."""
    exporter = InMemoryExporter()
    inner: list[SpanProcessorStatistics] = []

    def policy(location: str) -> BatchPolicy:
        if location == "outer":
            tracer.start_span("inner").end()
            inner.append(processor.statistics())
        return BatchPolicy()

    async with watched_batcher(exporter, policy) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        with use_location("outer"):
            tracer.start_span("outer").end()
    assert_all_counted(processor, batcher)
    assert [(counts.ended, counts.accepted, counts.handed_over) for counts in inner] == [(2, 0, 2)]
    assert delivered_names(exporter) == {"outer": ["outer", "inner"]}


async def test_a_span_that_interrupts_a_module_imported_after_the_processor_was_made_is_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exporter and the destinations are imported when they are first used."""
    name = "trio_spanbatch.destinations._imported_later"
    handed_over: list[int] = []
    async with watched_batcher(exporter := InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        with use_location("acme"):
            tracer.start_span("before").end()
            later = types.ModuleType(name)
            exec("def call(function): function()", vars(later))
            monkeypatch.setitem(sys.modules, name, later)
            later.call(tracer.start_span("inside").end)
            handed_over.append(processor.statistics().handed_over)
    assert_all_counted(processor, batcher)
    assert handed_over == [1]
    assert delivered_names(exporter) == {"acme": ["before", "inside"]}


async def test_a_span_that_ends_in_on_loss_is_handed_over() -> None:
    refusing = InMemoryExporter([Refused("no")])

    def on_loss(loss: Loss) -> None:
        tracer.start_span("about a loss").end()

    async with watched_batcher(refusing, on_loss=on_loss) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        end_spans(tracer, 1)
        await batcher.flush()
    assert_all_counted(processor, batcher)
    assert delivered_names(refusing) == {"default": ["about a loss"]}


async def test_a_finalizer_that_ends_a_span_while_the_locks_are_held_does_not_deadlock() -> None:
    class EndsASpan:
        def __init__(self, span: Span) -> None:
            self._span = span
            self.itself = self

        def __del__(self) -> None:
            self._span.end()

    def collect_while_holding(lock: Any) -> None:
        EndsASpan(tracer.start_span("of a finalizer"))
        with lock:
            gc.collect()

    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        for lock in (processor._tally._lock, processor._intake._lock):
            collect_while_holding(lock)
            in_thread(partial(collect_while_holding, lock))
        assert processor.statistics().ended == 4
    assert_all_counted(processor, batcher)
    assert len(exporter.delivered["default"]) == 4


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no setitimer")
def test_spans_that_end_in_a_signal_handler_are_all_accounted_for() -> None:
    """A timer interrupts the program and the batcher repeatedly, at arbitrary points."""
    exporter = InMemoryExporter()
    batcher = SpanBatcher(exporter, batch=BatchPolicy(max_spans=10), limits=Limits(max_queued_spans=50))
    processor = BatcherSpanProcessor(batcher)
    tracer = tracer_of(processor)
    interrupts = 0

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        tracer.start_span("of the handler").end()

    async def main() -> None:
        async with Watched(batcher):
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            try:
                while interrupts < 300:
                    end_spans(tracer, 5)
                    await batcher.add_span("default", make_span())
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        trio.run(main)
    finally:
        signal.signal(signal.SIGALRM, before)
    counts = processor.statistics()
    assert counts.ended == counts.accepted + sum(counts.dropped.values())
    assert counts.handed_over == 0
    statistics = batcher.statistics()
    assert statistics.accepted == statistics.delivered == len(exporter.delivered["default"])


class Interrupted(dict[Any, Any]):
    """A dict during whose reading a span ends, as in a signal handler."""

    def interrupt_once(self, interrupt: Callable[[], object]) -> None:
        self.interrupt: Callable[[], object] | None = interrupt

    def _read(self) -> None:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if key == "already_shutdown":
            self._read()
        return value

    def copy(self) -> dict[Any, Any]:
        copied = dict(self)
        self._read()
        return copied


async def test_counts_add_up_if_reading_them_is_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher, clock=lambda: 0.0)
        tracer = tracer_of(processor)
        end_spans(tracer, 1)
        processor.shutdown()
        end_spans(tracer, 1)
        processor._tally._dropped = dropped = Interrupted(processor._tally._dropped)
        dropped.interrupt_once(lambda: end_spans(tracer, 1))
        counts = processor.statistics()
        assert counts.ended == counts.accepted + counts.handed_over + sum(counts.dropped.values()) == 3
        caplog.clear()
        dropped.interrupt_once(lambda: end_spans(tracer, 1))
        processor.shutdown()
        # The span that ended in between, and the earlier span.
        assert "2 spans that had ended were dropped" in caplog.text
        assert processor._tally._said == processor._tally._dropped
    assert_all_counted(processor, batcher)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_process_counts_its_spans_as_dropped_and_does_not_wait() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        in_thread(lambda: end_spans(tracer, 2))
        # As if another thread were counting.
        locks = (processor._tally._lock, processor._intake._lock)
        holder = Holder(*locks)
        child = os.fork()
        if not child:
            os._exit(what_a_child_finds(processor, tracer))
        holder.release()
        _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert delivered_names(exporter) == {"default": ["span 0", "span 1"]}
    assert_all_counted(processor, batcher)


class Holder:
    """Holds locks in another thread."""

    def __init__(self, *locks: Any) -> None:
        self._held, self._release = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=locks)
        self._thread.start()
        self._held.wait()

    def _hold(self, *locks: Any) -> None:
        for lock in locks:
            lock.acquire()
        self._held.set()
        self._release.wait()
        for lock in locks:
            lock.release()

    def release(self) -> None:
        self._release.set()
        self._thread.join()


def what_a_child_finds(processor: BatcherSpanProcessor, tracer: Tracer) -> int:
    """Return 0 on success. It must not return to the parent's frames."""
    # Waiting for a lock of the parent would block forever.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(DEADLINE))
    try:
        end_spans(tracer, 3)
        flushed = processor.force_flush()
        well = drops(processor) == {"already_shutdown": 3} and not flushed and not processor._intake._queue
    except BaseException:  # noqa: ASYNC103  # the child must end here, whatever happens
        return 2  # noqa: ASYNC104  # see above
    return 0 if well else 1
