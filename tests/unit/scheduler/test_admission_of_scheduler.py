"""Which spans are admitted, which adders wait, and how an interrupted call is completed."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.parts import make_scheduler, make_span
from tests.unit.scheduler.support import FakeQueue
from trio_spanbatch import BatchPolicy, EncodedSpan, InvalidSpanError, Limits
from trio_spanbatch._scheduler.flush import Flush
from trio_spanbatch._scheduler.location import Location, Waiter
from trio_spanbatch._scheduler.orders import Admit, Start
from trio_spanbatch._scheduler.scheduler import Scheduler
from trio_spanbatch._scheduler.splitter import OpenBatch, QueuedBatch
from trio_spanbatch._spans.batch import SpanHeaders, cost_after


def clock() -> float:
    return 0.0


# Limits, and the number of spans of 10 bytes that a location then accepts.
TABLE = [
    (Limits(max_queued_spans=3), 3),
    (Limits(max_pending_bytes=29), 2),
    (Limits(max_pending_bytes=30), 3),
    (Limits(max_pending_bytes_per_location=20), 2),
    (Limits(max_queued_spans=1, max_pending_bytes=30), 1),
]


def _add(scheduler: Scheduler, location: Location, size: int = 10) -> bool:
    return scheduler.admission.try_admit(location, make_span(size), clock)


def _join(scheduler: Scheduler, location: Location, span: EncodedSpan) -> Waiter:
    waiter = Waiter(location, span)
    scheduler.admission.join(waiter)
    return waiter


def _admitted(scheduler: Scheduler) -> list[Waiter]:
    return [order.waiter for order in scheduler.outbox if isinstance(order, Admit)]


@pytest.mark.parametrize(("limits", "fit"), TABLE)
def test_a_span_is_admitted_up_to_each_limit(limits: Limits, fit: int) -> None:
    scheduler = make_scheduler(limits)
    location = scheduler.open("a")
    assert [_add(scheduler, location) for _ in range(fit + 1)] == [True] * fit + [False]
    assert location.account.accepted == location.queue_out.statistics().current_buffer_used == fit


@pytest.mark.parametrize(("limits", "fit"), TABLE)
def test_all_spans_are_admitted_or_none(limits: Limits, fit: int) -> None:
    scheduler = make_scheduler(limits)
    location = scheduler.open("a")
    assert not scheduler.admission.try_admit_all(location, [make_span() for _ in range(fit + 1)], clock)
    assert not location.account.accepted
    assert scheduler.admission.try_admit_all(location, [make_span() for _ in range(fit)], clock)
    assert location.account.accepted == fit


def test_no_span_overtakes_an_adder_that_waits_at_its_location() -> None:
    scheduler = make_scheduler(Limits(max_pending_bytes=100, max_pending_bytes_per_location=25))
    location = scheduler.open("a")
    _add(scheduler, location)
    _join(scheduler, location, make_span(20))
    assert not _add(scheduler, location, size=1)
    assert not scheduler.admission.try_admit_all(location, [make_span(1)], clock)


def test_no_span_overtakes_an_adder_that_waits_for_bytes_at_another_location() -> None:
    scheduler = make_scheduler(Limits(max_pending_bytes=25))
    a, b = scheduler.open("a"), scheduler.open("b")
    _add(scheduler, a)
    waiter = _join(scheduler, b, make_span(20))
    assert not _add(scheduler, a, size=1)
    scheduler.admission.withdraw(waiter)
    assert _add(scheduler, a, size=1)


def test_a_full_location_delays_only_its_own_adders() -> None:
    scheduler = make_scheduler(Limits(max_queued_spans=1, max_exports=1))
    a, b = scheduler.open("a"), scheduler.open("b")
    _add(scheduler, a)
    _join(scheduler, a, make_span())
    assert _add(scheduler, b)


def test_waiting_adders_are_admitted_in_order_of_arrival() -> None:
    scheduler = make_scheduler(Limits(max_queued_spans=2))
    location = scheduler.open("a")
    _add(scheduler, location)
    _add(scheduler, location)
    waiters = [_join(scheduler, location, make_span()) for _ in range(3)]
    scheduler.admission.withdraw(waiters[0])
    while scheduler.step(0.0):
        pass
    assert isinstance(scheduler.outbox[0], Start)
    assert _admitted(scheduler) == waiters[1:]


def test_an_adder_that_withdraws_has_added_nothing() -> None:
    scheduler = make_scheduler(Limits(max_queued_spans=1))
    location = scheduler.open("a")
    _add(scheduler, location)
    scheduler.admission.withdraw(_join(scheduler, location, make_span()))
    while scheduler.step(9.0):
        pass
    assert location.account.accepted == 1
    assert not _admitted(scheduler)


def test_locations_may_be_evicted_and_opened_again_several_times_before_the_next_step() -> None:
    scheduler = make_scheduler(Limits(max_locations=1))
    for name in ("a", "b", "a", "c", "d"):
        scheduler.open(name)
    while scheduler.step(9.0):
        pass
    # Those of as many ended locations as may be live are kept.
    assert set(scheduler.ledger.accounts()) <= {"a", "b", "c", "d"}
    assert {"d"} == scheduler.locations.keys() < scheduler.ledger.accounts().keys()
    assert len(scheduler.ledger.accounts()) == 2


def test_a_span_that_can_never_fit_is_refused_with_the_limits() -> None:
    admission = make_scheduler(Limits(max_queued_spans=2, max_pending_bytes=50)).admission
    admission.check_can_ever_fit(2, 50)
    with pytest.raises(InvalidSpanError, match="51 bytes"):
        admission.check_can_ever_fit(1, 51)
    with pytest.raises(ValueError, match="3 spans can never fit"):
        admission.check_can_ever_fit(3, 30)


class _Interrupted(Exception):
    pass


class _Queue(FakeQueue):
    """Calls a function before or after the next span is added."""

    before = after = staticmethod(lambda: None)

    def send_nowait(self, value: bytes, /) -> None:
        before, self.before = self.before, _nothing
        before()
        super().send_nowait(value)
        after, self.after = self.after, _nothing
        after()


def _nothing() -> None:
    pass


def _interrupt() -> None:
    raise _Interrupted


def _with_queue() -> tuple[Scheduler, Location, _Queue]:
    scheduler, queue = make_scheduler(), _Queue(10)
    scheduler._open_queue = lambda _: (queue, queue)
    return scheduler, scheduler.open("a"), queue


# Once the location has a span, one of 200 bytes takes the fast path of `try_admit`.
@pytest.mark.parametrize("size", [10, 200])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_call_that_is_interrupted_before_the_commit_has_accepted_nothing(size: int, earlier: int) -> None:
    scheduler, location, queue = _with_queue()
    for _ in range(earlier):
        _add(scheduler, location, size)
    queue.before = _interrupt
    with pytest.raises(_Interrupted):
        _add(scheduler, location, size)
    scheduler.admission.finish()
    assert location.account.accepted == scheduler.ledger.total.accepted == len(queue.items) == earlier
    assert _add(scheduler, location, size)
    assert location.account.queued == scheduler.ledger.total.queued == len(queue.items) == earlier + 1


@pytest.mark.parametrize("size", [10, 200])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_call_that_is_interrupted_after_the_commit_is_completed_by_the_next(size: int, earlier: int) -> None:
    scheduler, location, queue = _with_queue()
    for _ in range(earlier):
        _add(scheduler, location, size)
    queue.after = _interrupt
    with pytest.raises(_Interrupted):
        _add(scheduler, location, size)
    assert _add(scheduler, location, size)
    count = earlier + 2
    assert location.account.accepted == scheduler.ledger.total.accepted == len(queue.items) == count
    assert location.account.pending_bytes == scheduler.ledger.total.pending_bytes == count * size


@pytest.mark.parametrize("size", [10, 200])
@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_span_that_a_finalizer_adds_in_the_middle_of_another_one_counts_once(
    when: str, size: int, earlier: int
) -> None:
    scheduler, location, queue = _with_queue()
    for _ in range(earlier):
        _add(scheduler, location, size)
    setattr(queue, when, lambda: _add(scheduler, location, size))
    assert _add(scheduler, location, size)
    count = earlier + 2
    assert location.account.accepted == scheduler.ledger.total.accepted == len(queue.items) == count
    assert location.account.pending_bytes == scheduler.ledger.total.pending_bytes == count * size


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_list_whose_call_was_interrupted_is_added_completely_by_the_next_call(when: str) -> None:
    scheduler, location, queue = _with_queue()
    setattr(queue, when, _interrupt)
    with pytest.raises(_Interrupted):
        scheduler.admission.try_admit_all(location, [make_span() for _ in range(3)], clock)
    scheduler.admission.finish()
    assert location.account.accepted == len(queue.items) == 3


def test_a_location_is_in_the_inbox_once_however_often_it_is_touched() -> None:
    scheduler = make_scheduler()
    location = scheduler.open("a")
    scheduler.admission.touch(location)
    scheduler.admission.touch(location)
    assert list(scheduler.admission.inbox) == [location]


def _sent(scheduler: Scheduler, location: Location) -> list[list[EncodedSpan]]:
    """Flush a location. Return the spans of each batch whose export begins, with the right size and cost."""
    scheduler.watch(location, Flush())
    scheduler.step(0.0)
    batches = [order.lease.batch for order in scheduler.outbox if isinstance(order, Start)]
    assert [batch.size for batch in batches] == [len(batch.to_request()) for batch in batches]
    assert sum(order.lease.cost for order in scheduler.outbox if isinstance(order, Start)) == location.leased_bytes
    return [list(batch.spans) for batch in batches]


@pytest.mark.parametrize(
    ("policy", "sent"), [(BatchPolicy(max_spans=3), 3), (BatchPolicy(max_spans=99, max_bytes=1000), 2)]
)
def test_spans_keep_their_headers_if_a_finalizer_fills_the_batch_that_is_being_sealed(
    monkeypatch: pytest.MonkeyPatch, policy: BatchPolicy, sent: int
) -> None:
    scheduler = make_scheduler(policy=policy)
    location = scheduler.open("a")
    spans = [make_span(400, 0), make_span(400, 0), make_span(400, 1)]
    for span in spans[:2]:
        scheduler.admission.try_admit(location, span, clock)
    scheduler.step(0.0)
    closed, left = OpenBatch.closed, spans[2:]

    def closed_beside_a_finalizer(batch: OpenBatch, end: int) -> QueuedBatch:
        if left:
            scheduler.admission.try_admit(location, left.pop(), clock)
        return closed(batch, end)

    monkeypatch.setattr(OpenBatch, "closed", closed_beside_a_finalizer)
    assert _sent(scheduler, location) == [spans[:sent]]
    assert location.account.queued == 3 - sent


def test_the_bytes_are_counted_once_if_a_signal_handler_adds_the_first_span_in_the_middle_of_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = make_scheduler()
    location = scheduler.open("a")
    scheduler.step(0.0)
    spans = [make_span(200, 1), make_span(200, 1)]
    left = spans[:1]

    def cost_after_a_signal(headers: SpanHeaders | None, span: EncodedSpan) -> int:
        cost = cost_after(headers, span)
        if left:
            scheduler.admission.try_admit(location, left.pop(), clock)
        return cost

    monkeypatch.setattr("trio_spanbatch._scheduler.admission.cost_after", cost_after_a_signal)
    scheduler.admission.try_admit(location, spans[1], clock)
    assert _sent(scheduler, location) == [spans]
    assert location.account.pending_bytes == location.leased_bytes
