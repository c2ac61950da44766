"""The spool's directory, its files and its locks.

::

    DIRECTORY/trio-spanbatch/       mode 0700
        NAME.lock                   locked with flock while the batcher with this random name is open
        NAME.0.spans  NAME.1.spans  its segments
        NAME.2.dead                 rejected spans, in the same format
        NAME.damaged                what was damaged, as it was found
        NAME.0.unreadable           a segment of which nothing can be read
        NAME.tmp                    a segment that is being rewritten

A process id would not do as a name: in a container every process has the same. Whoever holds the lock of a name may
change its files. A lock that is free belongs to a process that has ended, and its files are taken over by renaming
them. A lock file is removed by its holder only, just before it is unlocked. As it may be removed between opening and
locking it, whoever has locked one compares it with what now has its name. A forked child closes the files that it has
inherited, as a lock would otherwise be held until the child ends too; it does not unlock them, since that would unlock
them for the parent.

All this blocks, and is done in the spool's thread. Files are opened relative to the directory's own descriptor, so that
nobody can lead them elsewhere by renaming a directory above.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

from .log import PIECE, RECORDS_AT
from .store import SpoolError

OWN_DIRECTORY: Final = "trio-spanbatch"
_MOUNTS: Final = Path("/proc/self/mountinfo")
# File systems of other machines, whose locks and syncs do not promise what the spool needs.
_REMOTE: Final = ("nfs", "cifs", "smb", "afs", "ceph", "glusterfs", "lustre", "fuse.ceph", "fuse.gluster", "fuse.sshfs")

_READ_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY

_OPEN: Final[WeakSet[File]] = WeakSet()


class File:
    """An open file, which is closed in forked children."""

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        _OPEN.add(self)

    def read(self, at: int, size: int) -> bytes:
        """Return up to ``size`` bytes from position ``at`` on; fewer only at the end of the file."""
        data = os.pread(self.fd, size, at)
        while len(data) < size and (more := os.pread(self.fd, size - len(data), at + len(data))):
            data += more
        return data

    def write(self, data: bytes, at: int) -> None:
        """Write all of ``data`` at position ``at``, or raise `OSError` after a part of it."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view[:PIECE], at)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written")
            view, at = view[written:], at + written

    def sync(self) -> None:
        os.fsync(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Close the file, and with it the lock on it. Closing it again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            # Linux closes the descriptor even if it reports an error.
            with suppress(OSError):
                os.close(fd)


def _after_fork_in_child() -> None:
    for file in tuple(_OPEN):
        file.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Directory:
    """Our directory inside the given one, open. Both are made if they are missing, but not what is above them.

    Raises:
        SpoolError: It cannot be used.
    """

    def __init__(self, given: Path) -> None:
        self.path: Path = given / OWN_DIRECTORY
        self._file = File(-1)
        try:
            is_new = _is_made(given)
            is_volume = check_given(given)
            is_empty = _is_made(self.path)
            # Not through a symbolic link, which may lead to another directory of the same owner.
            self._file.fd = os.open(self.path, _READ_DIRECTORY | os.O_NOFOLLOW)
            found = os.fstat(self._file.fd)
            _check(self.path, found, may_be_roots=False, may_be_groups=is_volume)
            _check_file_system(self.path, found.st_dev)
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(self._file.fd, 0o700)
            if is_empty:
                _sync(given)
            if is_new:
                with suppress(PermissionError):
                    # It may be a directory in which this user may make files, but not see which there are.
                    _sync(given.parent)
        except OSError as error:
            self.close()
            raise cannot_use(given, error) from error
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        return os.listdir(self._file.fd)  # noqa: PTH208  # pathlib has no descriptors

    def files_of(self, name: str, *kinds: str) -> list[str]:
        """Return the files of a batcher that end in one of ``kinds``, in the order in which they were made."""
        found = [file.split(".") for file in self.names() if file.startswith(f"{name}.")]
        parts = [part for part in found if len(part) == 3 and part[1].isdecimal() and part[2] in kinds]
        return [".".join(part) for part in sorted(parts, key=lambda part: int(part[1]))]

    def open(self, file: str, flags: int = os.O_RDWR) -> File:
        """Open a file; a new one gets mode 0600."""
        opened = os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._file.fd)
        return File(opened)

    def make(self, file: str) -> File:
        return self.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def unlink(self, file: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(file, dir_fd=self._file.fd)

    def rename(self, file: str, to: str) -> None:
        os.rename(file, to, src_dir_fd=self._file.fd, dst_dir_fd=self._file.fd)

    def rewrite(self, file: str, old: File, records: Iterable[tuple[int, int]], *, sync: bool) -> list[tuple[int, int]]:
        """Replace a segment by one with only the records at these positions and of these sizes.

        Returns:
            Their new positions, with their sizes.

        Raises:
            OSError: The segment is as it was.
        """
        temporary, moved, end = f"{file.partition('.')[0]}.tmp", [], RECORDS_AT
        self.unlink(temporary)
        try:
            with closing(self.make(temporary)) as new:
                new.write(old.read(0, RECORDS_AT), 0)
                for at, size in records:
                    new.write(old.read(at, size), end)
                    moved.append((end, size))
                    end += size
                if sync:
                    new.sync()
            self.rename(temporary, file)
        except OSError:
            with suppress(OSError):
                self.unlink(temporary)
            raise
        return moved

    def size_and_age(self, file: str, now: float) -> tuple[int, float]:
        """Return the size of a file, and the seconds since it was last written to."""
        found = os.stat(file, dir_fd=self._file.fd, follow_symlinks=False)
        return found.st_size, now - found.st_mtime

    def sync(self) -> None:
        """Return once the names of all files are on the disk."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def batchers(self) -> list[str]:
        """Return the names of the batchers that have files here."""
        return sorted({file.partition(".")[0] for file in self.names() if file.endswith((".lock", ".spans", ".dead"))})

    def try_lock(self, name: str) -> File | None:
        """Return the lock of a batcher, or None if another process or another batcher has it.

        Raises:
            OSError: The file system has no locks, or the disk failed.
        """
        lock = self.open(f"{name}.lock", os.O_RDWR | os.O_CREAT)
        with ExitStack() as stack, suppress(BlockingIOError, FileNotFoundError):
            stack.callback(lock.close)
            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file before this process had locked it.
            now = os.stat(f"{name}.lock", dir_fd=self._file.fd, follow_symlinks=False)
            if os.path.samestat(now, os.fstat(lock.fd)):
                stack.pop_all()
                return lock
        return None


def _is_made(directory: Path) -> bool:
    """Make a directory, and return whether it was not there."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _sync(directory: Path) -> None:
    """Return once the names in a directory are on the disk."""
    with closing(File(os.open(directory, _READ_DIRECTORY))) as opened:
        opened.sync()


def is_ours(file: File) -> bool:
    """Return whether a file belongs to this user."""
    return os.fstat(file.fd).st_uid == os.geteuid()


def cannot_use(directory: Path, error: OSError) -> SpoolError:
    """Return an error that says why a directory cannot be used."""
    not_allowed = "give a directory in which this user may make files"
    no_locks = "give a directory on a local file system, which has locks"
    remedies = {
        errno.EROFS: "mount it writable, or give another one",
        errno.EACCES: not_allowed,
        errno.EPERM: not_allowed,
        errno.ENOENT: "make the directory above it first",
        errno.ENOTDIR: f"neither it nor {OWN_DIRECTORY} in it may be a file or a symbolic link",
        errno.ENOLCK: no_locks,
        errno.EOPNOTSUPP: no_locks,
        errno.ENOSPC: "make space on that disk",
    }
    remedy = remedies.get(error.errno or 0)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return SpoolError(f"the spool cannot use {directory}: {reason}{'; ' + remedy if remedy else ''}")


def check_given(given: Path) -> bool:
    """Refuse the directory that is given if others could put files into it. Return whether it is a volume of root's."""
    # A volume of a container belongs to root, and Kubernetes lets a group write to all that is in it.
    is_volume = (found := given.stat()).st_uid == 0
    _check(given, found, may_be_roots=True, may_be_groups=is_volume)
    return is_volume


def _check(path: Path, found: os.stat_result, *, may_be_roots: bool, may_be_groups: bool) -> None:
    """Refuse a directory in which others could put files, or swap ours."""
    user = os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if found.st_uid != user and not (may_be_roots and found.st_uid == 0):
        raise SpoolError(
            f"the spool cannot use {path}: it belongs to user {found.st_uid}, and this process runs as user {user}; "
            f"run as user {found.st_uid}, or give a directory that belongs to user {user}"
        )
    if found.st_mode & (stat.S_IWOTH if may_be_groups else stat.S_IWOTH | stat.S_IWGRP):
        raise SpoolError(
            f"the spool cannot use {path}: other users may write to it (mode {stat.S_IMODE(found.st_mode):04o}), and "
            f"could add or replace spans; run chmod go-w {path}, or give a new directory inside it"
        )


def _check_file_system(path: Path, device: int) -> None:
    """Refuse a file system of another machine. Where file systems are not known, none is refused."""
    mounts = ""
    with suppress(OSError):
        mounts = _MOUNTS.read_text(errors="replace")
    for line in mounts.splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2:3] == [f"{os.major(device)}:{os.minor(device)}"] and system.startswith(_REMOTE):
            raise SpoolError(
                f"the spool cannot use {path}: it is on {system.split()[0]}, a file system of another machine; give a "
                "directory on a local one"
            )
