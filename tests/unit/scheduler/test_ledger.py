"""The accounts."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable

import attrs
import pytest

from trio_spanbatch._reporting.statistics import LocationStatistics, Settlement
from trio_spanbatch._scheduler.ledger import Account, Ledger, LocationCounts


def _accept(ledger: Ledger, account: Account, count: int, cost: int = 0) -> None:
    for columns in (account, ledger.total):
        columns.accepted += count
        columns.queued += count
        columns.pending_bytes += cost


def _is_conserved(account: Account) -> bool:
    done = account.delivered + account.rejected + account.spooled + account.undelivered
    return account.accepted == account.queued + account.in_flight + done


SETTLEMENTS = [Settlement(delivered=3), Settlement(rejected=3), Settlement(undelivered=3), Settlement(1, 1, 1)]


@pytest.mark.parametrize("settlement", SETTLEMENTS)
def test_spans_are_conserved_from_the_queue_to_their_outcome(settlement: Settlement) -> None:
    ledger = Ledger(kept_ended=9)
    account = ledger.open("a")
    _accept(ledger, account, 5, 50)
    assert account.first_queued == 0
    ledger.seal(account, 3, 30)
    assert (account.queued, account.in_flight, account.pending, account.first_queued) == (2, 3, 5, 3)
    assert ledger.leased_bytes == 30
    assert _is_conserved(account)
    ledger.settle(account, 3, 30, settlement)
    assert (account.pending, account.pending_bytes, ledger.leased_bytes) == (2, 20, 0)
    assert (account.delivered, account.rejected, account.undelivered) == (
        settlement.delivered,
        settlement.rejected,
        settlement.undelivered,
    )
    assert _is_conserved(account)
    assert _is_conserved(ledger.total)


def test_totals_are_the_sums_over_all_locations() -> None:
    ledger = Ledger(kept_ended=9)
    a, b = ledger.open("a"), ledger.open("b")
    _accept(ledger, a, 4, 40)
    _accept(ledger, b, 2, 20)
    ledger.seal(a, 4, 40)
    ledger.seal(b, 1, 10)
    ledger.attempt(a, is_retry=False)
    ledger.attempt(b, is_retry=True)
    ledger.split(a)
    ledger.ambiguous(b, 1)
    ledger.settle(a, 2, 20, Settlement(delivered=1, rejected=1))
    sums = {name: a.counts()[name] + b.counts()[name] for name in a.counts()}
    assert ledger.total.counts() == sums


def test_a_location_that_becomes_live_again_gets_its_account_back() -> None:
    ledger = Ledger(kept_ended=1)
    account = ledger.open("a")
    ledger.end("a")
    assert ledger.open("a") is account
    assert list(ledger.accounts()) == ["a"]


def test_the_account_of_the_location_that_ended_first_is_dropped_and_stays_in_the_totals() -> None:
    ledger = Ledger(kept_ended=2)
    for name in "abc":
        _accept(ledger, ledger.open(name), 1)
        ledger.end(name)
    assert list(ledger.accounts()) == ["b", "c"]
    assert ledger.total.accepted == 3


def test_the_age_of_the_oldest_span_is_that_of_its_batch() -> None:
    ledger = Ledger(kept_ended=2)
    ledger.open("a").opened_at = 3.0
    assert ledger.open("b").opened_at == math.inf
    counts = LocationCounts(ledger.accounts(), 10.0)
    assert counts["a"].oldest_pending_age == 7.0
    assert counts["b"].oldest_pending_age == 0.0


def test_statistics_are_those_of_the_moment_they_were_asked_for() -> None:
    ledger = Ledger(kept_ended=2)
    account = ledger.open("a")
    counts = LocationCounts(ledger.accounts(), 0.0)
    _accept(ledger, account, 1)
    assert counts["a"].accepted == 0


def _counts() -> LocationCounts:
    """Return the statistics of three locations, none of which was read yet."""
    return LocationCounts({name: Account(accepted=number, queued=number) for number, name in enumerate("abc")}, 0.0)


RECORDS = {name: LocationStatistics(accepted=number, queued=number) for number, name in enumerate("abc")}


def test_a_record_is_made_when_it_is_read_and_kept() -> None:
    counts = _counts()
    assert counts["b"] is counts["b"]
    made = [type(dict.__getitem__(counts, name)) is LocationStatistics for name in counts]
    assert made == [False, True, False]


def test_a_loop_makes_one_record_at_a_time() -> None:
    counts = _counts()
    next(iter(counts.items()))
    next(iter(counts.values()))
    assert [len(counts), "b" in counts, list(counts.keys())] == [3, True, ["a", "b", "c"]]
    made = [type(dict.__getitem__(counts, name)) is LocationStatistics for name in counts]
    assert made == [True, False, False]


@pytest.mark.parametrize(
    "read",
    [
        lambda counts: counts,
        lambda counts: RECORDS if RECORDS == counts else None,  # noqa: SIM300  # the other side of ==
        dict,
        lambda counts: {**counts},
        lambda counts: {} | counts,
        lambda counts: counts | {},
        lambda counts: dict(counts.items()),
        lambda counts: dict(zip(counts, counts.values(), strict=True)),
        lambda counts: {name: counts.get(name) for name in counts},
        lambda counts: counts.copy(),
        copy.copy,
        copy.deepcopy,
        lambda counts: pickle.loads(pickle.dumps(counts)),
        lambda counts: {name: counts.pop(name) for name in "abc"},
        lambda counts: dict(counts.popitem() for _ in range(3)),
    ],
)
def test_statistics_of_locations_are_read_like_a_dict(read: Callable[[LocationCounts], object]) -> None:
    assert read(_counts()) == RECORDS


def test_statistics_of_locations_look_like_a_dict() -> None:
    assert repr(_counts()) == repr(RECORDS)
    assert json.dumps(_counts(), default=attrs.asdict) == json.dumps(RECORDS, default=attrs.asdict)
    assert _counts().get("z") is None
    with pytest.raises(KeyError, match="z"):
        _counts()["z"]
