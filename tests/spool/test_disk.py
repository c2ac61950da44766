"""The store on disk: its thread, what is synced, segments, full disks, dead letters."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.spool.support import (
    ENDPOINT,
    DiskPlace,
    adopted,
    content_of,
    contents,
    make_record,
    make_spans,
    wait_until_released,
)
from tests.support.long_tests import run_long
from trio_spanbatch import EncodedSpan, Spool, SpoolError
from trio_spanbatch._spool import files
from trio_spanbatch._spool.disk import _KEPT, DiskStore
from trio_spanbatch._spool.log import RECORDS_AT, SLOTS, scan, unpack_spans
from trio_spanbatch._spool.log import Head as SegmentHead
from trio_spanbatch._spool.store import NewRecord

MIB = 1024 * 1024


class WatchedOS:
    """The module ``os``, with a record of the calls, and functions in place of some of them.

    Attributes:
        calls: Each call's name and whether it was made in the thread of the test.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.replaced: dict[str, Callable[..., Any]] = {}
        self._thread = threading.current_thread()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if not callable(real) or isinstance(real, type) or name in ("fspath", "strerror", "geteuid", "major", "minor"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, threading.current_thread() is self._thread))
            return self.replaced.get(name, real)(*args, **kwargs)

        return call

    def fails(self, name: str, number: int) -> None:
        """Let a function raise an `OSError` from now on."""

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(number, os.strerror(number))

        self.replaced[name] = fail

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> WatchedOS:
    watched = WatchedOS()
    monkeypatch.setattr(files, "os", watched)
    return watched


def set_small_segments(monkeypatch: pytest.MonkeyPatch, size: int = 1) -> None:
    monkeypatch.setattr("trio_spanbatch._spool.disk._SEGMENT_SIZE", size)


# -- the thread ------------------------------------------------------------------------------------------------


