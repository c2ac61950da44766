"""Processes that share a spool, die at random moments, and fork.

    python -m tests.spool.lives --lives 1000 --at-once 8 --seed 1

Each life opens the store, takes over what it finds, commits, settles, and either closes the store or is killed with
SIGKILL at a random moment. Some fork a child that lives on. Before and after each step a line is appended to a journal
that all share. In the end the journal is compared with what is left in the spool.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from tests.spool.support import ENDPOINT
from trio_spanbatch import EncodedSpan, Spool
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.store import NewRecord

# Small, so that segments are rotated, rewritten and full.
SPOOL_BYTES = 60_000
# Seconds of a life at most. Nothing waits for them: they are when the killer strikes.
LONGEST = 0.15
KILLED = 0.8

Journal = Callable[[str, list[str]], None]


def journal_of(path: Path) -> Journal:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(event: str, ids: list[str]) -> None:
        line = f"{os.getpid()} {event} {' '.join(ids)}\n".encode()
        assert os.write(fd, line) == len(line)

    return write


def kill_this_process(journal: Journal) -> None:
    journal("killed", [])
    os.kill(os.getpid(), signal.SIGKILL)


def ids_of(spans: object) -> list[str]:
    return [span.payload.partition(b" ")[0].decode() for span in spans]  # type: ignore[attr-defined]  # EncodedSpans


class Life:
    """One process.

    Args:
        directory: The spool's directory.
        journal: The journal.
        chance: Its decisions.
        end: A descriptor that can be read at the end of all lives.
    """

    def __init__(self, directory: Path, journal: Journal, chance: random.Random, end: int) -> None:
        self.store = DiskStore(Spool(directory, max_bytes=SPOOL_BYTES), ENDPOINT)
        self.journal = journal
        self.chance = chance
        self.end = end
        self.held: dict[int, list[str]] = {}

    async def run(self) -> None:
        if self.chance.random() < KILLED:
            killer = threading.Timer(self.chance.uniform(0, LONGEST), kill_this_process, [self.journal])
            killer.daemon = True
            killer.start()
        await self.store.open()
        async for piece in self.store.adopted():
            for record in piece:
                self.held[record.token] = ids_of(await self.store.read(record.token))
                self.journal("adopted", self.held[record.token])
            await self.settle(0.5)
        for _ in range(self.chance.randrange(120)):
            await self.commit()
            await self.settle(0.3)
            if self.chance.random() < 0.02:
                self.fork()
        self.journal("closing", [])
        await self.store.close()

    async def commit(self) -> None:
        pid = os.getpid()
        new: list[NewRecord] = []
        for number in range(self.chance.randint(1, 4)):
            ids = [f"{pid}-{secrets.token_hex(6)}" for _ in range(self.chance.randint(1, 5))]
            spans = [EncodedSpan(f"{name} ".encode() + bytes(self.chance.randrange(300))) for name in ids]
            new.append(NewRecord(f"location {number}", spans, 100, 1.0))
        self.journal("trying", [name for record in new for name in ids_of(record.spans)])
        try:
            committed = await self.store.commit(new)
        except OSError:
            return
        for record, written in zip(committed, new, strict=True):
            self.held[record.token] = ids_of(written.spans)
            self.journal("committed", self.held[record.token])

    async def settle(self, probability: float) -> None:
        tokens = [token for token in self.held if self.chance.random() < probability]
        ids = [name for token in tokens for name in self.held.pop(token)]
        self.journal("settling", ids)
        await self.store.settle(tokens)
        self.journal("settled", ids)

    def fork(self) -> None:
        if os.fork() == 0:
            os.read(self.end, 1)
            os._exit(0)


def fork_life(directory: Path, journal: Journal, seed: int, ends: tuple[int, int]) -> None:
    if os.fork() == 0:
        code = 1
        try:
            os.close(ends[1])
            trio.run(Life(directory, journal, random.Random(seed), ends[0]).run)
            code = 0
        except BaseException:  # noqa: ASYNC103  # the process ends, with an exit code that says so
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)


def check(lines: list[str], left: set[str]) -> dict[str, int]:
    """Compare the journal with what is left, and return how often each event was written."""
    counts: dict[str, int] = {}
    owner: dict[str, str] = {}
    tried, committed, settling, settled, ended = (set[str]() for _ in range(5))
    for line in lines:
        pid, event, *ids = line.split()
        counts[event] = counts.get(event, 0) + 1
        if event in ("killed", "closing"):
            ended.add(pid)
        elif event == "adopted":
            for name in ids:
                assert name in tried, f"{name} was invented"
                assert name not in settled, f"{name} was settled"
                assert owner.get(name, name.partition("-")[0]) in ended, f"{name} was taken from a live process"
                owner[name] = pid
        else:
            {"trying": tried, "committed": committed, "settling": settling, "settled": settled}[event].update(ids)
    assert left <= tried, "something was invented"
    assert not left & settled, "something settled is left"
    lost = committed - settling - left
    assert not lost, f"{len(lost)} of {len(committed)} committed spans are lost"
    return counts


async def what_is_left(directory: Path) -> set[str]:
    store = DiskStore(Spool(directory), ENDPOINT, tell=print)
    await store.open()
    records = [record async for piece in store.adopted() for record in piece]
    left = [name for record in records for name in ids_of(await store.read(record.token))]
    assert len(left) == len(set(left)), "something is there twice"
    statistics = store.statistics()
    assert (statistics.damaged, statistics.set_aside) == (0, 0)
    await store.close()
    return set(left)


def main(lives: int, at_once: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "spool"
        journal = journal_of(Path(folder) / "journal")
        ends = os.pipe()
        running = 0
        for number in range(lives):
            fork_life(directory, journal, seed * 1_000_003 + number, ends)
            running += 1
            if running == at_once:
                reap()
                running -= 1
        for _ in range(running):
            reap()
        left = trio.run(what_is_left, directory)
        counts = check((Path(folder) / "journal").read_text().splitlines(), left)
        os.close(ends[1])
        print(f"{lives} lives, seed {seed}: {counts}, {len(left)} spans left")
        assert min(counts[event] for event in ("killed", "closing", "adopted", "committed", "settled")) > 0


def reap() -> None:
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), "a life failed"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=secrets.randbits(20))
    main(**vars(parser.parse_args()))
