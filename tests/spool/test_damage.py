"""Damage to the files of a spool costs the damaged record, and never the start."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.spool.support import DiskPlace, adopted, content_of, contents, make_record, make_spans
from trio_spanbatch import EncodedSpan
from trio_spanbatch._spool.log import RECORDS_AT, SLOT, SLOTS, SLOTS_AT, VERSION, Head
from trio_spanbatch._spool.store import DamagedRecord, NewRecord, Record

# Seeded flips and torn tails for each kind of place.
FLIPS = 300


async def written(disk: DiskPlace, records: list[NewRecord]) -> tuple[Path, list[Record]]:
    """Commit ``records``, end the process, and return the segment and the committed records."""
    store = await disk.opened()
    committed = list(await store.commit(records))
    disk.end(store)
    (segment,) = disk.files("spans")
    return segment, committed


def places(segment: Path, records: list[NewRecord]) -> list[range]:
    """Return the bytes of each record of a segment."""
    data = segment.read_bytes()
    marker = Head.unpack(data).marker
    starts: list[int] = []
    at = data.find(marker, RECORDS_AT)
    while at >= 0:
        starts.append(at)
        at = data.find(marker, at + 1)
    assert len(starts) == len(records)
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


async def survivors(disk: DiskPlace) -> tuple[list[tuple[str, int]], int]:
    """Return location and number of spans of what the next store can read, in order, and how much was damaged."""
    store = await disk.opened()
    found = []
    for record in await adopted(store):
        try:
            spans = await store.read(record.token)
        except DamagedRecord:
            continue
        found.append((record.location, len(spans)))
    damaged = store.statistics().damaged
    await store.close()
    return found, damaged


def reset(disk: DiskPlace, segment: Path, data: bytes) -> None:
    for file in disk.files():
        file.unlink()
    segment.write_bytes(data)


def some_records() -> list[NewRecord]:
    return [make_record(f"location {number}", count=number + 1, size=number * 7) for number in range(6)]


def names_of(records: list[NewRecord]) -> list[tuple[str, int]]:
    return [(record.location, len(record.spans)) for record in records]


async def test_a_flipped_bit_in_a_record_costs_that_record(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = segment.read_bytes()
    where = places(segment, records)
    chance = random.Random(1)
    for _ in range(FLIPS):
        at = chance.randrange(RECORDS_AT, len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        reset(disk, segment, bytes(flipped))
        hit = next(number for number, place in enumerate(where) if at in place)
        assert await survivors(disk) == (names_of([*records[:hit], *records[hit + 1 :]]), 1), at


async def test_a_flipped_bit_in_a_head_or_a_slot_costs_nothing(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = segment.read_bytes()
    chance = random.Random(2)
    heads = [*range(SLOTS_AT), *range(SLOTS_AT + SLOT * SLOTS, RECORDS_AT)]
    for at in [*range(20), *chance.choices(heads, k=FLIPS // 3), *range(SLOTS_AT, SLOTS_AT + 40)]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        reset(disk, segment, bytes(flipped))
        assert await survivors(disk) == (names_of(records), 0), at


async def test_a_flipped_bit_in_the_slot_of_a_settled_record_at_worst_sends_it_again(disk: DiskPlace) -> None:
    records = some_records()
    store = await disk.opened()
    committed = await store.commit(records)
    await store.settle([committed[2].token])
    disk.end(store)
    (segment,) = disk.files("spans")
    data = segment.read_bytes()
    for bit in range(32):
        flipped = bytearray(data)
        flipped[SLOTS_AT + 2 * SLOT + bit // 8] ^= 1 << bit % 8
        reset(disk, segment, bytes(flipped))
        assert await survivors(disk) == (names_of(records), 0)


async def test_a_torn_tail_costs_no_whole_record(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = segment.read_bytes()
    where = places(segment, records)
    for end in range(len(data), RECORDS_AT - 1, -7):
        reset(disk, segment, data[:end])
        whole = [record for record, place in zip(records, where, strict=True) if place.stop <= end]
        # What was not written completely is no damage.
        assert await survivors(disk) == (names_of(whole), 0), end


async def test_a_segment_that_was_not_completely_made_is_removed(disk: DiskPlace) -> None:
    segment, _ = await written(disk, some_records())
    data = segment.read_bytes()
    for end in (0, 1, 500, SLOTS_AT, RECORDS_AT - 1):
        reset(disk, segment, data[:end])
        assert await survivors(disk) == ([], 0)
        assert disk.files() == []


async def test_zeros_at_the_end_after_a_power_failure_are_no_damage(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    segment.write_bytes(segment.read_bytes() + bytes(300_000))
    assert await survivors(disk) == (names_of(records), 0)


def garbled(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield versions of a segment with random damage of many kinds."""
    at, size = chance.randrange(len(data)), chance.randrange(1, 400)
    yield data[:at] + chance.randbytes(size) + data[at + size :]
    yield data[:at] + bytes(size) + data[at + size :]
    # No disk moves what follows, but a copy of a file may be missing something.
    at = chance.randrange(RECORDS_AT, len(data))
    yield data[:at] + chance.randbytes(size) + data[at:]
    yield data[:at] + data[at + size :]


