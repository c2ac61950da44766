"""The spool's directory, its locks, and processes that fork."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.spool.support import ENDPOINT, DiskPlace, adopted, content_of, contents, make_record
from tests.support.processes import run_to_end
from trio_spanbatch import Spool, SpoolError
from trio_spanbatch._spool import files
from trio_spanbatch._spool.disk import DiskStore, endpoint_of
from trio_spanbatch._spool.files import Directory, File
from trio_spanbatch.testing import InMemoryExporter

NOBODY = 65534


async def refusal(directory: Path) -> str:
    store = DiskStore(Spool(directory), ENDPOINT)
    with pytest.raises(SpoolError) as caught:
        await store.open()
    assert str(directory) in str(caught.value)
    return str(caught.value)


# -- the directory ---------------------------------------------------------------------------------------------


async def test_everything_is_for_this_user_alone(disk: DiskPlace) -> None:
    before = os.umask(0)
    try:
        store = await disk.opened()
        await store.commit([make_record()])
        await store.bury("main.spans", make_record().spans, "why")
        assert stat.S_IMODE(disk.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(disk.own.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in disk.files()} == {0o600}
        await store.close()
    finally:
        os.umask(before)


async def test_a_directory_that_all_may_write_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o1777, 0o702):
        tmp_path.chmod(mode)
        assert f"other users may write to it (mode {mode:04o})" in await refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []
    # The remedy that the message gives.
    tmp_path.chmod(0o777)
    store = DiskStore(Spool(tmp_path / "new"), ENDPOINT)
    await store.open()
    await store.close()


async def test_our_own_directory_is_refused_if_all_may_write_to_it(disk: DiskPlace) -> None:
    disk.own.mkdir(parents=True)
    disk.own.chmod(0o777)
    assert "other users may write" in await refusal(disk.directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("given", "own"), [(0o770, 0o700), (0o2775, 0o700), (0o700, 0o770), (0o755, 0o730)])
def test_what_a_group_may_write_is_refused_unless_it_is_on_a_volume_of_roots(
    given: int, own: int, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    directory = tmp_path / "given"
    for path, mode in ((directory, given), (directory / "trio-spanbatch", own)):
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        path.chmod(mode)
    program = f"""
import os, trio
from trio_spanbatch import Spool, SpoolError
from trio_spanbatch._spool import disk
os.chdir({str(tmp_path)!r})
os.setgid({NOBODY})
os.setuid({NOBODY})
async def main():
    store = disk.DiskStore(Spool("given"), "http://x")
    try:
        await store.open()
    except SpoolError as error:
        print(error)
    else:
        await store.close()
        print("opened")
