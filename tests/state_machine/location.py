"""The state machine's model of one location, independent of the package's code.

It is a list of the accepted spans in order, with the number of those that were sealed and the set of those that are
settled. The ends of batches follow from the exports, and the location's concurrency and backoff from their answers.
"""

from __future__ import annotations

import math
from collections import Counter

import attrs
import trio

from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    Limits,
    LocationStatistics,
    Refused,
    RetryPolicy,
    SpanBatch,
    TryLater,
)

__all__ = ["NEARLY", "DeliveryModel", "Export", "LocationModel", "Settings", "request_size"]

# Seconds. The tolerance for comparing times: the model adds them up in a different order.
NEARLY = 1e-9


@attrs.frozen
class Settings:
    """The arguments of a batcher.

    Attributes:
        jitter: The fraction of its longest time that every backoff takes.
    """

    limits: Limits
    retry: RetryPolicy
    policies: dict[str, BatchPolicy]
    jitter: float
    shutdown_timeout: float

    @property
    def location_bytes(self) -> int:
        return min(self.limits.max_pending_bytes_per_location, self.limits.max_pending_bytes)


def cost_of(spans: list[EncodedSpan], before: EncodedSpan | None = None) -> int:
    """Return the cost of spans that follow ``before``, in bytes: resource and scope count where they change."""
    pairs = zip([before, *spans], spans, strict=False)
    others = [span.headers for last, span in pairs if last is None or last.headers is not span.headers]
    return sum(span.size for span in spans) + sum(len(own.resource) + len(own.scope) for own in others)


def request_size(spans: list[EncodedSpan]) -> int:
    """Build a request and return its size."""
    return len(SpanBatch("", spans).to_request())


@attrs.define(eq=False)
class Export:
    """A running export.

    Attributes:
        batch: Its argument.
        part: The numbers of its spans in their location.
        begun_at: The time of its beginning.
        answer: The value that it will return, or the exception that it will raise.
        answered: Set when ``answer`` is set.
    """

    location: LocationModel
    delivery: DeliveryModel
    batch: SpanBatch
    part: range
    begun_at: float
    answer: object = None
    answered: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class DeliveryModel:
    """The attempts at one batch.

    Attributes:
        first: The number of its first span.
        stop: The number after its last span; known at rest.
        first_attempt_at: The time of the first attempt; None if the batch was handed back without one.
        attempts: The number of attempts for each part.
        running: Its running export.
    """

    first: int
    first_attempt_at: float | None
    stop: int | None = None
    attempts: Counter[range] = attrs.Factory(Counter)
    running: Export | None = None


@attrs.frozen
class Seal:
    """The state when spans were sealed.

    Attributes:
        accepted_before: The number of spans that the location had accepted one step before.
        accepted: The number that it had accepted after the step.
        flushed_below: Spans below this number were due because of a flush.
        waited_in: The last step in which an adder of any location waited.
        retry_at: When the last backoff ended.
        settled_at: When the location will have settled after that.
        draining: Whether the drain had begun.
    """

    time: float
    accepted_before: int
    accepted: int
    flushed_below: int
    waited_in: int
    retry_at: float
    settled_at: float
    draining: bool


