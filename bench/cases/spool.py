"""The spool: what it costs when every span is committed to disk before it is sent."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Case, Figures, Limit, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.in_memory import KeepsIds, add_all
from bench.limits import LARGE_LIMITS
from bench.spans import frozen_agent_spans
from trio_spanbatch import EncodedSpan, OTLPExporter, SpanBatch, SpanBatcher, Spool, TryLater
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.store import NewRecord

__all__ = ["CASE"]

_OURS = "trio-spanbatch"
_LOCATIONS = [f"main.agents.spans_{number}" for number in range(4)]
# The spans of a commit, and how many commits are measured.
_COMMITS = {512: 40, 5: 1_000}
# Locations whose spans share a commit of 512, so that a record has about five.
_SHARED = [f"main.agents.shared_{number}" for number in range(100)]
# The spans of a record that an earlier process has left.
_LEFT_PER_RECORD = 5


def _prepared(setup: Setup) -> Round:
    spans = frozen_agent_spans(setup.size(40_960, 5_120))

    def run_round() -> Figures:
        steps = _LongestStep()
        figures = {"adding": trio.run(_added, spans).cpu / len(spans) * 1e6}
        for size, commits in _COMMITS.items():
            some = spans[: size * setup.size(commits, 10)]
            without, committed = (trio.run(_synced, some, size, spooled) for spooled in (False, True))
            figures[_name(size)] = (committed.cpu - without.cpu) / len(some) * 1e6
        some = spans[: 512 * setup.size(_COMMITS[512], 10)]
        without, committed = (trio.run(_synced, some, 512, spooled, _SHARED) for spooled in (False, True))
        figures["records of five"] = (committed.cpu - without.cpu) / len(some) * 1e6
        for name, spooled, instruments in (("rate without it", False, []), ("rate", True, []), ("", True, [steps])):
            setup.receiver.forget()
            sending = trio.run(_sent, spans, setup.receiver.url, spooled, instruments=instruments)
            check_ids(setup.receiver.ids(), len(spans))
            figures[name] = len(spans) / sending.wall
        figures["longest step"] = steps.seconds * 1e3
        return figures

    return run_round


def _prepared_recovery(setup: Setup) -> Round:
    directory = tempfile.TemporaryDirectory()
    left = setup.size(1_000_000, 10_000)
    trio.run(_leave, Path(directory.name), left)

    def run_round() -> Figures:
        return {"entering": trio.run(_entered, Path(directory.name), left)}

    return run_round


@contextmanager
def _spool(spooled: bool) -> Iterator[Spool | None]:
    with tempfile.TemporaryDirectory() as directory:
        yield Spool(directory) if spooled else None


async def _added(spans: list[ReadableSpan]) -> Watch:
    exporter = KeepsIds()
    async with SpanBatcher(exporter, limits=LARGE_LIMITS) as batcher:
        with watch() as seen:
            for span in spans:
                batcher.add_span_nowait("default", span)
        await batcher.flush()
    check_ids(exporter.ids, len(spans))
    return seen


async def _synced(
    spans: list[ReadableSpan], size: int, spooled: bool, locations: Sequence[str] = ("default",)
) -> Watch:
    """Add ``size`` spans, wait until they are committed, and so on until all are sent. Without a spool, only yield."""
    exporter = KeepsIds()
    with _spool(spooled) as spool:
        async with SpanBatcher(exporter, limits=LARGE_LIMITS, spool=spool) as batcher:
            with watch() as seen:
                for at in range(0, len(spans), size):
                    for span, location in zip(spans[at : at + size], cycle(locations)):
                        batcher.add_span_nowait(location, span)
                    if spool is None:
                        await trio.lowlevel.checkpoint()
                    else:
                        await batcher.sync()
                await batcher.flush()
    check_ids(exporter.ids, len(spans))
    return seen


async def _sent(spans: list[ReadableSpan], url: str, spooled: bool) -> Watch:
    with _spool(spooled) as spool:
        async with SpanBatcher(OTLPExporter(url, location_header="x-location"), spool=spool) as batcher:
            with watch() as seen:
                await add_all(batcher, zip(cycle(_LOCATIONS), spans, strict=False))
                await batcher.flush()
    return seen


class _LongestStep(trio.abc.Instrument):
    """Measures the CPU time of the longest step of the driver, which begins commits, and of the spool's tasks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(("trio_spanbatch driver", "trio_spanbatch spool")):
            self.seconds = max(self.seconds, time.thread_time() - self._began)


class _Down:
    """An exporter whose server is down."""

    async def export(self, batch: SpanBatch) -> TryLater:
        await trio.lowlevel.checkpoint()
        return TryLater("down")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def _leave(directory: Path, left: int) -> None:
    """Leave spans as a process does that has ended."""
    store = DiskStore(Spool(directory, max_bytes=1 << 40), f"{_Down.__module__}.{_Down.__qualname__}")
    await store.open()
    spans = [EncodedSpan(bytes(64))] * _LEFT_PER_RECORD
    records = [NewRecord(_LOCATIONS[number % 4], spans, 64 * len(spans), time.time()) for number in range(200)]
    for _ in range(left // _LEFT_PER_RECORD // len(records)):
        await store.commit(records)
    await store.close()


async def _entered(directory: Path, left: int) -> float:
    """Return how many seconds after entering a batcher a span was accepted."""
    began = time.perf_counter()
    async with SpanBatcher(_Down(), spool=Spool(directory, max_bytes=1 << 40), shutdown_timeout=0) as batcher:
        await batcher.add_span("another", SpanBatch.from_request("another", b"\x0a\x04\x12\x02\x12\x00").spans[0])
        taken = time.perf_counter() - began
        # All of them are found.
        with trio.fail_after(600):
            while batcher.statistics().recovered < left:  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.1)
    return taken


def _name(size: int) -> str:
    return f"{size} a commit"


CASE = Case(
    name="spool",
    title="The spool",
    about=(
        'Spans with 11 attributes and an event, in a spool with `durability="process"`. A program adds 512 spans, or '
        "5, and waits for `sync()`, so that a commit holds as many: 40 commits of 512, and 1,000 of 5. The figure is "
        "the CPU time of all threads, up to the delivery of the last span, less that of the same program without a "
        "spool, and the comparison is adding a span. Nothing shares a commit of 5, which is the worst case: callers "
        "that wait at the same time do. For records of five, the 512 spans of a commit are of 100 locations in turn. "
        "Throughput is that of the case above. A step is one of the driver or of the "
        "spool's tasks, from one checkpoint to the next. The last line is the time from entering a batcher until it "
        "has accepted a span, with a million spans of an earlier process, in records of 5, in its spool."
    ),
    sides={_OURS: _prepared, "recovery": _prepared_recovery},
    rows=(
        *(
            Row(f"{_name(size)}: CPU per span", _name(size), "µs", f"{_OURS}: adding", goal=goal)
            for size, goal in ((512, 1 / 6), (5, 1 / 2))
        ),
        Row("Records of five: CPU per span", "records of five", "µs", f"{_OURS}: adding", goal=1 / 2),
        Row("Throughput: spans per second", "rate", "spans/s", f"{_OURS}: rate without it", goal=0.6, at_least=True),
        Row("Longest step", "longest step", "ms", Limit(1.0), goal=1.0),
        Row("Accepting with a million spans in the spool", "entering", "s", Limit(0.2), goal=1.0, side="recovery"),
    ),
)