trio.run(main)
"""
    refused, mode = ("given", given) if given & 0o20 else ("given/trio-spanbatch", own)
    done = run_to_end([sys.executable, "-c", program], together=True)
    assert f"the spool cannot use {refused}: other users may write to it (mode {mode:04o})" in done.stdout
    os.chown(directory, 0, NOBODY)
    directory.chmod(0o2770)
    assert run_to_end([sys.executable, "-c", program], together=True).stdout == "opened\n"
    assert stat.S_IMODE((directory / "trio-spanbatch").stat().st_mode) == 0o700


async def test_our_own_directory_is_made_private_if_others_can_read_it(disk: DiskPlace) -> None:
    await (await disk.opened()).close()
    disk.own.chmod(0o755)
    await (await disk.opened()).close()
    assert stat.S_IMODE(disk.own.stat().st_mode) == 0o700


async def test_a_directory_that_a_volume_gave_to_a_group_is_taken_back(disk: DiskPlace) -> None:
    store = await disk.opened()
    await store.commit([new := make_record()])
    await store.close()
    disk.directory.chmod(0o2775)
    disk.own.chmod(0o2770)
    store = await disk.opened()
    assert stat.S_IMODE(disk.own.stat().st_mode) == 0o700
    assert await contents(store) == content_of([new])
    await store.close()


async def test_a_directory_of_another_user_is_refused(disk: DiskPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await disk.opened()).close()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert f"belongs to user {user}, and this process runs as user {user + 1}" in await refusal(disk.directory)


@pytest.mark.parametrize("owner", [0, 1000, 1001])
def test_only_the_given_directory_may_be_roots(owner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of a container belongs to root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = list(tmp_path.stat())
    found[stat.ST_UID] = owner
    for may_be_roots in (True, False):
        refused = owner == 1001 or (owner == 0 and not may_be_roots)
        try:
            files._check(tmp_path, os.stat_result(found), may_be_roots=may_be_roots, may_be_groups=False)
        except SpoolError as error:
            assert refused, error
        else:
            assert not refused


async def test_a_symbolic_link_in_place_of_our_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    given = tmp_path / "given"
    given.mkdir(mode=0o700)
    (given / "trio-spanbatch").symlink_to(tmp_path / "elsewhere")
    await refusal(given)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in await refusal(tmp_path / "file")


async def test_a_directory_whose_parent_is_missing_is_refused(tmp_path: Path) -> None:
    assert "make the directory above it first" in await refusal(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "Read-only file system; mount it writable"),
        (errno.EACCES, "may make files"),
        (errno.ENOLCK, "on a local file system, which has locks"),
        (errno.EOPNOTSUPP, "on a local file system, which has locks"),
        (errno.EIO, "Input/output error"),
    ],
)
async def test_a_directory_without_working_locks_is_refused(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert words in await refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o755, 0o555])
def test_a_directory_in_which_this_user_may_not_write_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    program = f"""
import os, trio
from pathlib import Path
from trio_spanbatch import Spool, SpoolError
from trio_spanbatch._spool import disk
os.chdir({str(tmp_path)!r})
os.mkdir("given", {mode:#o})
os.setuid({NOBODY})
async def main():
    try:
        await disk.DiskStore(Spool("given"), "http://x").open()
    except SpoolError as error:
        print(error)
trio.run(main)
"""
    done = run_to_end([sys.executable, "-c", program], together=True)
    assert "the spool cannot use given: Permission denied; give a directory" in done.stdout


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
async def test_a_file_system_of_another_machine_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 0:99 / / rw - ext4 /dev/x rw\n2 1 {os.major(device)}:{os.minor(device)} / /m rw,a - {kind} host:/x rw\n"
    )
    monkeypatch.setattr(files, "_MOUNTS", mounts)
    assert f"it is on {kind}, a file system of another machine" in await refusal(tmp_path)


async def test_where_file_systems_are_not_known_none_is_refused(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MOUNTS", Path("/nonexistent"))
    await (await disk.opened()).close()


async def test_a_file_of_another_user_is_left_alone(disk: DiskPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await disk.opened()
    await store.commit([make_record()])
    disk.end(store)
    (segment,) = disk.files("spans")
    monkeypatch.setattr("trio_spanbatch._spool.disk.is_ours", lambda file: False)
    store = await disk.opened()
    assert await adopted(store) == []
    assert store.statistics().set_aside == 1
    assert "belongs to another user" in disk.messages[0]
    await store.close()
    assert disk.files("spans") == [segment]


async def test_an_error_shows_no_query_or_password(disk: DiskPlace) -> None:
    """The endpoint is what the caller gives: without credentials. Nothing else of the exporter is on disk."""
    store = await disk.opened("https://a.test")
    await store.commit([make_record()])
    disk.end(store)
    assert "https://a.test" in await refusal(disk.directory)
    (segment,) = disk.files("spans")
    assert segment.read_bytes().count(b"https://a.test") == 2


@pytest.mark.parametrize("endpoint", ["https://a.test/v1", "https://user:password@a.test/v1?token=secret"])
def test_an_exporter_s_own_endpoint_is_kept_without_credentials(endpoint: str) -> None:
    exporter = InMemoryExporter()
    assert endpoint_of(exporter).endswith(".InMemoryExporter")
    exporter.endpoint = endpoint  # type: ignore[attr-defined]  # as an exporter of a program may have
    assert endpoint_of(exporter) == "https://a.test/v1"


# -- locks -----------------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_a_spool_in_which_everything_is_settled(disk: DiskPlace) -> None:
    store = await disk.opened()
    (record,) = await store.commit([make_record()])
    assert len(disk.files("lock")) == 1
    await store.settle([record.token])
    await store.close()
    assert disk.files() == []
    gc.collect()
    assert not [file for file in files._OPEN if file.fd >= 0]


async def test_the_files_of_an_abandoned_store_are_closed_and_unlocked(disk: DiskPlace) -> None:
    store = await disk.opened()
    await store.commit([new := make_record()])
    await store.bury("main.spans", make_record().spans, "why")
    disk.end(store)
    assert not [file for file in files._OPEN if file.fd >= 0]
    after = await disk.opened()
    assert await contents(after) == content_of([new])
    await after.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    opened = Directory(tmp_path)
    yield opened
    opened.close()


def test_a_lock_is_held_by_one(directory: Directory) -> None:
    lock = directory.try_lock("name")
    assert lock is not None
    assert directory.try_lock("name") is None
    lock.close()
    again = directory.try_lock("name")
    assert again is not None
    again.close()


@contextmanager
def meanwhile(monkeypatch: pytest.MonkeyPatch, directory: Directory, action: str) -> Iterator[None]:
    """Let another process remove the lock file, or replace it, between opening and locking it."""
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        directory.unlink("name.lock")
        if action == "replace":
            directory.make("name.lock").close()
        real(fd, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        yield


@pytest.mark.parametrize("action", ["remove", "replace"])
def test_a_lock_file_that_was_removed_before_it_was_locked_does_not_count(
    action: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with meanwhile(monkeypatch, directory, action):
        assert directory.try_lock("name") is None


async def test_a_new_name_that_another_process_has_locked_is_not_used(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Directory.try_lock
    tried: list[str] = []

    def try_lock(directory: Directory, name: str) -> File | None:
        tried.append(name)
        return None if len(tried) < 3 else real(directory, name)

    monkeypatch.setattr(Directory, "try_lock", try_lock)
    store = await disk.opened()
    assert store._name == tried[2]
    await store.close()
    del tried[:]
    monkeypatch.setattr(Directory, "try_lock", lambda directory, name: None)
    assert "has locks" in await refusal(disk.directory)


async def test_files_that_cannot_be_taken_over_do_not_keep_the_spool_from_opening(
    disk: DiskPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await disk.opened()
    await store.commit([old := make_record()])
    disk.end(store)

    def rename(directory: Directory, file: str, to: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Directory, "rename", rename)
        store = await disk.opened()
        assert await adopted(store) == []
        await store.commit([new := make_record()])
        assert "No space left" in disk.messages[0]
        disk.end(store)
    after, found = await disk.next()
    assert found == content_of([old, new])
    await after.close()


async def test_segments_without_a_lock_file_are_taken_over(disk: DiskPlace) -> None:
    """A power failure may keep the removal of the lock file and not the renaming of the segments."""
    store = await disk.opened()
    await store.commit([new := make_record()])
    disk.end(store)
    for lock in disk.files("lock"):
        lock.unlink()
    after = await disk.opened()
    assert await contents(after) == content_of([new])
    await after.close()


# -- forks -----------------------------------------------------------------------------------------------------

FORKING = """
import os, sys, time, trio
from trio_spanbatch import Spool, EncodedSpan
from trio_spanbatch._spool.disk import DiskStore, endpoint_of
from trio_spanbatch._spool.store import NewRecord

async def main():
    store = DiskStore(Spool(sys.argv[1]), "http://x")
    await store.open()
    await store.commit([NewRecord("forked", [EncodedSpan(b"span")], 4, 1.0)])
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(1)
        os.close(write)
        # Until the test says so.
        sys.stdin.read()
        os._exit(0)
    print("forked", flush=True)
    os.kill(os.getpid(), 9)

trio.run(main)
"""


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == b"forked\n"
        process.wait()
        # The child lives on: it waits for its standard input.
        directory = Directory(tmp_path)
        (name,) = directory.batchers()
        lock = directory.try_lock(name)
        assert lock is not None
        lock.close()
        directory.close()
        process.stdin.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_unlock_what_its_parent_holds(directory: Directory) -> None:
    lock = directory.try_lock("name")
    assert lock is not None
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.fd == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert directory.try_lock("name") is None
    lock.close()


# -- files -----------------------------------------------------------------------------------------------------


def test_short_reads_and_writes_are_continued(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:7], at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real_read(fd, min(size, 5), at))
    file = directory.make("x")
    file.write(b"0123456789" * 10, 3)
    assert file.read(0, 1000) == bytes(3) + b"0123456789" * 10
    assert file.read(3, 12) == b"012345678901"
    file.close()
    file.close()


def test_a_write_that_writes_nothing_is_an_error(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    file = directory.make("x")
    with pytest.raises(OSError, match="nothing was written"):
        file.write(b"x", 0)
    file.close()


def test_large_data_is_written_in_pieces(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        sizes.append(len(data))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    file: File = directory.make("x")
    file.write(bytes(600 * 1024), 0)
    assert sizes == [256 * 1024, 256 * 1024, 88 * 1024]
    file.close()
