"""The soak's oracle: it forgets settled spans, and reports violations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from tests.soak.oracle import ForgettingOracle, TrackedBatcher
from tests.soak.support import PLAIN, POISON, UNWANTED
from tests.support.batchers import ids_of
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    TryLater,
)
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.testing import InMemoryExporter

AMBIGUOUS = TryLater("gone", ambiguous=True)
DELIVERED = Delivered()


class Scene:
    """An oracle whose clock is set by hand, and the records of a batcher that does not exist."""

    def __init__(self) -> None:
        self.now = 0.0
        self.oracle = ForgettingOracle(lambda: self.now, patience=30.0, longest_pending=180.0)
        self.tracked = TrackedBatcher(self.oracle)

    def offered(self, *kinds: str) -> list[Span]:
        spans = [self.oracle.make_span(kind) for kind in kinds or (PLAIN,)]
        self.oracle.offer(self.tracked, "here", spans)
        return spans

    def accepted(self, *kinds: str) -> list[int]:
        ids = ids_of(self.offered(*kinds))
        self.oracle.accept(ids)
        return ids

    def answered(self, ids: Sequence[int], result: ExportResult | None = DELIVERED) -> None:
        self.tracked.attempt_ends(ids, result)

    def stored(self, ids: Sequence[int], location: str = "here") -> None:
        self.oracle.stored(location, ids)

    def concluded(self) -> list[str]:
        """Let all time limits pass, and return the violations."""
        self.now += 31.0
        self.oracle.sweep()
        self.oracle.finish()
        return self.oracle.violations


def batch_of(*spans: Span, location: str = "here") -> SpanBatch:
    encoder = SpanEncoder()
    return SpanBatch(location, tuple(encoder.encode(span) for span in spans))


# -- no violations ---------------------------------------------------------------------------------------------


def test_a_span_is_forgotten_once_it_is_delivered_and_stored_in_either_order() -> None:
    scene = Scene()
    first, second = scene.accepted(PLAIN, PLAIN)
    scene.answered([first])
    scene.stored([second])
    assert len(scene.oracle) == 2
    scene.stored([first])
    scene.answered([second])
    assert len(scene.oracle) == 0
    assert scene.concluded() == []


def test_a_doubtful_span_may_be_stored_twice_until_it_is_forgotten() -> None:
    scene = Scene()
    ids = scene.accepted()
    scene.answered(ids, AMBIGUOUS)
    scene.answered(ids)
    scene.stored(ids * 2)
    assert len(scene.oracle) == 1
    assert scene.concluded() == []
    scene.stored(ids)
    assert len(scene.oracle.violations) == 1


def test_spans_left_out_by_a_partial_success_are_rejected() -> None:
    scene = Scene()
    plain, unwanted = scene.accepted(PLAIN, UNWANTED)
    scene.answered([plain, unwanted], Delivered(rejected=1))
    scene.stored([plain])
    assert scene.concluded() == []
    assert scene.oracle.outcomes == {"delivered": 1, "rejected": 1}
    assert scene.oracle.counts["good spans rejected"] == 0


# -- violations ------------------------------------------------------------------------------------------------


def is_never_accounted_for(scene: Scene) -> None:
    scene.accepted()


def is_pending_for_minutes(scene: Scene) -> None:
    ids = scene.accepted()
    scene.now += 181.0
    scene.oracle.sweep()
    scene.oracle.settle(ids, "undelivered")


def is_delivered_and_not_stored(scene: Scene) -> None:
    scene.answered(scene.accepted())


def is_delivered_after_a_doubt_and_not_stored(scene: Scene) -> None:
    ids = scene.accepted()
    scene.answered(ids, AMBIGUOUS)
    scene.answered(ids)


def is_stored_twice_before_the_answer(scene: Scene) -> None:
    ids = scene.accepted()
    scene.stored(ids * 2)
    scene.answered(ids)


def is_stored_again_after_it_was_forgotten(scene: Scene) -> None:
    ids = scene.accepted()
    scene.answered(ids)
    scene.stored(ids * 2)


def is_stored_elsewhere(scene: Scene) -> None:
    ids = scene.accepted()
    scene.stored(ids, "there")
    scene.answered(ids)


def is_stored_and_was_never_given(scene: Scene) -> None:
    scene.stored([99])


def is_stored_and_rejected(scene: Scene) -> None:
    ids = scene.accepted()
    scene.stored(ids)
    scene.oracle.settle(ids, "rejected")


def is_accounted_for_twice(scene: Scene) -> None:
    ids = scene.accepted()
    scene.answered(ids, AMBIGUOUS)
    scene.oracle.settle(ids, "rejected")
    scene.oracle.settle(ids, "undelivered")


def is_delivered_though_poisonous(scene: Scene) -> None:
    scene.answered(scene.accepted(POISON))


def is_counted_as_left_out_and_was_wanted(scene: Scene) -> None:
    ids = scene.accepted()
    scene.answered(ids, Delivered(rejected=1))
    scene.stored(ids)


def is_in_two_exports_at_once(scene: Scene) -> None:
    spans = scene.offered()
    scene.oracle.accept(ids_of(spans))
    scene.tracked.attempt_begins(batch_of(*spans))
    scene.tracked.attempt_begins(batch_of(*spans))
    scene.answered(ids_of(spans))
    scene.stored(ids_of(spans))


def is_exported_to_another_location(scene: Scene) -> None:
    spans = scene.offered()
    scene.oracle.accept(ids_of(spans))
    scene.tracked.attempt_begins(batch_of(*spans, location="there"))
    scene.answered(ids_of(spans))
    scene.stored(ids_of(spans))


def is_exported_and_was_not_accepted(scene: Scene) -> None:
    spans = scene.offered()
    scene.tracked.attempt_begins(batch_of(*spans))
    scene.oracle.withdraw(ids_of(spans))


@pytest.mark.parametrize(
    ("happens", "violation"),
    [
        (is_never_accounted_for, "was accepted and never accounted for"),
        (is_pending_for_minutes, "is pending for 181 s"),
        (is_delivered_and_not_stored, "is delivered, and the server never stored it"),
        (is_delivered_after_a_doubt_and_not_stored, "is delivered, and the server never stored it"),
        (is_stored_twice_before_the_answer, "stored 2 times, though no attempt was ambiguous"),
        (is_stored_again_after_it_was_forgotten, "is stored, though it was never accepted, or was accounted for"),
        (is_stored_elsewhere, "span 1 of here is stored at there"),
        (is_stored_and_was_never_given, "is stored, though it was never accepted"),
        (is_stored_and_rejected, "is rejected and stored 1 times"),
        (is_accounted_for_twice, "is undelivered and was rejected"),
        (is_delivered_though_poisonous, "the server accepts no poison spans"),
        (is_counted_as_left_out_and_was_wanted, "0 spans were left out of a request"),
        (is_in_two_exports_at_once, "is exported to here"),
        (is_exported_to_another_location, "is exported to there"),
        (is_exported_and_was_not_accepted, "was not accepted, and yet has an outcome"),
    ],
)
def test_the_oracle_reports_a_span_that(happens: Callable[[Scene], None], violation: str) -> None:
    scene = Scene()
    happens(scene)
    assert any(violation in found for found in scene.concluded()), scene.oracle.violations


# -- with a batcher --------------------------------------------------------------------------------------------


class Watched:
    """A real batcher that is tracked, with an exporter in memory."""

    def __init__(self, exporter: InMemoryExporter) -> None:
        self.oracle = ForgettingOracle()
        self.tracked = TrackedBatcher(self.oracle)
        self.exporter = exporter
        self.tracked.batcher = SpanBatcher(
            self.tracked.observe(exporter),
            batch=BatchPolicy(max_spans=2, max_delay=1.0),
            limits=Limits(max_queued_spans=4),
            on_loss=self.tracked.on_loss,
        )

    def spans(self, count: int) -> list[Span]:
        return [self.oracle.make_span() for _ in range(count)]

    def concluded(self) -> list[str]:
        """Tell the oracle which spans the server stored, and return the violations."""
        self.tracked.close()
        for location, spans in self.exporter.delivered.items():
            self.oracle.stored(location, [int.from_bytes(span.to_message().span_id, "big") for span in spans])
        self.oracle.finish()
        return self.oracle.violations


async def test_the_oracle_finds_no_violation_in_a_correct_batcher(autojump_clock: trio.testing.MockClock) -> None:
    watched = Watched(InMemoryExporter(delay=1.0))
    tracked = watched.tracked
    async with tracked.batcher:
        await tracked.add("here", watched.spans(7))
        with pytest.raises(trio.WouldBlock):
            tracked.add_nowait("here", watched.spans(4))
        with trio.move_on_after(0.5) as one:
            await tracked.add("there", watched.spans(30))
        with trio.move_on_after(0.0) as other:
            await tracked.add("there", watched.spans(1))
        assert one.cancelled_caught
        assert other.cancelled_caught
        assert len(tracked.in_doubt) == 1
        await tracked.flush("here")
        assert len(tracked.in_doubt) == 1
        await tracked.flush(None)
        assert tracked.in_doubt == []
        with trio.move_on_after(0.5):
            await tracked.add("there", watched.spans(30))
        tracked.compare()
    with pytest.raises(trio.ClosedResourceError):
        await tracked.add("here", watched.spans(2))
    assert watched.concluded() == []
    assert 7 < watched.oracle.accepted < 67


async def test_the_oracle_reports_spans_that_it_does_not_know(autojump_clock: trio.testing.MockClock) -> None:
    watched = Watched(InMemoryExporter())
    async with watched.tracked.batcher as batcher:
        batcher.add_span_nowait("here", watched.spans(1)[0])
        watched.tracked.compare()
    assert watched.oracle.violations[0] == "accepted: 1 counted, 0 to 0 seen"
    assert "is exported, though it was never accepted" in watched.oracle.violations[1]


async def test_the_oracle_reports_a_flush_that_returns_early(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flush(self: SpanBatcher, location: str | None = None) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SpanBatcher, "flush", flush)
    watched = Watched(InMemoryExporter())
    async with watched.tracked.batcher:
        await watched.tracked.add("here", watched.spans(1))
        await watched.tracked.flush("here")
    assert watched.concluded() == ["1 spans are pending after a flush, the first is 1"]


async def test_the_oracle_reports_counts_that_differ(autojump_clock: trio.testing.MockClock) -> None:
    watched = Watched(InMemoryExporter())
    async with watched.tracked.batcher:
        await watched.tracked.add("here", watched.spans(3))
    watched.tracked.ambiguous += 1
    watched.tracked.attempts += 1
    assert watched.concluded() == ["ambiguous: 0 counted, 1 seen", "requests: 2 counted, 3 seen"]


async def test_the_oracle_reports_spans_pending_when_it_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    watched = Watched(InMemoryExporter())
    async with watched.tracked.batcher:
        await watched.tracked.add("here", watched.spans(1))
        watched.tracked.close()
    first, second = watched.oracle.violations
    assert first == "1 spans are pending after the end, the first is 1"
    assert second.startswith("after the end: SpanBatcherStatistics(accepted=1, recovered=0, queued=1, ")


async def test_the_oracle_reports_statistics_that_are_not_conserved(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(InMemoryExporter())
    async with watched.tracked.batcher as batcher:
        monkeypatch.setattr(batcher, "statistics", lambda: SpanBatcherStatistics(accepted=1))
        watched.tracked.accepted = 1
        watched.tracked.compare()
    assert watched.oracle.violations[0].startswith("the statistics are not conserved: ")


async def test_the_oracle_reports_a_list_that_was_not_accepted_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watched = Watched(InMemoryExporter())
    spans = watched.spans(2)
    async with watched.tracked.batcher:
        # As if the adder of both had been cancelled, and only the second was accepted.
        watched.oracle.offer(watched.tracked, "here", spans)
        watched.tracked.in_doubt.append(ids_of(spans))
        await watched.tracked.batcher.add_span("here", spans[1])
        await watched.tracked.flush(None)
    assert watched.concluded() == ["spans 1 to 2 were not accepted in order"]
