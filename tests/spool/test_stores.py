"""What the batcher may expect of any store, in memory or on disk."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.spool.memory import MemoryStore
from tests.spool.support import Place, adopted, content_of, contents, is_of, make_record, make_spans
from trio_spanbatch._spool.store import DamagedRecord, SpoolError, SpoolFullError


async def test_what_was_committed_is_read_back_with_its_resources_and_scopes(place: Place) -> None:
    store = place.store()
    await store.open()
    new = [make_record("a", 5), make_record("b", 1), make_record("a", 300)]
    committed = await store.commit(new)
    assert len({record.token for record in committed}) == 3
    assert all(is_of(*pair) for pair in zip(committed, new, strict=True))
    for record, written in zip(committed, new, strict=True):
        assert list(await store.read(record.token)) == list(written.spans)
    await store.close()


async def test_the_next_store_finds_what_was_not_settled_in_order(place: Place) -> None:
    first = place.store()
    await first.open()
    new = [make_record(f"location {number % 3}") for number in range(10)]
    committed = [record for one in new for record in await first.commit([one])]
    await first.settle([committed[0].token, committed[7].token])
    place.end(first)
    second = place.store()
    await second.open()
    assert await contents(second) == content_of([*new[1:7], *new[8:]])
    await second.close()


async def test_what_the_next_store_settles_is_gone_for_the_one_after_it(place: Place) -> None:
    first = place.store()
    await first.open()
    new = [make_record() for _ in range(4)]
    await first.commit(new)
    await first.close()
    second = place.store()
    await second.open()
    found = await adopted(second)
    assert all(is_of(*pair) for pair in zip(found, new, strict=True))
    await second.settle([found[2].token])
    (own,) = await second.commit([later := make_record()])
    assert own.token not in {record.token for record in found}
    await second.close()
    third = place.store()
    await third.open()
    assert await contents(third) == content_of([new[0], new[1], new[3], later])
    await third.settle([])
    await third.close()


async def test_a_closed_store_leaves_what_is_not_settled(place: Place) -> None:
    store = place.store()
    await store.open()
    kept, settled = make_record(), make_record()
    _, record = await store.commit([kept, settled])
    await store.settle([record.token])
    await store.close()
    after = place.store()
    await after.open()
    assert await contents(after) == content_of([kept])
    await after.close()


async def test_what_a_live_store_holds_is_not_taken_over(place: Place) -> None:
    first, second = place.store(), place.store()
    await first.open()
    await first.commit([make_record()])
    await second.open()
    assert await adopted(second) == []
    await first.close()
    await second.close()


async def test_a_full_spool_commits_nothing_until_something_is_settled(place: Place) -> None:
    store = place.store(max_bytes=20_000)
    await store.open()
    (first,) = await store.commit([make_record(count=100, size=50)])
    used = store.statistics().nbytes
    with pytest.raises(SpoolFullError, match="max_bytes=20,000") as caught:
        await store.commit([make_record(count=1), make_record(count=100, size=200)])
    assert caught.value.errno == errno.ENOSPC
    assert store.statistics().nbytes == used
    await store.settle([first.token])
    assert store.statistics().nbytes == 0
    await store.commit([make_record(count=100, size=100)])
    await store.close()
    after = place.store()
    await after.open()
    assert [record.count for record in await adopted(after)] == [100]
    await after.close()


async def test_a_commit_settles_what_it_is_given_first(place: Place) -> None:
    store = place.store(max_bytes=20_000)
    await store.open()
    (first,) = await store.commit([make_record(count=100, size=50)])
    (second,) = await store.commit([new := make_record(count=100, size=100)], [first.token])
    await store.close()
    after = place.store()
    await after.open()
    assert await contents(after) == content_of([new])
    await after.close()
    assert second.token != first.token


async def test_tokens_that_are_unknown_or_settled_are_ignored(place: Place) -> None:
    store = place.store()
    await store.open()
    one, two = await store.commit([make_record(), make_record()])
    await store.settle([one.token, 10**9, one.token])
    await store.settle([one.token])
    assert await store.read(two.token)
    await store.close()


async def test_dead_letters_are_not_taken_over(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.bury("main.spans", make_spans(3), "no such table")
    assert store.statistics().dead == 3
    place.end(store)
    after = place.store()
    await after.open()
    assert await adopted(after) == []
    await after.close()


async def test_records_for_another_endpoint_are_refused_by_an_error_with_both(place: Place) -> None:
    store = place.store("https://one.test")
    await store.open()
    await store.commit([new := make_record()])
    place.end(store)
    other = place.store("https://two.test")
    with pytest.raises(SpoolError, match=r"https://one\.test.*https://two\.test"):
        await other.open()
    # Nothing happened to them.
    again = place.store("https://one.test")
    await again.open()
    assert await contents(again) == content_of([new])
    await again.close()


async def test_a_spool_that_is_empty_again_serves_any_endpoint(place: Place) -> None:
    store = place.store("https://one.test")
    await store.open()
    (record,) = await store.commit([make_record()])
    await store.settle([record.token])
    place.end(store)
    other = place.store("https://two.test")
    await other.open()
    assert await adopted(other) == []
    await other.close()


@pytest.mark.parametrize("end", ["close", "abandon"])
async def test_a_store_that_has_ended_raises_os_error(place: Place, end: str) -> None:
    store = place.store()
    await store.open()
    (record,) = await store.commit([make_record()])
    if end == "close":
        await store.close()
    else:
        place.end(store)
    with pytest.raises(OSError, match="closed"):
        await store.commit([make_record()])
    with pytest.raises(OSError, match="closed"):
        await store.settle([record.token])
    with pytest.raises(OSError, match="closed"):
        await store.read(record.token)
    assert await adopted(store) == []
    await store.close()


async def test_locations_may_contain_any_characters(place: Place) -> None:
    store = place.store()
    await store.open()
    new = [make_record("\ud800 lone"), make_record("☃" * 1024), make_record("a\0b/../c")]
    await store.commit(new)
    place.end(store)
    after = place.store()
    await after.open()
    assert await contents(after) == content_of(new)
    await after.close()


# -- only in memory: scripted faults, on the mock clock --------------------------------------------------------


@pytest.mark.parametrize("operation", ["commit", "settle", "read", "bury"])
async def test_a_store_in_memory_fails_as_scripted(operation: str) -> None:
    store = MemoryStore()
    await store.open()
    (record,) = await store.commit([make_record()])
    store.failing.add(operation)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "commit": lambda: store.commit([make_record()]),
        "settle": lambda: store.settle([record.token]),
        "read": lambda: store.read(record.token),
        "bury": lambda: store.bury("main.spans", make_spans(1), "why"),
    }
    with pytest.raises(OSError, match="Input/output"):
        await calls[operation]()
    store.failing.clear()
    await calls[operation]()


async def test_a_store_in_memory_cannot_be_opened_if_scripted() -> None:
    store = MemoryStore()
    store.failing.add("open")
    with pytest.raises(SpoolError, match="Input/output"):
        await store.open()


async def test_a_full_disk_in_memory_still_settles() -> None:
    store = MemoryStore()
    await store.open()
    (record,) = await store.commit([make_record()])
    store.full = True
    with pytest.raises(OSError, match="No space left"):
        await store.commit([make_record()])
    await store.settle([record.token])
    assert store.statistics().nbytes == 0


async def test_a_failed_settlement_in_memory_is_made_up_for_by_the_next_one() -> None:
    store = MemoryStore()
    await store.open()
    one, two = await store.commit([make_record(), make_record()])
    store.failing.add("settle")
    with pytest.raises(OSError, match="Input/output"):
        await store.settle([one.token])
    store.failing.clear()
    await store.settle([two.token])
    assert store.statistics().nbytes == 0


@pytest.mark.parametrize("lands", [False, True])
async def test_a_commit_in_memory_that_is_cancelled_may_take_effect(
    autojump_clock: trio.testing.MockClock, lands: bool
) -> None:
    store = MemoryStore()
    await store.open()
    store.slow, store.lands = 10.0, lands
    with trio.move_on_after(1) as scope:
        await store.commit([new := make_record()])
    assert scope.cancelled_caught
    store.abandon()
    after = MemoryStore(store.disk)
    await after.open()
    assert await contents(after) == content_of([new] if lands else [])


async def test_a_record_in_memory_may_be_damaged() -> None:
    store = MemoryStore()
    await store.open()
    (record,) = await store.commit([make_record()])
    store.damaged.add(record.token)
    with pytest.raises(DamagedRecord, match="damaged"):
        await store.read(record.token)
    assert store.statistics().damaged == 1
    assert store.statistics().nbytes == 0
