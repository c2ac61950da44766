"""The oracle: it follows every span from outside, by its id.

A test's program adds spans through an `Oracle`, which so knows the accepted ones. The oracle wraps the exporter, so
that it sees each attempt and its result, and it gets each `Loss`. The server (an `InMemoryExporter` or an
`OTLPReceiver`) reports the spans that it stored, and those that it left out with a partial success. From these `Facts`
it follows that:

- the accepted spans are the disjoint union of those delivered, rejected and undelivered;
- delivered spans are stored, at their own location, and only accepted spans are stored;
- a span that is stored twice, or stored but not counted as delivered, had an attempt of unknown outcome, and is counted
  as ambiguous;
- the batcher's statistics agree, at the end and, as far as can be known from outside, after every step.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import attrs
import trio

from tests.support.batchers import assert_conserved, span_ids
from trio_spanbatch import (
    Delivered,
    ExportResult,
    Loss,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanContext,
    SpanExporter,
    TryLater,
)


@attrs.frozen
class Facts:
    """The facts known from outside after the end.

    Attributes:
        accepted: The location of each accepted span, by its id.
        stored: The location and id of each span that the server stored, once for each time.
        left_out: The ids of spans that the server left out with a partial success, if the client got the answer.
        rejected: The ids of spans of batches that were refused.
        undelivered: The ids of spans that were handed back.
        doubtful: The ids of spans that had an attempt of unknown outcome.
        spooled: The ids of spans that are left in the spool, and not accounted for otherwise.
    """

    accepted: Mapping[int, str]
    stored: Sequence[tuple[str, int]]
    left_out: AbstractSet[int] = frozenset()
    rejected: Sequence[int] = ()
    undelivered: Sequence[int] = ()
    doubtful: AbstractSet[int] = frozenset()
    spooled: AbstractSet[int] = frozenset()


def assert_accounted_for(facts: Facts, statistics: SpanBatcherStatistics, *, by_location: bool = True) -> None:
    """Check that every accepted span is accounted for once, and that ``statistics`` agree.

    Args:
        facts: The facts.
        statistics: The batcher's statistics.
        by_location: Whether to compare the counts of each location too. If more than ``Limits.max_locations`` have
            ended, those that ended long ago start again at zero.
    """
    stored = Counter(span_id for _, span_id in facts.stored)
    for name, ids in (("rejected", facts.rejected), ("undelivered", facts.undelivered)):
        assert len(ids) == len(set(ids)), f"{name} twice: {_repeated(ids)}"
    undelivered = set(facts.undelivered)
    assert not facts.left_out & set(facts.rejected), "left out of a partial success, and refused"
    rejected = facts.left_out | set(facts.rejected)
    assert not rejected & undelivered, f"rejected and undelivered: {_some(rejected & undelivered)}"
    delivered = facts.accepted.keys() - rejected - undelivered - facts.spooled
    everything = rejected | undelivered | stored.keys()
    assert everything <= facts.accepted.keys(), f"invented: {_some(everything - facts.accepted.keys())}"
    assert delivered <= stored.keys(), f"lost silently: {_some(delivered - stored.keys())}"
    astray = {span_id for location, span_id in facts.stored if facts.accepted[span_id] != location}
    assert not astray, f"stored at another location: {_some(astray)}"
    more_than_delivered = {span_id for span_id, times in stored.items() if times > 1 or span_id not in delivered}
    certain = more_than_delivered - facts.doubtful
    assert not certain, f"stored twice, or stored and not delivered, without a doubtful attempt: {_some(certain)}"
    _assert_counts(facts, delivered, rejected, undelivered, statistics, by_location=by_location)


def _assert_counts(
    facts: Facts,
    delivered: AbstractSet[int],
    rejected: AbstractSet[int],
    undelivered: AbstractSet[int],
    statistics: SpanBatcherStatistics,
    *,
    by_location: bool,
) -> None:
    assert_conserved(statistics)
    assert (statistics.queued, statistics.in_flight, statistics.pending_bytes) == (0, 0, 0), statistics
    outcomes = {
        "delivered": delivered,
        "rejected": rejected,
        "undelivered": undelivered,
        "spooled": facts.spooled,
        "ambiguous": facts.doubtful,
    }
    accepted = statistics.accepted + statistics.recovered
    assert accepted == len(facts.accepted), f"{accepted} counted as accepted or recovered, {len(facts.accepted)} seen"
    for name, ids in outcomes.items():
        assert getattr(statistics, name) == len(ids), f"{name}: {getattr(statistics, name)} counted, {len(ids)} seen"
        seen = Counter(facts.accepted[span_id] for span_id in ids)
        for location, counts in statistics.locations.items():
            counted = getattr(counts, name)
            assert counted == seen[location] or (not by_location and counted < seen[location]), (
                f"{name} at {location}: {counted} counted, {seen[location]} seen"
            )


class Oracle:
    """Collects the facts about one batcher, and compares them with its statistics.

    Args:
        forgets_locations: Whether there are more locations than ``Limits.max_locations``: the batcher may then forget a
            Retry-After.
        longest_wait: The longest time, in seconds, for which the batcher obeys a Retry-After: its policy's
            ``max_elapsed``.

    Attributes:
        batcher: The batcher; to be set before spans are added.
        attempts: The number of exports that have begun.
        failures: Failed checks from places where the tested code would catch an exception.
    """

    batcher: SpanBatcher

    def __init__(self, *, forgets_locations: bool = False, longest_wait: float = math.inf) -> None:
        self._longest_wait = longest_wait
        self.attempts = 0
        self.failures: list[str] = []
        self._span_ids = itertools.count(1)
        self._accepted: dict[int, str] = {}
        # By location, those of damaged records that were not reported yet.
        self._damaged: defaultdict[str, list[int]] = defaultdict(list)
        # Those that an earlier process has left in the spool.
        self._left_before: dict[int, str] = {}
        # Lists whose adder has not returned or was cancelled: a prefix of each was accepted.
        self._in_doubt: dict[int, tuple[str, list[int]]] = {}
        self._doubts = itertools.count()
        self._delivered: set[int] = set()
        self._left_out: set[int] = set()
        self._left_out_of: dict[tuple[int, ...], AbstractSet[int]] = {}
        self._rejected: list[int] = []
        self._undelivered: list[int] = []
        self._doubtful: set[int] = set()
        self._running: set[int] = set()
        self._settled: set[int] = set()
        # The spans of batches that a server took, at least in part, and the number of them that on_loss reported.
        self._answered: set[int] = set()
        self._told_left_out = 0
        self._asked: dict[tuple[int, ...], float | None] = {}
        self._arrived: set[tuple[int, ...]] = set()
        # By location: the time of the last Retry-After, and the time that it named.
        self._left_alone: dict[str, tuple[float, float]] = {}
        self._forgets_locations = forgets_locations

    def left_in_spool(self, location: str, spans: Sequence[Span]) -> None:
        """Record spans that an earlier process has left in the spool."""
        self._left_before |= dict.fromkeys(_ids(spans), location)
        self._accept(location, _ids(spans))

    # -- the program's side ------------------------------------------------------------------------------------

    def make_spans(self, count: int = 1, *, size: int = 0) -> list[Span]:
        """Return spans with unique ids, each padded by about ``size`` bytes."""
        attributes = {"pad": "x" * size} if size else {}
        return [
            Span("work", SpanContext(1, next(self._span_ids)), start_time=1, end_time=2, attributes=attributes)
            for _ in range(count)
        ]

    def add_nowait(self, location: str, spans: Sequence[Span]) -> bool:
        """Add ``spans``, all or none. Return whether they were accepted."""
        try:
            if len(spans) == 1:
                self.batcher.add_span_nowait(location, spans[0])
            else:
                self.batcher.add_spans_nowait(location, spans)
        except trio.WouldBlock:
            return False
        self._accept(location, _ids(spans))
        return True

    async def add(self, location: str, spans: Sequence[Span]) -> None:
        """Add ``spans``, waiting for space.

        Raises:
            trio.ClosedResourceError: The batcher is closed.
        """
        ids = _ids(spans)
        doubt = next(self._doubts)
        self._in_doubt[doubt] = (location, ids)
        try:
            if len(spans) == 1:
                await self.batcher.add_span(location, spans[0])
            else:
                await self.batcher.add_spans(location, spans)
        except trio.Cancelled:
            if len(spans) == 1:
                # If add_span raises Cancelled, it has accepted nothing.
                del self._in_doubt[doubt]
            raise
        except Exception as error:
            del self._in_doubt[doubt]
            self._accept(location, ids[: getattr(error, "accepted", 0)])
            raise
        else:
            del self._in_doubt[doubt]
            self._accept(location, ids)

    def pending(self, location: str | None) -> set[int]:
        """Return the ids of the accepted spans of ``location`` (None: all locations) that are not accounted for."""
        accepted = self._accepted.items()
        found = {span_id for span_id, at in accepted if location in (None, at) and span_id not in self._settled}
        return found - self._left_before.keys()

    def on_loss(self, loss: Loss) -> None:
        """Record spans that were not delivered; the batcher's ``on_loss``."""
        if loss.outcome == "undelivered" and not loss.batch.spans:
            damaged = self._damaged[loss.location]
            # The first spans of a record may be in a batch that was read before.
            lost, damaged[:] = damaged[-loss.count :], damaged[: -loss.count]
            self._expect(len(lost) == loss.count, f"{loss.count} spans cannot be read, though {len(lost)} are damaged")
            self._settled.update(lost)
            self._undelivered += lost
        elif loss.outcome == "undelivered":
            self._undelivered += self._settle(loss.batch)
        elif self._answered.issuperset(span_ids(loss.batch.spans)):
            self._told_left_out += loss.count
        else:
            self._rejected += self._settle(loss.batch)

    # -- the server's side -------------------------------------------------------------------------------------

    def left_out_of(self, request: Iterable[int], left_out: Iterable[int]) -> None:
        """Record the spans that the server leaves out of a request; the client may or may not get its answer.

        Args:
            request: The ids of all spans of the request, in order.
            left_out: The ids of the spans that it leaves out.
        """
        request = tuple(request)
        self._left_out_of[request] = frozenset(left_out)
        self._arrived.add(request)

    def asked_to_wait(self, request: Iterable[int], seconds: float | None) -> None:
        """Record the Retry-After of the server's answer to a request; the client may or may not get it.

        Args:
            request: The ids of all spans of the request, in order.
            seconds: Its value, or None.
        """
        self._asked[tuple(request)] = seconds

    def observe(self, exporter: SpanExporter) -> ObservedExporter:
        """Wrap ``exporter`` so that the oracle sees its exports."""
        return ObservedExporter(self, exporter)

    def attempt_begins(self, batch: SpanBatch) -> list[int]:
        """Record the beginning of an export. Return the ids of its spans."""
        ids = span_ids(batch.spans)
        self._expect(bool(ids), "an empty batch")
        self._expect_none("in two exports at once", self._running.intersection(ids))
        self._expect_none("exported after they were accounted for", self._settled.intersection(ids))
        asked_at, until = self._left_alone.get(batch.location, (0.0, 0.0))
        # An export that began at the same moment as the answer had been started before.
        early = asked_at < trio.current_time() < until - 1e-6 and not self._forgets_locations
        self._expect(not early, f"{batch.location} got a request before the time that its server named")
        self.attempts += 1
        self._running.update(ids)
        self._arrived.discard(tuple(ids))
        return ids

    def attempt_ends(self, batch: SpanBatch, ids: Sequence[int], result: ExportResult | None) -> None:
        """Record the result of an export; None if it was cancelled or raised."""
        self._running.difference_update(ids)
        if result is None or (isinstance(result, TryLater) and result.ambiguous):
            self._doubtful.update(ids)
        if isinstance(result, Delivered):
            left_out = self._left_out_of.get(tuple(ids), frozenset())
            self._expect(
                len(left_out) == min(len(ids), max(0, result.rejected)), f"the server left out {left_out}: {result}"
            )
            self._left_out |= left_out
            self._delivered.update(set(ids) - left_out)
            self._answered.update(self._settle(batch))
        if isinstance(result, TryLater):
            self._note_wait(batch.location, tuple(ids), result)

    def _note_wait(self, location: str, ids: tuple[int, ...], result: TryLater) -> None:
        if result.status_code is not None and ids in self._asked:
            self._expect(result.after == self._asked[ids], f"the server asked for {self._asked[ids]} s: {result}")
        if result.status_code is None and not result.ambiguous:
            self._expect(ids not in self._arrived, f"the server has the request: {result}")
        now = trio.current_time()
        _, until = self._left_alone.get(location, (now, now))
        asked_until = now + min(result.after or 0, self._longest_wait)
        if asked_until > until:
            self._left_alone[location] = (now, asked_until)

    # -- checks ------------------------------------------------------------------------------------------------

    def check_step(self, statistics: SpanBatcherStatistics) -> None:
        """Check the statistics after a scheduling step."""
        assert not self.failures, self.failures
        assert_conserved(statistics)
        assert statistics.delivered == len(self._delivered), (statistics.delivered, len(self._delivered))
        assert statistics.rejected == len(self._rejected) + len(self._left_out)
        assert self._told_left_out == len(self._left_out), (
            "on_loss was not called for spans that a partial success left out"
        )
        assert statistics.undelivered == len(self._undelivered)
        assert statistics.requests == self.attempts
        assert statistics.in_flight >= len(self._running)
        doubted = sum(len(ids) for _, ids in self._in_doubt.values())
        accepted = len(self._accepted) - len(self._left_before)
        assert accepted <= statistics.accepted <= accepted + doubted
        assert statistics.recovered in (0, len(self._left_before))

    def cannot_be_read(self, location: str, ids: Iterable[int]) -> None:
        """Record that a record of the spool is damaged."""
        self._damaged[location] += [span_id for span_id in ids if span_id not in self._settled]

    def commit_is_doubtful(self, ids: Iterable[int]) -> None:
        """Record that nobody knows whether spans were committed."""
        self._doubtful.update(ids)

    def check_end(
        self,
        statistics: SpanBatcherStatistics,
        stored: Iterable[tuple[str, int]],
        *,
        by_location: bool = True,
        on_disk: Iterable[int] = (),
    ) -> Facts:
        """Check that everything is accounted for after the batcher was left. Return the facts.

        Args:
            statistics: The batcher's statistics.
            stored: The location and id of each span that the server stored.
            by_location: See `assert_accounted_for`.
            on_disk: The ids of all spans that are in the spool.
        """
        assert not self.failures, self.failures
        if not statistics.recovered:
            # The batcher was left before it had looked for them.
            self._accepted = {span_id: at for span_id, at in self._accepted.items() if span_id not in self._left_before}
            on_disk = set(on_disk) - self._left_before.keys()
        facts = self.facts(stored, on_disk)
        assert not self._running, f"still exported: {_some(self._running)}"
        assert_accounted_for(facts, statistics, by_location=by_location)
        assert statistics.requests == self.attempts
        return facts

    def facts(self, stored: Iterable[tuple[str, int]], on_disk: Iterable[int] = ()) -> Facts:
        """Return the facts, given the location and id of each span that the server stored."""
        stored, on_disk = list(stored), set(on_disk)
        return Facts(
            accepted=self._accepted | self._accepted_in_doubt(stored, on_disk),
            spooled=on_disk - self._settled,
            stored=stored,
            left_out=self._left_out,
            rejected=self._rejected,
            undelivered=self._undelivered,
            doubtful=self._doubtful,
        )

    def _accepted_in_doubt(self, stored: Iterable[tuple[str, int]], on_disk: set[int]) -> dict[int, str]:
        """Return the spans that must have been accepted of lists whose adders were cancelled: a prefix of each."""
        seen = self._settled | on_disk | {span_id for _, span_id in stored}
        accepted: dict[int, str] = {}
        for location, ids in self._in_doubt.values():
            was_seen = [span_id in seen for span_id in ids]
            assert was_seen == sorted(was_seen, reverse=True), f"{ids} were not accepted in order: {was_seen}"
            accepted |= dict.fromkeys(ids[: sum(was_seen)], location)
        return accepted

    def _accept(self, location: str, ids: Iterable[int]) -> None:
        self._accepted |= dict.fromkeys(ids, location)

    def _settle(self, batch: SpanBatch) -> list[int]:
        ids = span_ids(batch.spans)
        self._expect_none("accounted for twice", self._settled.intersection(ids))
        self._settled.update(ids)
        return ids

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)

    def _expect_none(self, what: str, ids: AbstractSet[int]) -> None:
        self._expect(not ids, f"{what}: {_some(ids)}")