@attrs.define(eq=False)
class LocationModel:
    """One location.

    Attributes:
        spans: The accepted spans. Their indexes in this list are their numbers.
        costs: The cost of each span in the byte budgets.
        accepted_at: The time at which each span was accepted.
        accepted_in: The step in which each span was accepted.
        seals: For each sealed span, the state at that time.
        unsettled: The numbers of the spans that are not accounted for.
        line: The spans of the waiting adders, in order of arrival.
        counts: The expected statistics.
        deliveries: The deliveries by their tasks; those that only hand spans back have another key.
        refused: The parts that the server refused.
        refusing: The deliveries that were refused, wholly or in part, since the last success.
        owed: The losses that must be reported in this step: part, outcome, count.
        flushed_below: Spans below this number are due.
        is_live: Whether the location is live.
        pace: The changes of `allowed` and `retry_at`, with the number of the scheduler's pass.
    """

    name: str
    settings: Settings
    spans: list[EncodedSpan] = attrs.Factory(list)
    costs: list[int] = attrs.Factory(list)
    accepted_at: list[float] = attrs.Factory(list)
    accepted_in: list[int] = attrs.Factory(list)
    seals: list[Seal] = attrs.Factory(list)
    unsettled: set[int] = attrs.Factory(set)
    pending_bytes: int = 0
    line: list[EncodedSpan] = attrs.Factory(list)
    counts: Counter[str] = attrs.Factory(Counter)
    ambiguous: set[int] = attrs.Factory(set)
    deliveries: dict[object, DeliveryModel] = attrs.Factory(dict)
    refused: list[range] = attrs.Factory(list)
    refusing: set[DeliveryModel] = attrs.Factory(set)
    owed: list[tuple[range, str, int]] = attrs.Factory(list)
    flushed_below: int = 0
    is_live: bool = False
    idle_since: float = 0.0
    consecutive_failures: int = 0
    not_before: float = -math.inf
    own_wait_until: float = -math.inf
    settled_at: float = -math.inf
    backoffs: int = 0
    allowed: int = 1
    pace: list[tuple[int, int, float]] = attrs.Factory(list)

    # -- queue and budgets -------------------------------------------------------------------------------------

    @property
    def policy(self) -> BatchPolicy:
        return self.settings.policies[self.name]

    @property
    def max_spans(self) -> int:
        return min(self.policy.max_spans, self.settings.limits.max_queued_spans)

    @property
    def sealed(self) -> int:
        return len(self.seals)

    @property
    def queued(self) -> int:
        return len(self.spans) - self.sealed

    @property
    def running(self) -> list[Export]:
        return [delivery.running for delivery in self.deliveries.values() if delivery.running is not None]

    def expected(self) -> dict[str, int]:
        """Return the expected statistics of the location."""
        names = ("accepted", "delivered", "rejected", "undelivered", "requests", "retries", "ambiguous", "spooled")
        return {
            **{name: self.counts[name] for name in names},
            "queued": self.queued,
            "in_flight": len(self.unsettled) - self.queued,
            "pending_bytes": self.pending_bytes,
        }

    def has_room(self, spans: list[EncodedSpan]) -> bool:
        """Return whether the location's own limits admit ``spans``."""
        return (
            self.queued + len(spans) <= self.settings.limits.max_queued_spans
            and self.pending_bytes + self.cost_now(spans) <= self.settings.location_bytes
        )

    def cost_now(self, spans: list[EncodedSpan]) -> int:
        """Return the bytes that ``spans`` would cost if they were accepted now."""
        return cost_of(spans, self.spans[-1] if self.unsettled else None)

    def part(self, batch: SpanBatch) -> range:
        """Return the numbers of a batch's spans, which must be consecutive."""
        assert batch.location == self.name
        assert batch.spans, "a batch has spans"
        assert batch.size == len(batch.to_request()), "a batch knows the size of its request"
        first = self._number(batch.spans[0])
        part = range(first, first + len(batch.spans))
        assert self.spans[part.start : part.stop] == list(batch.spans), f"{self.name}: a batch is not in order"
        return part

    def _number(self, span: EncodedSpan) -> int:
        assert span in self.spans, f"{self.name}: a span that was not accepted for it"
        return self.spans.index(span)

    # -- batches -----------------------------------------------------------------------------------------------

    def is_full(self, first: int, stop: int) -> bool:
        """Return whether a batch of these spans, if no others are queued, has no space for one more."""
        spans = self.spans[first:stop]
        return len(spans) >= self.max_spans or request_size(spans) >= self.policy.max_bytes

    def cut(self, first: int) -> tuple[int, bool]:
        """Return the end of the batch that begins with queued span ``first``, and whether it is full."""
        for stop in range(first + 1, len(self.spans) + 1):
            if self.is_full(first, stop):
                return stop, True
            if stop < len(self.spans) and request_size(self.spans[first : stop + 1]) > self.policy.max_bytes:
                return stop, True
        return len(self.spans), False

    # -- following the statistics ------------------------------------------------------------------------------

    def follow(self, seen: LocationStatistics, now: float, step: int, waited_in: int, *, draining: bool) -> int:
        """Follow the counts: move adders into the queue and spans out of it. Return the number of admitted adders."""
        admitted = seen.accepted - self.counts["accepted"]
        assert 0 <= admitted <= len(self.line), f"{self.name}: {admitted} were accepted of {len(self.line)}"
        accepted_before = len(self.spans)
        for span in self.line[:admitted]:
            self.costs.append(self.cost_now([span]))
            self.pending_bytes += self.costs[-1]
            self.unsettled.add(len(self.spans))
            self.spans.append(span)
            self.accepted_at.append(now)
            self.accepted_in.append(step)
            self.counts["accepted"] += 1
        del self.line[:admitted]
        sealed = len(self.spans) - seen.queued - self.sealed
        assert 0 <= sealed <= self.queued, f"{self.name}: {sealed} were sealed of {self.queued}"
        self.seals += [self._seal(now, accepted_before, waited_in, draining=draining)] * sealed
        return admitted

    def hand_back(self, part: range, now: float) -> None:
        """Take spans out of the queue that the drain hands back without a delivery."""
        assert part.start == self.sealed, f"{self.name}: {part} was not the first in the queue"
        self.seals += [self._seal(now, len(self.spans), 0, draining=True)] * len(part)
        self.deliveries[object()] = DeliveryModel(part.start, None, part.stop)

    def _seal(self, now: float, accepted_before: int, waited_in: int, *, draining: bool) -> Seal:
        accepted, flushed_below = len(self.spans), self.flushed_below
        return Seal(now, accepted_before, accepted, flushed_below, waited_in, self.retry_at, self.settled_at, draining)

    def settle(self, part: range, now: float, **outcome: int) -> None:
        """Account for sealed spans."""
        assert sum(outcome.values()) == len(part), f"{self.name}: {outcome} does not add up to {part}"
        assert self.unsettled.issuperset(part), f"{self.name}: {part} was accounted for already"
        self.unsettled.difference_update(part)
        self.pending_bytes -= sum(self.costs[number] for number in part)
        self.counts.update(outcome)
        if not self.unsettled:
            self.idle_since = now

    def doubt(self, part: range) -> None:
        """Record an attempt of unknown outcome."""
        self.counts["ambiguous"] += len(set(part) - self.ambiguous)
        self.ambiguous.update(part)

    # -- pace --------------------------------------------------------------------------------------------------

    @property
    def retry_at(self) -> float:
        return max(self.own_wait_until, self.not_before)

    def give_up_at(self, delivery: DeliveryModel) -> float:
        began_at = delivery.first_attempt_at
        return math.inf if began_at is None else began_at + self.settings.retry.max_elapsed

    def answered(self, answer: object, now: float, drain_deadline: float, latest: float, scheduled: int) -> None:
        """Update concurrency and backoff after an answer; an exception or an invalid result is a failure."""
        if isinstance(answer, Delivered):
            self.consecutive_failures = 0
            if now >= self.retry_at:
                if now >= self.settled_at:
                    self.backoffs = 0
                self.allowed = min(self.allowed + 1, self.settings.limits.max_exports_per_location)
        else:
            self.consecutive_failures += 1
            self.allowed = 1
        if isinstance(answer, TryLater):
            self._back_off(answer.after, now, drain_deadline, latest)
        self.note_pace(scheduled)

    def _back_off(self, after: float | None, now: float, drain_deadline: float, latest: float) -> None:
        already = self.retry_at > now
        self.backoffs += not already
        longest = self.settings.retry.max_elapsed
        if after:
            asked_at = now + min(after, longest)
            spread = min(after * 0.1 * self.settings.jitter, max(0.0, min(latest, now + longest) - asked_at))
            self.not_before = max(self.not_before, asked_at + spread)
        retry = self.settings.retry
        longest_wait = min(retry.maximum, retry.initial * retry.multiplier ** (self.backoffs - 1))
        if not already and (not after or after > longest):
            wait = self.settings.jitter * longest_wait
            left = drain_deadline - now
            self.own_wait_until = math.inf if left < 0.1 else now + min(wait, left / 2)
        self.settled_at = self.retry_at + longest_wait

    def open(self, now: float, scheduled: int) -> None:
        """Make the location live again. It remembers only the time that its server asked for."""
        self.is_live = True
        self.idle_since = now
        self.own_wait_until = self.settled_at = -math.inf
        self.backoffs = 0
        self.allowed = 1
        self.note_pace(scheduled)

    def note_pace(self, scheduled: int) -> None:
        self.pace.append((scheduled, self.allowed, self.retry_at))

    def recent_pace(self, scheduled: int) -> tuple[int, float]:
        """Return the best values of this pass of the scheduler and the last: the driver decides one pass earlier."""
        while len(self.pace) > 1 and self.pace[1][0] < scheduled - 1:
            del self.pace[0]
        return max(allowed for _, allowed, _ in self.pace), min(retry_at for _, _, retry_at in self.pace)

    def is_told_refused(self, part: range, delivery: DeliveryModel | None) -> bool:
        """Return whether the server refused a request that held all of ``part``, or refuses everything.

        If a location has refused a whole batch, a single span of the next one is tried, and decides about the rest.
        """
        covered = any(part.start >= other.start and part.stop <= other.stop for other in self.refused)
        return covered or (delivery in self.refusing and len(self.refusing) > 1)

    def _is_too_late(self, answer: TryLater, delivery: DeliveryModel, now: float) -> bool:
        asked_again_at = max(self.retry_at, now + (answer.after or 0))
        return asked_again_at > self.give_up_at(delivery) + NEARLY

    def owes_after(self, export: Export, answer: object, now: float) -> None:
        """Record the losses that must be reported in the step in which an export ended."""
        part = export.part
        if isinstance(answer, Delivered):
            self.refusing.clear()
            if rejected := max(0, min(answer.rejected, len(part))):
                self.owed.append((part, "rejected", rejected))
        elif isinstance(answer, Refused):
            self.refused.append(part)
            self.refusing.add(export.delivery)
            if not answer.isolate or len(part) == 1:
                self.owed.append((part, "rejected", len(part)))
        elif not isinstance(answer, TryLater) or self._is_too_late(answer, export.delivery, now):
            self.owed.append((part, "undelivered", len(part)))
