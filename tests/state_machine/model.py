"""The model of the state machine: the statistics and actions of a batcher that are possible at each step.

It follows a batcher from outside: the exports that it begins, their answers, the losses that it reports, its
statistics. After each step of each task it checks that they are possible: every span is in one place, the limits are
kept, adders are served in order, the counts are right. `RestCheck` checks what must have happened at rest.

One internal of the batcher is told to the model, its mapping of live locations: nothing else shows when one ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import attrs
import trio

from tests.state_machine.location import NEARLY, DeliveryModel, Export, LocationModel, Settings, cost_of, request_size
from trio_spanbatch import (
    Delivered,
    EncodedSpan,
    FlushCounts,
    FlushReport,
    LocationStatistics,
    Loss,
    Refused,
    SpanBatch,
    SpanBatcherStatistics,
    TryLater,
)

__all__ = ["FlushModel", "Model"]


@attrs.define(eq=False)
class _FlushPart:
    watermark: int
    waits_for: set[int]
    counts: Counter[str] = attrs.Factory(Counter)


@attrs.define(eq=False)
class FlushModel:
    """A flush: the spans that it waits for, and their outcomes."""

    parts: dict[str, _FlushPart] = attrs.Factory(dict)

    @property
    def is_finished(self) -> bool:
        return not any(part.waits_for for part in self.parts.values())

    def settled(self, location: str, numbers: range, rejected: int, undelivered: int) -> None:
        part = self.parts.get(location)
        if part is None or not part.waits_for.intersection(numbers):
            return
        below = len(range(numbers.start, min(numbers.stop, part.watermark)))
        part.waits_for.difference_update(numbers)
        part.counts["rejected"] += (rejected := min(rejected, below))
        part.counts["undelivered"] += (undelivered := min(undelivered, below - rejected))
        part.counts["delivered"] += below - rejected - undelivered

    def report(self) -> FlushReport:
        total = sum((part.counts for part in self.parts.values()), Counter[str]())
        locations = {name: FlushCounts(**part.counts) for name, part in self.parts.items()}
        return FlushReport(**total, locations=locations)


@attrs.define(eq=False)
class Model:
    """All locations and their shared state.

    Attributes:
        step: The number of checks so far: after steps of tasks and after actions of rules.
        scheduled: The number of passes of trio's scheduler.
        waited_in: The last step in which an adder waited.
        somebody_waits: Whether an adder waited after the last step.
        exports: The running exports.
        byte_queue: The locations whose first adder waits only for the byte budget, and the step in which that began.
        heads: The first spans that wait there.
        not_now: The spans that must not be accepted in this step, and their locations.
        empty: The live locations without spans or adders, longest empty first.
        ending: The locations that will have ended after the scheduler's next step.
        ended: The locations that ended and are remembered, oldest first.
        forgotten: The sum of the statistics of locations that are no longer remembered.
        drain_began_at: The time at which the drain began; `math.inf` before.
        spare_slots: Whether there was a slot to spare, at each change, with the number of the scheduler's pass.
    """

    settings: Settings
    locations: dict[str, LocationModel] = attrs.field(init=False)
    step: int = 0
    scheduled: int = 0
    waited_in: int = -1
    somebody_waits: bool = False
    exports: list[Export] = attrs.Factory(list)
    flushes: list[FlushModel] = attrs.Factory(list)
    byte_queue: dict[str, int] = attrs.Factory(dict)
    heads: dict[str, EncodedSpan] = attrs.Factory(dict)
    not_now: list[tuple[str, EncodedSpan]] = attrs.Factory(list)
    empty: dict[str, None] = attrs.Factory(dict)
    ending: set[str] = attrs.Factory(set)
    ended: dict[str, None] = attrs.Factory(dict)
    forgotten: Counter[str] = attrs.Factory(Counter)
    drain_began_at: float = math.inf
    spare_slots: list[tuple[int, bool]] = attrs.Factory(list)

    def __attrs_post_init__(self) -> None:
        self.locations = {name: LocationModel(name, self.settings) for name in self.settings.policies}

    @property
    def draining(self) -> bool:
        return self.drain_began_at < math.inf

    @property
    def work_ends_at(self) -> float:
        """The time at which the drain stops deliveries."""
        timeout = self.settings.shutdown_timeout
        return self.drain_began_at + timeout - min(1, timeout / 10)

    @property
    def live(self) -> list[LocationModel]:
        return [location for location in self.locations.values() if location.is_live]

    @property
    def unsettled(self) -> bool:
        """Whether a span is not accounted for."""
        return any(location.unsettled for location in self.locations.values())

    @property
    def pending_bytes(self) -> int:
        return sum(location.pending_bytes for location in self.locations.values())

    # -- adding ------------------------------------------------------------------------------------------------

    def expected_error(self, name: str, spans: list[EncodedSpan]) -> str | None:
        """Return the name of the error that adding ``spans`` must raise at once, if any."""
        location = self.locations[name]
        if self.draining:
            return "ClosedResourceError"
        if len(spans) > self.settings.limits.max_queued_spans:
            return "ValueError"
        if cost_of(spans) > self.settings.location_bytes:
            return "InvalidSpanError"
        if not location.is_live and len(self.live) >= self.settings.limits.max_locations and not self.empty:
            return "TooManyLocationsError"
        return None

    def admits(self, name: str, spans: list[EncodedSpan]) -> bool:
        """Return whether there is space for ``spans`` for which no adder waits already."""
        location = self.locations[name]
        return (
            not location.line
            and not any(self._waiting_for_bytes())
            and location.has_room(spans)
            and self._has_bytes(location.cost_now(spans))
        )

    def stand_in_line(self, name: str, spans: list[EncodedSpan]) -> None:
        """Put ``spans`` in the line. Those that are admitted at once leave it in the same step."""
        if not self.admits(name, spans):
            self.waited_in = self.step + 1
        self.locations[name].line += spans

    def has_to_wait(self, name: str, span: EncodedSpan) -> None:
        """Note that ``span``, which has to wait, must not be accepted in this step."""
        self.not_now.append((name, span))

    def withdraw(self, name: str, span: EncodedSpan) -> None:
        """Take an adder out of the line, if it is there."""
        line = self.locations[name].line
        line[:] = [one for one in line if one is not span]

    def _has_bytes(self, size: int) -> bool:
        return self.pending_bytes + size <= self.settings.limits.max_pending_bytes

    def _waiting_for_bytes(self) -> Iterator[LocationModel]:
        """Yield the locations whose first adder waits only for the shared byte budget."""
        return (place for place in self.locations.values() if place.line and place.has_room(place.line[:1]))

    # -- live locations ----------------------------------------------------------------------------------------

    def location_opened(self, name: str) -> None:
        """Note that a location became live. If there were too many, one ended before."""
        location = self.locations[name]
        assert not location.is_live, f"{name} was opened twice"
        assert len(self.live) < self.settings.limits.max_locations, "more locations than max_locations"
        self.ended.pop(name, None)
        self.ending.discard(name)
        self.empty[name] = None
        location.open(trio.current_time(), self.scheduled)
        self._note_spare_slots()

    def location_ended(self, name: str) -> None:
        """Check that a location ended because it was idle for long enough, for another one, or in the drain."""
        location = self.locations[name]
        idle_until = location.idle_since + self.settings.limits.location_idle_timeout
        was_due = self.draining or trio.current_time() >= idle_until - NEARLY
        is_replaced = len(self.live) >= self.settings.limits.max_locations and next(iter(self.empty), None) == name
        assert not location.line
        assert was_due or is_replaced, f"{name} ended too early"
        location.is_live = False
        self._note_spare_slots()
        self.empty.pop(location.name, None)
        self.ending.add(location.name)

    def location_is_remembered(self, name: str) -> None:
        """Note that the counts of an ended location are kept. If they are too many, forget the oldest."""
        assert not self.locations[name].is_live, f"{name} has ended and lives"
        self.ending.discard(name)
        self.ended[name] = None
        if len(self.ended) > self.settings.limits.max_locations:
            oldest = self.locations[next(iter(self.ended))]
            del self.ended[oldest.name]
            self.forgotten += oldest.counts
            oldest.counts.clear()
            oldest.consecutive_failures = 0
            oldest.not_before = -math.inf

    # -- exports -----------------------------------------------------------------------------------------------

    def export_begins(self, batch: SpanBatch) -> Export:
        now, task = trio.current_time(), trio.lowlevel.current_task()
        location = self.locations[batch.location]
        part = location.part(batch)
        assert part.stop <= location.sealed, f"{location.name}: {part} is exported and still queued"
        assert location.unsettled.issuperset(part), f"{location.name}: {part} is exported, but accounted for"
        self._check_size(location, part)
        delivery = location.deliveries.setdefault(task, DeliveryModel(part.start, now))
        assert delivery.running is None
        assert not location.running or self._had_slot_to_spare(), f"{location.name}: took a slot kept free for others"
        export = delivery.running = Export(location, delivery, batch, part, now)
        self.exports.append(export)
        self._note_spare_slots()
        self._check_pace(location, now)
        location.counts["requests"] += 1
        location.counts["retries"] += delivery.attempts[part] > 0
        delivery.attempts[part] += 1
        return export

    def _check_size(self, location: LocationModel, part: range) -> None:
        assert len(part) <= location.max_spans
        size = request_size(location.spans[part.start : part.stop])
        assert len(part) == 1 or size <= location.policy.max_bytes, f"{part} has too many bytes"

    def _check_pace(self, location: LocationModel, now: float) -> None:
        running = len(location.running)
        allowed, retry_at = location.recent_pace(self.scheduled)
        assert len(self.exports) <= self.settings.limits.max_exports, "more exports than max_exports"
        assert running <= self.settings.limits.max_exports_per_location, "more exports than max_exports_per_location"
        assert running <= allowed, f"{location.name}: {running} exports run where {allowed} are allowed"
        assert now >= retry_at - NEARLY, f"{location.name}: asked at {now}, though it backs off until {retry_at}"

    def has_slot_to_spare(self) -> bool:
        """Return whether a location with a running export may begin another: half of the slots are kept for others."""
        limit = self.settings.limits.max_exports
        exporting = len({export.location.name for export in self.exports})
        for_newcomers = exporting > 1 and not self.draining
        kept_free = limit // 2 if for_newcomers else min(len(self.live) - exporting, limit // 2)
        return limit - len(self.exports) > kept_free

    def _note_spare_slots(self) -> None:
        self.spare_slots.append((self.scheduled, self.has_slot_to_spare()))

    def _had_slot_to_spare(self) -> bool:
        """Return whether there was one in this pass of the scheduler or the last: the driver decides one pass earlier.

        The model may count too many: it does not see slots that were taken for exports that have not begun yet.
        """
        while len(self.spare_slots) > 1 and self.spare_slots[1][0] < self.scheduled - 1:
            del self.spare_slots[0]
        return any(spare for _, spare in self.spare_slots)

    def export_ends(self, export: Export, answer: object) -> None:
        """Note that an export returns ``answer``, or raises it."""
        self.exports.remove(export)
        self._note_spare_slots()
        export.delivery.running = None
        location, now = export.location, trio.current_time()
        cut_off = isinstance(answer, trio.Cancelled)
        if cut_off:
            timed_out = now >= export.begun_at + self.settings.retry.attempt_timeout - NEARLY
            assert timed_out or self._drain_has_stopped(now), "an export was cut off before its time"
            answer = TryLater("no answer in time", ambiguous=True)
        if answer.ambiguous if isinstance(answer, TryLater) else not isinstance(answer, Delivered | Refused):
            location.doubt(export.part)
        drain_deadline = self.work_ends_at if self.draining else math.inf
        latest = min(drain_deadline, location.give_up_at(export.delivery))
        location.answered(answer, now, drain_deadline, latest, self.scheduled)
        if isinstance(answer, Delivered):
            rejected = max(0, min(answer.rejected, len(export.part)))
            self._settle(location, export.part, delivered=len(export.part) - rejected, rejected=rejected)
        if not (cut_off and self._drain_has_stopped(now)):
            location.owes_after(export, answer, now)

    def _drain_has_stopped(self, now: float) -> bool:
        return now >= self.work_ends_at - NEARLY

    def told_of(self, loss: Loss) -> None:
        """Check a call of ``on_loss``."""
        location = self.locations[loss.location]
        part = location.part(loss.batch)
        if (told := (part, loss.outcome, loss.count)) in location.owed:
            location.owed.remove(told)
            if loss.count == len(part) and not location.unsettled.issuperset(part):
                # A partial success that rejected all spans was accounted for when it was answered.
                return
        elif loss.outcome == "rejected":
            delivery = location.deliveries.get(trio.lowlevel.current_task())
            assert location.is_told_refused(part, delivery), f"{location.name}: {part} rejected, but by no server"
        else:
            self._check_hand_back(location, part)
        if loss.count == len(part):
            self._settle(location, part, **{loss.outcome: loss.count})

    def _check_hand_back(self, location: LocationModel, part: range) -> None:
        now, task = trio.current_time(), trio.lowlevel.current_task()
        delivery = location.deliveries.get(task)
        if delivery is None:
            location.hand_back(part, now)
        hopeless = self.draining and location.retry_at >= self.work_ends_at - NEARLY
        exhausted = delivery is not None and now >= location.give_up_at(delivery) - NEARLY
        assert hopeless or exhausted or self._drain_has_stopped(now), f"{location.name}: {part} handed back too early"

    def _settle(self, location: LocationModel, part: range, **outcome: int) -> None:
        assert part.stop <= location.sealed
        location.settle(part, trio.current_time(), **outcome)
        for flush in self.flushes:
            flush.settled(location.name, part, outcome.get("rejected", 0), outcome.get("undelivered", 0))

    # -- flushing and draining ---------------------------------------------------------------------------------

    def flush_begins(self, name: str | None) -> FlushModel:
        flush = FlushModel()
        for location in self.live:
            if location.unsettled and name in (None, location.name):
                location.flushed_below = len(location.spans)
                flush.parts[location.name] = _FlushPart(len(location.spans), set(location.unsettled))
        self.flushes.append(flush)
        return flush

    def flush_returns(self, flush: FlushModel, report: FlushReport) -> None:
        self.flushes.remove(flush)
        assert flush.is_finished, "a flush returned before what it waits for was accounted for"
        assert report == flush.report()

    def drain_begins(self) -> None:
        self.drain_began_at = now = trio.current_time()
        # Slots that were kept for new locations are spare now.
        self._note_spare_slots()
        self.byte_queue.clear()
        for location in self.locations.values():
            location.line.clear()
            location.own_wait_until = min(location.own_wait_until, now)
            location.note_pace(self.scheduled)

    # -- checks after each step --------------------------------------------------------------------------------

    def see(self, statistics: SpanBatcherStatistics) -> None:
        """Check the statistics after a step of a task or an action of a rule."""
        self.step += 1
        # An adder that waited before this step may have made batches due in it, even if none waits after it.
        if self.somebody_waits:
            self.waited_in = self.step
        admitted = self._follow(statistics)
        self.somebody_waits = any(location.line for location in self.locations.values())
        while self.not_now:
            name, span = self.not_now.pop()
            assert not any(one is span for one in self.locations[name].spans), f"an adder of {name} did not wait"
        self._check_counts(statistics)
        self._check_limits()
        self._check_lines(admitted)
        for location in self.live:
            if location.unsettled or location.line:
                self.empty.pop(location.name, None)
            else:
                self.empty.setdefault(location.name)

    def _follow(self, statistics: SpanBatcherStatistics) -> dict[str, int]:
        now = trio.current_time()
        remembered = {*self.ended, *self.ending, *(location.name for location in self.live)}
        assert statistics.locations.keys() == remembered
        return {
            name: self.locations[name].follow(seen, now, self.step, self.waited_in, draining=self.draining)
            for name, seen in statistics.locations.items()
        }

    def _check_counts(self, statistics: SpanBatcherStatistics) -> None:
        total = Counter(self.forgotten)
        for location in self.locations.values():
            assert not location.owed, f"{location.name}: {location.owed} was not reported"
            expected = location.expected()
            total.update(expected)
            seen = statistics.locations.get(location.name, LocationStatistics())
            assert {name: getattr(seen, name) for name in expected} == expected, location.name
            assert seen.consecutive_failures == location.consecutive_failures
        assert {name: getattr(statistics, name) for name in total} == total

    def _check_limits(self) -> None:
        limits = self.settings.limits
        assert self.pending_bytes <= limits.max_pending_bytes, "more bytes than max_pending_bytes"
        for location in self.locations.values():
            assert location.queued <= limits.max_queued_spans, "more spans than max_queued_spans"
            assert location.pending_bytes <= limits.max_pending_bytes_per_location

    def _check_lines(self, admitted: dict[str, int]) -> None:
        """Check that no adder overtakes another."""
        for name, since in self.byte_queue.items():
            stays = not admitted.get(name) and self.locations[name].line[:1] == [self.heads[name]]
            for other, other_since in self.byte_queue.items():
                # Each location has one turn and then goes to the end.
                turns = 0 if since < other_since else 1
                overtaken = stays and name != other and admitted.get(other, 0) > turns
                assert not overtaken, f"an adder of {other} overtook one of {name} that waits for bytes"
        standing = {location.name: location for location in self._waiting_for_bytes()}
        self.byte_queue = {
            name: self.step if admitted.get(name) else self.byte_queue.get(name, self.step) for name in standing
        }
        self.heads = {name: location.line[0] for name, location in standing.items()}

    def check_rest(self) -> None:
        """Check that no adder waits whose span would fit, and that no location is about to end."""
        assert not self.ending, f"{self.ending} do not end"
        first = [name for name, since in self.byte_queue.items() if since == min(self.byte_queue.values())]
        fit = [name for name in first if self._has_bytes(self.locations[name].cost_now([self.heads[name]]))]
        assert not first or len(fit) < len(first), f"adders of {fit} wait, though there is room for them"