async def test_random_damage_costs_only_what_it_touches_and_invents_nothing(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = segment.read_bytes()
    marker = Head.unpack(data).marker
    chance = random.Random(3)
    for round_ in range(60):
        for kind, damaged in enumerate(garbled(data, chance)):
            reset(disk, segment, damaged)
            whole = [
                record
                for record, place in zip(records, places_in(data, marker, records), strict=True)
                if data[place.start : place.stop] in damaged
            ]
            found, _ = await survivors(disk)
            both_heads_hit = disk.files("unreadable")
            assert found == ([] if both_heads_hit else names_of(whole)), (round_, kind)


def places_in(data: bytes, marker: bytes, records: list[NewRecord]) -> list[range]:
    starts = [at for at in range(RECORDS_AT, len(data)) if data.startswith(marker, at)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


async def test_damage_is_moved_aside_and_counted_once(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = bytearray(segment.read_bytes())
    place = places(segment, records)[2]
    data[place.start + 3] ^= 1
    segment.write_bytes(data)
    store = await disk.opened()
    assert [record.location for record in await adopted(store)] == [
        record.location for record in records if record is not records[2]
    ]
    assert store.statistics().damaged == 1
    (aside,) = disk.files("damaged")
    assert aside.read_bytes() == data[place.start : place.stop]
    (message,) = disk.messages
    assert message.startswith(f"spans are lost: {len(place)} damaged bytes were found in {disk.own}")
    assert aside.name in message
    disk.end(store)
    again = await disk.opened()
    assert len(await adopted(again)) == 5
    assert again.statistics().damaged == 0
    assert len(disk.messages) == 1
    assert aside.read_bytes() == data[place.start : place.stop]
    await again.close()


async def test_damaged_spans_are_noticed_when_they_are_read_and_moved_aside(disk: DiskPlace) -> None:
    records = some_records()
    store = await disk.opened()
    committed = await store.commit(records)
    (segment,) = disk.files("spans")
    place = places(segment, records)[4]
    data = bytearray(segment.read_bytes())
    data[place.stop - 1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DamagedRecord, match="damaged"):
        await store.read(committed[4].token)
    assert store.statistics().damaged == 1
    (aside,) = disk.files("damaged")
    assert aside.read_bytes() == data[place.start : place.stop]
    # The record is settled, and the others are not concerned.
    await store.settle([committed[4].token])
    disk.end(store)
    assert await survivors(disk) == (names_of([*records[:4], records[5]]), 0)


async def test_a_span_cannot_contain_a_record_of_another_location(disk: DiskPlace) -> None:
    """Not even one whose own record is damaged, so that the reader searches in it for the next one."""
    store = await disk.opened()
    await store.commit([make_record("attacker")])
    (segment,) = disk.files("spans")
    begin = segment.read_bytes()
    forged = EncodedSpan(begin[RECORDS_AT:].replace(b"attacker", b"victim__"))
    await store.commit([NewRecord("attacker", [*make_spans(1), forged, forged], 1, 1.0)])
    disk.end(store)
    data = segment.read_bytes()
    # With the marker of this very segment it would be found. That is random, and nobody outside knows it.
    marker = Head.unpack(data).marker
    damaged_at = len(begin)
    assert data.startswith(marker, damaged_at)
    guessed = bytes(byte ^ 0xFF for byte in marker)
    segment.write_bytes(data[:damaged_at] + b"?" + data[damaged_at + 1 :].replace(marker, guessed))
    found, damaged = await survivors(disk)
    assert [location for location, _ in found] == ["attacker"]
    assert damaged == 1


async def test_a_file_without_a_readable_head_is_set_aside_with_a_message(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = bytearray(segment.read_bytes())
    data[5] ^= 1
    data[RECORDS_AT - 1000] ^= 1
    segment.write_bytes(data)
    store = await disk.opened()
    assert await adopted(store) == []
    assert store.statistics().set_aside == 1
    (message,) = disk.messages
    assert str(segment) in message
    assert "unreadable" in message
    (aside,) = disk.files("unreadable")
    assert aside.read_bytes() == data
    await store.commit(records)
    await store.close()
    # It is said once.
    store = await disk.opened()
    assert len(disk.messages) == 1
    await store.close()


async def test_a_file_of_a_newer_version_is_left_alone_with_a_message(disk: DiskPlace) -> None:
    records = some_records()
    segment, _ = await written(disk, records)
    data = bytearray(segment.read_bytes())
    for at in (8, RECORDS_AT - 1024 + 8):
        data[at : at + 2] = (VERSION + 1).to_bytes(2, "little")
    segment.write_bytes(data)
    store = await disk.opened()
    assert await adopted(store) == []
    assert store.statistics().set_aside == 1
    (message,) = disk.messages
    assert str(segment) in message
    assert f"format {VERSION + 1}" in message
    assert f"up to {VERSION}" in message
    await store.commit([new := make_record()])
    await store.close()
    assert segment.read_bytes() == data
    store = await disk.opened()
    assert await contents(store) == content_of([new])
    await store.close()


@pytest.mark.parametrize("text", [b"", b"x", b"not a spool at all" * 5000])
async def test_a_strange_file_does_not_keep_the_spool_from_opening(disk: DiskPlace, text: bytes) -> None:
    disk.own.mkdir(parents=True, mode=0o700)
    for name in ("a.0.spans", "a.lock", "b.0.dead", "c.x.spans", "d.spans", "e", ".spans", "f.1.spans.old", "a.tmp"):
        (disk.own / name).write_bytes(text)
    (disk.own / "g.0.spans").mkdir()
    (disk.own / "h.0.spans").symlink_to("/dev/zero")
    store = await disk.opened()
    assert await adopted(store) == []
    await store.commit([new := make_record()])
    await store.close()
    store = await disk.opened()
    assert await contents(store) == content_of([new])
    await store.close()


async def test_a_removed_file_costs_its_records_only(disk: DiskPlace) -> None:
    store = await disk.opened()
    (lost, settled) = await store.commit([make_record(), make_record()])
    for file in disk.files("spans"):
        file.unlink()
    with pytest.raises(DamagedRecord):
        await store.read(lost.token)
    await store.settle([settled.token])
    await store.close()