class OracleWatch(trio.abc.Instrument):
    """Compares an oracle with its batcher's statistics after each scheduling step.

    Attributes:
        steps: The number of steps.
        failure: The first failure. It is kept, since trio would only log an exception of an instrument.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.steps = 0
        self.failure: AssertionError | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.failure is None:
            try:
                self._oracle.check_step(self._oracle.batcher.statistics())
            except AssertionError as failure:
                self.failure = failure


class ObservedExporter:
    """An exporter whose attempts and results an `Oracle` records."""

    def __init__(self, oracle: Oracle, exporter: SpanExporter) -> None:
        self._oracle = oracle
        self._exporter = exporter

    async def export(self, batch: SpanBatch) -> ExportResult:
        ids = self._oracle.attempt_begins(batch)
        result: ExportResult | None = None
        try:
            result = await self._exporter.export(batch)
            return result
        finally:
            self._oracle.attempt_ends(batch, ids, result)

    async def aclose(self) -> None:
        await self._exporter.aclose()


def _ids(spans: Iterable[Span]) -> list[int]:
    return [span.context.span_id for span in spans]


def _repeated(ids: Iterable[int]) -> str:
    return _some({span_id for span_id, times in Counter(ids).items() if times > 1})


def _some(ids: Iterable[int]) -> str:
    first = sorted(ids)
    return f"{len(first)} spans, ids {first[:10]}{' ...' if len(first) > 10 else ''}"
