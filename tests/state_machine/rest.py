"""Liveness checks: what must have happened whenever the run comes to rest.

The model checks safety at each step. This module checks that nothing was *left undone*: no batch is due while a slot is
free, and no delivery, flush or adder waits in vain. Time stands still, so "eventually" means "before the run
comes to rest".
"""

from __future__ import annotations

import math

import attrs
import trio

from tests.state_machine.location import NEARLY, DeliveryModel, LocationModel, Seal, request_size
from tests.state_machine.model import Model
from trio_spanbatch import SpanBatcherStatistics

__all__ = ["RestCheck"]


@attrs.define(eq=False)
class RestCheck:
    """Checks a run that came to rest.

    Attributes:
        waiting: The deliveries that waited for another attempt at the last rest.
        attempts: The number of attempts that each delivery had made by then.
    """

    model: Model
    waiting: set[DeliveryModel] = attrs.Factory(set)
    attempts: dict[DeliveryModel, int] = attrs.Factory(dict)

    def look(self, statistics: SpanBatcherStatistics) -> None:
        now = trio.current_time()
        for location in self.model.locations.values():
            self._find_batches(location)
            self._check_waiting_deliveries(location, now)
            self._check_queue(location, now)
            self._check_end(location, now)
            self._check_age(location, statistics, now)
        self.waiting = {d for location in self.model.locations.values() for d in self._open(location)}
        for export in self.model.exports:
            assert now < self.model.work_ends_at, "the drain does not stop an export"
            assert now < export.begun_at + self.model.settings.retry.attempt_timeout, "an attempt takes too long"
        assert not any(flush.is_finished for flush in self.model.flushes), "a flush does not return"

    # -- batches -----------------------------------------------------------------------------------------------

    def _find_batches(self, location: LocationModel) -> None:
        """Find the end of each batch, where the next begins; check that first attempts are in order and complete."""
        deliveries = sorted(location.deliveries.values(), key=lambda delivery: delivery.first)
        assert not deliveries or deliveries[0].first == 0
        assert deliveries or not location.sealed, f"{location.name}: a batch was sealed and never sent"
        stops = [delivery.first for delivery in deliveries[1:]] + [location.sealed]
        began = [delivery.first_attempt_at for delivery in deliveries if delivery.first_attempt_at is not None]
        assert began == sorted(began), f"{location.name}: a batch overtook an older one"
        for delivery, stop in zip(deliveries, stops, strict=False):
            assert all(part.stop <= stop for part in delivery.attempts), f"{location.name}: batches overlap"
            assert delivery.stop in (None, stop), f"{location.name}: a batch is in two deliveries, or in none"
            if delivery.stop is None:
                delivery.stop = stop
                self._check_cut(location, delivery.first, stop)

    def _check_cut(self, location: LocationModel, first: int, stop: int) -> None:
        """Check that a batch has all the spans that it may have, and was not sealed before it was due."""
        assert stop - first <= location.max_spans, f"{location.name}: a batch has too many spans"
        size = request_size(location.spans[first:stop])
        assert stop - first == 1 or size <= location.policy.max_bytes, f"{location.name}: a batch has too many bytes"
        seal = location.seals[stop - 1]
        is_cut = location.cut(first) == (stop, True)
        assert is_cut or seal.accepted_before <= stop, f"{location.name}: a batch leaves spans that it could take"
        was_full = location.is_full(first, stop) or (is_cut and seal.accepted > stop)
        assert was_full or self._was_due(location, first, seal), (
            f"{location.name}: a batch was sealed before it was due"
        )

    def _was_due(self, location: LocationModel, first: int, seal: Seal) -> bool:
        return (
            seal.draining
            or first < seal.flushed_below
            or seal.time >= self._aged_at(location, first, seal.retry_at + NEARLY, seal.settled_at) - NEARLY
            or seal.waited_in >= location.accepted_in[first]
        )

    # -- waiting deliveries and spans --------------------------------------------------------------------------

    def _open(self, location: LocationModel) -> list[DeliveryModel]:
        """Return the deliveries that wait for an attempt, the oldest first."""
        deliveries = sorted(location.deliveries.values(), key=lambda delivery: delivery.first)
        return [
            delivery
            for delivery in deliveries
            if delivery.running is None and location.unsettled.intersection(range(delivery.first, delivery.stop or 0))
        ]

    def _check_waiting_deliveries(self, location: LocationModel, now: float) -> None:
        waiting = self._open(location)
        for delivery in waiting:
            assert now < location.give_up_at(delivery), f"{location.name}: a delivery does not give up"
        assert not waiting or not self._may_export(location, now), f"{location.name}: a delivery waits in vain"
        self._check_turns(location, waiting)
        assert not waiting or not self._is_hopeless(location), f"{location.name}: a delivery waits without hope"

    def _check_turns(self, location: LocationModel, waiting: list[DeliveryModel]) -> None:
        """Check that no younger delivery passed one that has been waiting since the last rest."""
        made = {delivery: delivery.attempts.total() for delivery in location.deliveries.values()}
        passed = [d for d in waiting if d in self.waiting and made[d] == self.attempts[d]]
        had_turn = [d for d in made if made[d] > self.attempts.get(d, 0)]
        assert not any(younger.first > older.first for older in passed for younger in had_turn), (
            f"{location.name}: a delivery that waits was passed over"
        )
        self.attempts.update(made)

    def _check_queue(self, location: LocationModel, now: float) -> None:
        if not location.queued:
            return
        may_export = self._may_export(location, now) and not self._open(location)
        assert not (may_export and now >= self._due_at(location)), f"{location.name}: a batch is due and not sent"
        assert not self._is_hopeless(location), f"{location.name}: spans are queued without hope"

    def _due_at(self, location: LocationModel) -> float:
        first = location.sealed
        if (
            self.model.draining
            or first < location.flushed_below
            or location.cut(first)[1]
            or self._is_pressed(location)
        ):
            return -math.inf
        return self._aged_at(location, first, location.retry_at - NEARLY, location.settled_at)

    @staticmethod
    def _aged_at(location: LocationModel, first: int, retry_at: float, settled_at: float) -> float:
        """Return when its age makes a batch due. One that was opened after a backoff waits until that has settled."""
        opened_at = location.accepted_at[first]
        aged_at = opened_at + location.policy.max_delay
        return max(aged_at, settled_at) if opened_at > retry_at else aged_at

    def _is_pressed(self, location: LocationModel) -> bool:
        """Return whether an adder waits for space at this location, or for the shared byte budget."""
        return bool(self.model.byte_queue) or bool(location.line)

    def _may_export(self, location: LocationModel, now: float) -> bool:
        """Return whether an export of the location may begin, and a slot is free for it."""
        running = len(location.running)
        if running >= location.allowed or now < location.retry_at:
            return False
        if running:
            return self.model.has_slot_to_spare()
        return len(self.model.exports) < self.model.settings.limits.max_exports

    def next_time(self) -> float:
        """Return the time of the next event that needs no action; `math.inf` if there is none."""
        model, settings = self.model, self.model.settings
        times = [export.begun_at + settings.retry.attempt_timeout for export in model.exports]
        for location in model.locations.values():
            waiting = self._open(location)
            times += [location.give_up_at(delivery) for delivery in waiting]
            if (waiting or location.queued) and self._may_export(location, math.inf):
                times.append(location.retry_at if waiting else max(location.retry_at, self._due_at(location)))
            if location.is_live and not location.unsettled and not location.line:
                times.append(location.idle_since + settings.limits.location_idle_timeout)
        if model.draining and model.unsettled:
            times.append(model.work_ends_at)
        return min(times, default=math.inf)

    # -- the drain, idle locations -----------------------------------------------------------------------------

    def _is_hopeless(self, location: LocationModel) -> bool:
        """Return whether the location will not be asked again before the drain ends."""
        ends_at = self.model.work_ends_at
        return self.model.draining and (location.retry_at >= ends_at + NEARLY or trio.current_time() >= ends_at)

    def _check_end(self, location: LocationModel, now: float) -> None:
        if not location.is_live or location.unsettled or location.line:
            return
        assert not self.model.draining, f"{location.name}: an empty location lives on in the drain"
        idle_until = location.idle_since + self.model.settings.limits.location_idle_timeout
        assert now < idle_until, f"{location.name}: an idle location does not end"

    def _check_age(self, location: LocationModel, statistics: SpanBatcherStatistics, now: float) -> None:
        if not location.is_live:
            return
        begun = [
            location.accepted_at[delivery.first]
            for delivery in location.deliveries.values()
            if location.unsettled.intersection(range(delivery.first, delivery.stop or 0))
        ]
        begun += location.accepted_at[location.sealed : location.sealed + 1]
        age = statistics.locations[location.name].oldest_pending_age
        assert abs(age - (now - min(begun, default=now))) < NEARLY, f"{location.name}: the age is {age}"
