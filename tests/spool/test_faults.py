"""Each operation on a file fails, or is the last one of its process: nothing committed is lost, nothing is invented."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any, Literal

import attrs
import pytest

from tests.spool.support import DiskPlace, contents, make_record, make_spans, wait_until_released
from trio_spanbatch import EncodedSpan
from trio_spanbatch._spool import files
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.store import NewRecord, SpoolError

# What the store does to files. Closing is left out: it always closes, as far as the process is concerned.
OPERATIONS = {
    "fchmod",
    "fstat",
    "fsync",
    "ftruncate",
    "listdir",
    "open",
    "pread",
    "pwrite",
    "rename",
    "stat",
    "unlink",
}
Fault = Literal["EIO", "ENOSPC", "EFBIG", "the process ends", "it ends half-way"]
FAULTS: tuple[Fault, ...] = ("EIO", "ENOSPC", "EFBIG", "the process ends", "it ends half-way")


class ProcessEnded(BaseException):
    """The process has ended: nothing more happens in it."""


class FaultyOS:
    """The module ``os``, in which the n-th operation on a file has a fault.

    Attributes:
        count: The number of operations so far.
        opened: The descriptors that are open.
    """

    def __init__(self, nth: int, fault: Fault) -> None:
        self.count = 0
        self.has_ended = False
        self.opened: list[int] = []
        self._nth = nth
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "close":
            return self._close
        if name not in OPERATIONS:
            return real

        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.has_ended:
                raise ProcessEnded
            self.count += 1
            if self.count == self._nth:
                self._fail(name, args)
            # No power failure is simulated, and syncs are slow.
            result: Any = None if name == "fsync" else real(*args, **kwargs)
            if name == "open":
                self.opened.append(result)
            return result

        return operation

    def _fail(self, name: str, args: tuple[Any, ...]) -> None:
        # A write that fails may have written a part.
        if name == "pwrite" and self._fault != "the process ends":
            fd, data, at = args
            os.pwrite(fd, data[: len(data) // 2], at)
        if self._fault in ("the process ends", "it ends half-way"):
            self.has_ended = True
            raise ProcessEnded
        number = getattr(errno, self._fault)
        raise OSError(number, os.strerror(number))

    def _close(self, fd: int) -> None:
        self.opened.remove(fd)
        os.close(fd)

    def close_all(self) -> None:
        """Do what the end of a process does."""
        for file in list(files._OPEN):
            file.fd = -1
        for fd in self.opened:
            os.close(fd)


@attrs.define
class Life:
    """What a process knows of its spans.

    Attributes:
        offered: Everything that it tried to commit.
        committed: What a commit has returned, and the tokens.
        settled: What it tried to settle.
        is_settled: What it knows to be settled.
        failed: What a commit refused with an error.
    """

    offered: list[NewRecord] = attrs.Factory(list)
    committed: dict[int, NewRecord] = attrs.Factory(dict)
    settled: set[int] = attrs.Factory(set)
    failed: list[NewRecord] = attrs.Factory(list)

    async def commit(self, store: DiskStore, *records: NewRecord) -> None:
        self.offered += records
        try:
            committed = await store.commit(records)
        except OSError:
            self.failed += records
        else:
            self.committed.update(zip((record.token for record in committed), records, strict=True))

    async def settle(self, store: DiskStore, *indexes: int) -> None:
        tokens = [list(self.committed)[index] for index in indexes if index < len(self.committed)]
        self.settled.update(tokens)
        with suppress(OSError):
            await store.settle(tokens)


async def live(store: DiskStore, life: Life) -> None:
    """Do everything that a store can do. Small segments: several are made, rewritten and removed."""
    try:
        await store.open()
    except SpoolError:
        return
    try:
        async for piece in store.adopted():
            with suppress(OSError):
                await store.settle([record.token for record in piece if record.location == "earlier, settled"])
        await life.commit(store, make_record("a"), make_record("b", 40), make_record("a"))
        await life.settle(store, 0)
        for number in range(12):
            await life.commit(store, make_record(f"c{number}", 16), make_record("d", 1))
            await life.settle(store, len(life.committed) - 2, number + 2)
        try:
            await store.bury("e", make_spans(2), "refused")
            for token in list(life.committed):
                if token not in life.settled:
                    assert await store.read(token) == life.committed[token].spans
        except OSError:
            pass
        await store.close()
    except OSError as error:
        raise AssertionError("an error of the disk is raised by what the batcher expects") from error


SETTINGS: dict[str, Any] = {"max_bytes": 9_000, "durability": "power"}


async def earlier(disk: DiskPlace) -> tuple[list[NewRecord], NewRecord]:
    """Leave records of an earlier process. Return those that `live` does not settle, and the one that it does."""
    store = await disk.opened(max_bytes=SETTINGS["max_bytes"])
    kept, settled = [make_record("earlier", 2), make_record("earlier", 3)], make_record("earlier, settled")
    await store.commit([kept[0], settled])
    await store.commit([kept[1]])
    disk.end(store)
    return kept, settled


def as_set(spans: list[EncodedSpan] | Any) -> frozenset[bytes]:
    return frozenset(span.payload for span in spans)


async def check(disk: DiskPlace, life: Life, kept: list[NewRecord], settled: NewRecord, *, may_invent: bool) -> None:
    """Look at what the next process finds."""
    store = await disk.opened()
    found = [as_set(spans) for _, spans in await contents(store)]
    assert len(found) == len(set(found)), "a record is there twice"
    wanted = [as_set(new.spans) for new in kept]
    wanted += [as_set(new.spans) for token, new in life.committed.items() if token not in life.settled]
    assert set(wanted) <= set(found), "something committed is lost"
    possible = {*wanted, as_set(settled.spans), *(as_set(life.committed[token].spans) for token in life.settled)}
    if may_invent:
        # The outcome of a commit under way is unknown.
        possible |= {as_set(new.spans) for new in life.offered}
    assert set(found) <= possible, "something is there that was not committed"
    assert store.statistics().damaged == 0
    await store.commit([make_record()])
    await store.close()


async def one_life(disk: DiskPlace, nth: int, fault: Fault, patch: pytest.MonkeyPatch) -> bool:
    """Return whether there was an n-th operation."""
    kept, settled = await earlier(disk)
    life = Life()
    faulty = FaultyOS(nth, fault)
    with patch.context() as patched:
        patched.setattr(files, "os", faulty)
        store = disk.store(**SETTINGS)
        with suppress(ProcessEnded):
            await live(store, life)
        if not faulty.has_ended:
            store.abandon()
            wait_until_released()
    faulty.close_all()
    # Without a file, the thread of an ended process ends too.
    store.abandon()
    wait_until_released()
    await check(disk, life, kept, settled, may_invent=faulty.has_ended)
    for file in disk.files():
        file.unlink()
    return faulty.count >= nth


async def every_operation(disk: DiskPlace, fault: Fault, patch: pytest.MonkeyPatch, first: int, step: int) -> int:
    nth = first
    while await one_life(disk, nth, fault, patch):
        nth += step
    return nth


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_operation_fails_nothing_committed_is_lost(
    fault: Fault, disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seventh operation; `make test-all` has all of them."""
    assert await every_operation(disk, fault, monkeypatch, FAULTS.index(fault) + 1, 7) > 150


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_single_operation_may_fail(fault: Fault, disk: DiskPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await every_operation(disk, fault, monkeypatch, 1, 1) > 150