async def test_no_file_is_touched_in_the_thread_of_the_event_loop(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened(durability="power")
    (record,) = await store.commit([make_record()])
    await store.read(record.token)
    await store.settle([record.token])
    await store.bury("main.spans", make_spans(1), "why")
    store.statistics()
    await store.close()
    second = await disk.opened()
    await adopted(second)
    disk.end(second)
    assert {"open", "pread", "pwrite", "fsync", "unlink", "close", "listdir", "rename"} <= set(watched.names())
    assert [name for name, in_loop in watched.calls if in_loop] == []


class Hang:
    """A function that hangs until it is released."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self._released = threading.Event()
        self.begun = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.begun.set()
        self._released.wait()
        return self._real(*args, **kwargs)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang(os.pwrite)
    yield hang
    hang.release()
    wait_until_released()


async def commit_that_hangs(store: DiskStore, watched: WatchedOS, hang: Hang, *records: NewRecord) -> None:
    """Return once a commit hangs and was cancelled."""
    watched.replaced["pwrite"] = hang
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, records)
        await trio.to_thread.run_sync(hang.begun.wait)
        nursery.cancel_scope.cancel()


async def test_a_write_that_hangs_can_be_abandoned(disk: DiskPlace, watched: WatchedOS, hang: Hang) -> None:
    store = await disk.opened()
    await store.commit([committed := make_record()])
    await commit_that_hangs(store, watched, hang, under_way := make_record())
    await commit_that_hangs(store, watched, hang, make_record("behind it"))
    store.abandon()
    del watched.calls[:]
    hang.release()
    with pytest.raises(OSError, match="closed"):
        await store.commit([make_record()])
    wait_until_released()
    assert "pwrite" not in watched.names()
    # Its outcome was unknown: it took effect. The files were closed after it.
    after, found = await disk.next()
    assert found == content_of([committed, under_way])
    await after.close()


async def test_a_job_that_is_still_waited_for_is_not_begun_after_abandoning(
    disk: DiskPlace, watched: WatchedOS, hang: Hang
) -> None:
    store = await disk.opened()
    watched.replaced["pwrite"] = hang
    failures: dict[str, str] = {}

    async def commit(record: NewRecord) -> None:
        try:
            await store.commit([record])
        except OSError as error:
            failures[record.location] = str(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit, under_way := make_record())
        await trio.to_thread.run_sync(hang.begun.wait)
        nursery.start_soon(commit, make_record("behind it"))
        await trio.testing.wait_all_tasks_blocked()
        store.abandon()
        hang.release()
    assert failures == {"behind it": "[Errno 9] the spool is closed"}
    wait_until_released()
    after, found = await disk.next()
    assert found == content_of([under_way])
    await after.close()


async def test_abandoning_does_not_wait_for_a_write_that_hangs(disk: DiskPlace, watched: WatchedOS, hang: Hang) -> None:
    store = await disk.opened()
    await store.commit([make_record()])
    await commit_that_hangs(store, watched, hang, make_record())
    store.abandon()
    store.abandon()
    assert any(file.fd >= 0 for file in files._OPEN)
    hang.release()
    wait_until_released()
    assert not any(file.fd >= 0 for file in files._OPEN)


async def test_once_a_disk_answers_again_it_keeps_nothing_of_commits_that_nobody_waits_for(
    disk: DiskPlace, watched: WatchedOS, hang: Hang
) -> None:
    store = await disk.opened()
    await commit_that_hangs(store, watched, hang, make_record("under way"))
    await commit_that_hangs(store, watched, hang, make_record("behind it"))
    hang.release()
    await store.commit([later := make_record()])
    assert b"behind it" not in disk.files("spans")[0].read_bytes()
    # It may be cancelled before it is carried out, or just afterwards.
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.commit([make_record("cancelled")])
    await store.settle([])
    await store.settle([])
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([later])
    await after.close()


async def test_nothing_is_touched_after_abandoning(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened()
    (record,) = await store.commit([make_record()])
    disk.end(store)
    del watched.calls[:]
    for call in (store.commit([make_record()]), store.settle([record.token]), store.read(record.token)):
        with pytest.raises(OSError, match="closed"):
            await call
    assert watched.calls == []


async def test_a_call_that_waits_for_a_hanging_one_can_be_cancelled(
    disk: DiskPlace, watched: WatchedOS, hang: Hang
) -> None:
    store = await disk.opened()
    (record,) = await store.commit([make_record()])
    await commit_that_hangs(store, watched, hang, make_record())
    for call in (store.commit([make_record()]), store.settle([record.token]), store.close()):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call
        assert scope.cancelled_caught
    store.abandon()


async def test_the_program_s_threads_are_not_needed(disk: DiskPlace) -> None:
    store = await disk.opened()
    limiter = trio.to_thread.current_default_thread_limiter()
    before = limiter.total_tokens
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        limiter.total_tokens = 1
        nursery.start_soon(partial(trio.to_thread.run_sync, release.wait))
        await trio.testing.wait_all_tasks_blocked()
        await store.commit([make_record()])
        release.set()
    limiter.total_tokens = before
    await store.close()


async def test_where_no_thread_can_be_started_the_spool_cannot_be_opened(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = disk.store()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(SpoolError, match="can't start new thread"):
            await store.open()
    with pytest.raises(OSError, match="closed"):
        await store.commit([make_record()])


@pytest.mark.parametrize("end", ["close", "abandon", "no directory", "cancelled", "hangs until the run has ended"])
def test_the_thread_ends_with_its_store(disk: DiskPlace, watched: WatchedOS, hang: Hang, end: str) -> None:
    before, open_before = set(threading.enumerate()), {file for file in files._OPEN if file.fd >= 0}

    async def main() -> None:
        store = disk.store()
        with trio.CancelScope() as scope:
            if end == "no directory":
                disk.directory.touch()
                with pytest.raises(SpoolError):
                    await store.open()
                return
            if end == "cancelled":
                scope.cancel()
            await store.open()
            if end.startswith("hangs"):
                await commit_that_hangs(store, watched, hang, make_record())
            if end == "close":
                await store.close()
            store.abandon()

    trio.run(main)
    hang.release()
    for thread in set(threading.enumerate()) - before:
        if thread.name == "trio-spanbatch spool":
            thread.join(10)
            assert not thread.is_alive()
    assert {file for file in files._OPEN if file.fd >= 0} <= open_before


# -- what is synced --------------------------------------------------------------------------------------------


async def test_power_syncs_the_file_in_each_commit_and_the_directory_once(disk: DiskPlace, watched: WatchedOS) -> None:
    synced: list[str] = []
    watched.replaced["fsync"] = lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    store = await disk.opened(durability="power")
    # Our directory's own name, and that of the one that was given, which is new, too.
    assert synced == [str(disk.directory), str(disk.directory.parent)]
    del synced[:]
    (record,) = await store.commit([make_record()])
    (segment,) = disk.files("spans")
    assert synced == [str(disk.own), str(segment)]
    await store.commit([make_record()])
    await store.settle([record.token])
    assert synced == [str(disk.own), str(segment), str(segment)]
    await store.close()


async def test_process_syncs_nothing(disk: DiskPlace, watched: WatchedOS) -> None:
    (disk.own).mkdir(parents=True, mode=0o700)
    store = await disk.opened()
    await store.commit([make_record()])
    await store.close()
    assert "fsync" not in watched.names()


async def test_a_commit_returns_after_its_sync(disk: DiskPlace, watched: WatchedOS, hang: Hang) -> None:
    store = await disk.opened(durability="power")
    await store.commit([make_record()])
    watched.replaced["fsync"] = hang
    hang._real = os.fsync
    returned = trio.Event()

    async def commit() -> None:
        await store.commit([make_record()])
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await trio.to_thread.run_sync(hang.begun.wait)
        assert not returned.is_set()
        hang.release()
    await store.close()


async def test_nothing_is_appended_to_a_segment_after_a_failed_sync(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened(durability="power")
    await store.commit([first := make_record()])
    (segment,) = disk.files("spans")
    watched.fails("fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        await store.commit([make_record()])
    watched.replaced.clear()
    size = segment.stat().st_size
    await store.commit([second := make_record()])
    assert segment.stat().st_size == size
    assert len(disk.files("spans")) == 2
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([first, second])
    await after.close()


# -- full and failing disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", ["commit", "settle", "close"])
async def test_what_a_failed_commit_has_written_is_settled_later_if_not_at_once(
    later: str, disk: DiskPlace, watched: WatchedOS
) -> None:
    store = await disk.opened()
    await store.commit([first := make_record()])

    def write_half(fd: int, data: Any, at: int) -> int:
        watched.fails("pwrite", errno.ENOSPC)
        return os.pwrite(fd, data[: len(data) - 1], at)

    watched.replaced["pwrite"] = write_half
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            await store.commit([make_record() for _ in range(5)])
    watched.replaced.clear()
    second = [make_record(count=1)] if later == "commit" else []
    await (store.commit(second) if later == "commit" else store.settle([]) if later == "settle" else store.close())
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([first, *second])
    assert after.statistics().damaged == 0
    await after.close()


async def test_a_commit_of_several_pieces_is_undone_if_one_of_them_fails(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened()
    await store.commit([first := make_record()])
    writes_left = 0

    def pwrite(fd: int, data: Any, at: int) -> int:
        nonlocal writes_left
        writes_left -= 1
        if writes_left == 0:
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, data, at)

    watched.replaced["pwrite"] = pwrite
    # Pieces of one job; several jobs, the first of which also makes a segment.
    for count, size, failing in ((5, 70_000, 2), (600, 1, 3)):
        writes_left = failing
        with pytest.raises(OSError, match="full"):
            await store.commit([make_record(size=size) for _ in range(count)])
        await store.settle([])
    watched.replaced.clear()
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([first])
    await after.close()


async def test_what_could_not_be_settled_is_settled_with_the_next_commit(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened()
    one, _ = await store.commit([make_record(), second := make_record()])
    watched.fails("pwrite", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        await store.settle([one.token])
    watched.replaced.clear()
    await store.commit([third := make_record()])
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([second, third])
    await after.close()


def test_a_limit_of_file_sizes_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the kernel sends SIGXFSZ too, which Python ignores."""
    program = f"""
import resource, trio
from tests.spool.support import DiskPlace, make_record, content_of
from pathlib import Path
async def main():
    disk = DiskPlace(Path({str(tmp_path)!r}))
    store = await disk.opened()
    kept, settled = make_record(), make_record()
    _, token = await store.commit([kept, settled])
    (segment,) = disk.files("spans")
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, resource.RLIM_INFINITY))
    try:
        await store.commit([make_record(size=1000)])
    except OSError as error:
        print(error)
    await store.settle([token.token])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.commit([later := make_record()])
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([kept, later]), found
    assert after.statistics().damaged == 0
trio.run(main)
"""
    assert "File too large" in run_long("-c", program)


async def test_the_space_for_settlements_is_taken_when_a_segment_is_made(disk: DiskPlace) -> None:
    """Not a hole in the file, which would take space only when a record is settled."""
    store = await disk.opened()
    await store.commit([make_record()])
    (segment,) = disk.files("spans")
    assert segment.stat().st_blocks * 512 >= RECORDS_AT
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", mounted], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("only root can mount a small file system")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


async def test_settling_and_removing_work_on_a_full_disk(small_disk: Path) -> None:
    disk = DiskPlace(small_disk)
    store = await disk.opened()
    tokens: list[int] = []
    kept: list[NewRecord] = []
    with pytest.raises(OSError, match="No space left"):
        while True:
            (record,) = await store.commit([new := make_record(size=2000)])
            tokens.append(record.token)
            kept.append(new)
    with (small_disk / "others").open("wb", buffering=0) as others, pytest.raises(OSError, match="No space left"):
        while True:
            others.write(bytes(512))
    await store.settle(tokens[::2])
    disk.end(store)
    # The next process settles the rest on the disk that is still full, and its files go.
    after = await disk.opened()
    found = await adopted(after)
    assert len(found) == len(tokens) // 2
    await after.settle([record.token for record in found])
    assert disk.files("spans") == []
    await after.commit([make_record()])
    await after.close()


# -- segments --------------------------------------------------------------------------------------------------


async def test_a_segment_is_removed_once_its_records_are_settled(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_small_segments(monkeypatch)
    store = await disk.opened()
    tokens = [(await store.commit([make_record()]))[0].token for _ in range(4)]
    assert len(disk.files("spans")) == 4
    await store.settle(tokens[1:3])
    assert len(disk.files("spans")) == 2
    # The last one is still appended to.
    await store.settle([tokens[3]])
    assert len(disk.files("spans")) == 2
    await store.commit([make_record()])
    assert len(disk.files("spans")) == 2
    await store.close()


async def test_a_segment_ends_when_its_slots_are_used(disk: DiskPlace) -> None:
    store = await disk.opened()
    new = [make_record(count=1) for _ in range(SLOTS + 10)]
    committed = await store.commit(new)
    assert len(disk.files("spans")) == 2
    assert len({record.token for record in committed}) == SLOTS + 10
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of(new)
    await after.close()


async def test_records_next_to_each_other_are_settled_with_one_write(disk: DiskPlace, watched: WatchedOS) -> None:
    store = await disk.opened()
    new = [make_record(count=1) for _ in range(SLOTS + 10)]
    tokens = [record.token for record in await store.commit(new)]
    watched.calls.clear()
    await store.settle([*tokens[9:3:-1], *tokens[20:700], tokens[-1]])
    assert [name for name, _ in watched.calls] == ["open", "pwrite", "pwrite", "close", "pwrite"]
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of([*new[:4], *new[10:20], *new[700:-1]])
    await after.close()


async def test_segments_are_in_order_though_the_clock_was_set_back(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_small_segments(monkeypatch)
    new = [make_record() for _ in range(12)]
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr("trio_spanbatch._spool.disk.time.time", lambda: next(clock))
    for life in range(4):
        store = await disk.opened()
        for record in new[3 * life : 3 * life + 3]:
            await store.commit([record])
        disk.end(store)
    after, found = await disk.next()
    assert found == content_of(new)
    await after.close()


async def test_what_several_processes_have_left_is_found_in_order(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_small_segments(monkeypatch)
    new = [make_record() for _ in range(8)]
    clock = iter(range(1000))
    monkeypatch.setattr("trio_spanbatch._spool.disk.time.time", lambda: next(clock))
    stores = [await disk.opened(), await disk.opened()]
    for number, record in enumerate(new):
        await stores[number % 2].commit([record])
    for store in stores:
        disk.end(store)
    after, found = await disk.next()
    assert found == content_of(new)
    await after.close()


async def test_space_in_segments_with_a_few_old_records_is_used_again(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One location that cannot be delivered does not fill the disk with the settled records of all others."""
    set_small_segments(monkeypatch, 2000)
    store = await disk.opened(max_bytes=20_000)
    old: list[NewRecord] = []
    for _ in range(100):
        stuck, others = make_record("stuck", 1, 10), make_record("others", 10, 100)
        old.append(stuck)
        _, other = await store.commit([stuck, others])
        await store.settle([other.token])
    assert store.statistics().nbytes < 20_000
    disk.end(store)
    assert sum(file.stat().st_size - RECORDS_AT for file in disk.files("spans")) < 20_000
    # The next process counts what is there, and goes on like this.
    store = await disk.opened(max_bytes=20_000)
    assert await contents(store) == content_of(old)
    for _ in range(100):
        (other,) = await store.commit([make_record("others", 10, 100)])
        await store.settle([other.token])
    disk.end(store)
    assert sum(file.stat().st_size - RECORDS_AT for file in disk.files("spans")) < 20_000
    after, found = await disk.next()
    assert found == content_of(old)
    await after.close()


async def test_nothing_is_written_twice_in_a_spool_that_is_not_half_full(
    disk: DiskPlace, watched: WatchedOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_small_segments(monkeypatch, 2000)
    store = await disk.opened()
    for _ in range(100):
        _, other = await store.commit([make_record("stuck", 1, 10), make_record("others", 10, 100)])
        await store.settle([other.token])
    assert "rename" not in watched.names()
    await store.close()


async def test_power_syncs_a_rewritten_segment_before_it_replaces_the_old_one(
    disk: DiskPlace, watched: WatchedOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_small_segments(monkeypatch, 2000)
    store = await disk.opened(max_bytes=20_000, durability="power")
    for _ in range(100):
        _, other = await store.commit([make_record("stuck", 1, 10), make_record("others", 10, 100)])
        await store.settle([other.token])
    names = [name for name in watched.names() if name in ("pwrite", "fsync", "rename")]
    before_rename = [before for before, name in itertools.pairwise(names) if name == "rename"]
    assert before_rename
    assert set(before_rename) == {"fsync"}
    await store.close()


async def test_what_a_rewrite_has_left_unfinished_is_removed(disk: DiskPlace) -> None:
    store = await disk.opened()
    await store.commit([new := make_record()])
    disk.end(store)
    (segment,) = disk.files("spans")
    unfinished = segment.parent / f"{segment.name.partition('.')[0]}.tmp"
    unfinished.write_bytes(segment.read_bytes()[:100])
    after, found = await disk.next()
    assert found == content_of([new])
    assert not unfinished.exists()
    await after.close()


# -- starting --------------------------------------------------------------------------------------------------


async def test_a_million_spans_do_not_delay_the_start(disk: DiskPlace, watched: WatchedOS) -> None:
    """The start reads the heads of the segments; records are found in pieces later, without a look at their spans."""
    store = await disk.opened()
    spans = make_spans(500)
    commits = 20
    records = [NewRecord(f"location {number}", spans, 5000, 1.0) for number in range(100)]
    for _ in range(commits):
        await store.commit(records)
    disk.end(store)
    segments = disk.files("spans")
    assert len(segments) > 3

    del watched.calls[:]
    read: list[int] = []

    def pread(fd: int, size: int, at: int) -> bytes:
        read.append(size)
        return os.pread(fd, size, at)

    watched.replaced["pread"] = pread
    store = await disk.opened()
    assert read == [RECORDS_AT] * len(segments)
    assert len(watched.calls) < 100 + 10 * len(segments)
    # What comes now is accepted at once.
    await store.commit([make_record("new")])
    del read[:]
    count = 0
    async for piece in store.adopted():
        assert len(piece) <= 256
        assert sum(read) <= 256 * 1024
        del read[:]
        count += sum(record.count for record in piece)
    assert count == 500 * 100 * commits
    await store.close()


async def test_closing_before_everything_was_found_leaves_it(disk: DiskPlace) -> None:
    new = [make_record() for _ in range(300)]
    store = await disk.opened()
    await store.commit(new)
    disk.end(store)
    store = await disk.opened()
    pieces = store.adopted()
    assert len(await anext(pieces)) == 256
    await store.close()
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    after, found = await disk.next()
    assert found == content_of(new)
    await after.close()


async def test_settling_what_was_found_so_far_keeps_the_rest(disk: DiskPlace) -> None:
    new = [make_record() for _ in range(300)]
    store = await disk.opened()
    await store.commit(new)
    disk.end(store)
    store = await disk.opened()
    piece = await anext(store.adopted())
    await store.settle([record.token for record in piece])
    disk.end(store)
    after, found = await disk.next()
    assert found == content_of(new[256:])
    await after.close()


async def test_a_store_that_was_not_opened_can_be_closed(disk: DiskPlace) -> None:
    await disk.store().close()
    disk.store().abandon()
    wait_until_released()


# -- dead letters ----------------------------------------------------------------------------------------------


def letters(file: Path) -> list[tuple[str, str, Sequence[EncodedSpan]]]:
    data = file.read_bytes()
    found: list[tuple[str, str, Sequence[EncodedSpan]]] = []
    for item in scan(lambda at, size: data[at : at + size], len(data), SegmentHead.unpack(data).marker):
        at, _, header = item
        assert header is not None
        spans = unpack_spans(data[at + header.spans_at : at + header.size])
        found.append((header.location, header.reason, spans))
    return found


async def test_dead_letters_keep_location_reason_and_spans(disk: DiskPlace) -> None:
    store = await disk.opened()
    one, two = make_spans(2), make_spans(3)
    await store.bury("a", one, "no such table")
    await store.bury("b", two, "")
    await store.close()
    store = await disk.opened()
    (file,) = disk.files("dead")
    assert letters(file) == [("a", "no such table", one), ("b", "", two)]
    # They belong to no process: whoever opens the spool next keeps them.
    assert file.name.startswith(store._name)
    await store.close()
    assert len(disk.files("dead")) == 1
    assert disk.files("lock") == []


async def test_dead_letters_are_removed_after_a_week(disk: DiskPlace) -> None:
    store = await disk.opened()
    await store.bury("a", make_spans(1), "why")
    await store.close()
    (file,) = disk.files("dead")
    for suffix in ("damaged", "unreadable"):
        file.with_suffix(f".{suffix}").write_bytes(b"x")
    then = file.stat().st_mtime - _KEPT
    for age, left in ((60, 3), (-60, 0)):
        for path in disk.files():
            os.utime(path, (then + age, then + age))
        await (await disk.opened()).close()
        assert len(disk.files()) == left


async def test_dead_letters_are_removed_after_a_week_while_the_spool_is_open(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 24 * 3600.0
    days = 0.0
    monkeypatch.setattr("trio_spanbatch._spool.disk.time.time", lambda real=time.time: real() + days * day)
    store = await disk.opened()
    for days in (0.0, 0.5, 1.1):
        await store.bury(f"{days}", make_spans(1), "why")
    first, second = disk.files("dead")
    assert [len(letters(file)) for file in (first, second)] == [2, 1]
    os.utime(second, (time.time(), time.time()))
    for days, left in ((6.9, [first, second]), (7.1, [second]), (8.2, [])):  # noqa: B007  # the clock reads it
        await store.settle([])
        assert disk.files("dead") == left
    await store.close()


async def test_dead_letters_take_an_eighth_of_the_spool_at_most(disk: DiskPlace) -> None:
    store = await disk.opened(max_bytes=800_000)
    for number in range(100):
        await store.bury(f"{number}", make_spans(10, size=500), "why")
    await store.close()
    found = disk.files("dead")
    # One more, as only complete files are removed.
    assert sum(file.stat().st_size for file in found) < 200_000
    assert {location for file in found for location, _, _ in letters(file)} >= {"98", "99"}
    assert store.statistics().nbytes == 0


async def test_messages_are_told_in_the_thread_of_the_event_loop(disk: DiskPlace) -> None:
    disk.own.mkdir(parents=True, mode=0o700)
    (disk.own / "a.0.spans").write_bytes(b"x" * 50_000)
    threads: list[threading.Thread] = []
    store = DiskStore(Spool(disk.directory), ENDPOINT, tell=lambda _: threads.append(threading.current_thread()))
    await store.open()
    assert threads == [threading.current_thread()]
    await store.close()
