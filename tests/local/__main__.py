"""Kill a process that writes with `JSONFileExporter`, again and again, and check that no delivered line was lost.

    python -m tests.local --kills 100

Each process appends to the same files, and reports each batch that was delivered. It is killed with SIGKILL while it
writes. Afterwards every reported batch must be in the files, and every line must be complete, but for the last one,
which the next process cuts off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from tests.support.processes import untraced_environment
from trio_spanbatch import Delivered, JSONFileExporter, Span, SpanBatch, SpanContext
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["kill_writers"]

# Large lines, so that many kills hit a write.
LARGEST = 3_000_000
MAX_BYTES = 20_000_000


async def write(path: Path, name: str) -> None:
    """Write batches forever, and report each that was delivered."""
    rng = random.Random(name)
    exporter = JSONFileExporter(path, max_bytes=MAX_BYTES, keep=10_000)
    encode = SpanEncoder().encode
    for number in itertools.count(1):
        attributes = {"pad": "x" * rng.randrange(LARGEST)}
        span = Span(f"{name} {number}", SpanContext(1, number), start_time=1, end_time=2, attributes=attributes)
        assert await exporter.export(SpanBatch("here", [encode(span)])) == Delivered()
        os.write(1, f"{name} {number}\n".encode())


def kill_one(path: Path, name: str, batches: int, *, in_write: bool) -> list[str]:
    """Run a writer, kill it once it has reported ``batches`` batches, and return all that it has reported.

    With ``in_write`` it is killed when the file changes next: usually while it writes a line.
    """
    command = [sys.executable, "-m", "tests.local", "--write", name, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=untraced_environment()) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline().decode().strip() for _ in range(batches)]
        size = size_of(path)
        while in_write and process.poll() is None and size_of(path) == size:
            pass
        process.kill()
        rest = process.stdout.read().decode()
    return reported + rest.splitlines()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        # The writer is about to begin a new file.
        return 0


def names_in(path: Path, *, may_be_torn: bool) -> tuple[list[str], bool]:
    """Return the names of the spans in a file, and whether its last line is incomplete."""
    *lines, rest = path.read_bytes().split(b"\n")
    assert may_be_torn or not rest, f"{path.name} ends with an incomplete line"
    found = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for line in lines]
    return found, bool(rest)


def kill_writers(kills: int, seed: int) -> str:
    """Kill that many writers. Return a summary."""
    rng = random.Random(seed)
    torn, reported, stored = 0, set[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spans.jsonl")
        for kill in range(kills):
            reported.update(kill_one(path, f"writer {kill}", rng.randrange(1, 6), in_write=rng.random() < 0.7))
            if path.exists():
                torn += names_in(path, may_be_torn=True)[1]
            for full in Path(folder).glob("spans.jsonl.*"):
                # Checked once, and removed, as they are large.
                stored += names_in(full, may_be_torn=False)[0]
                full.unlink()
        trio.run(JSONFileExporter(path).aclose)
        stored += names_in(path, may_be_torn=False)[0]
    assert len(stored) == len(set(stored)), "a line was written twice"
    assert reported <= set(stored), f"lost: {sorted(reported - set(stored))}"
    return (
        f"{kills} kills: {len(reported)} batches reported as delivered, all of them found; "
        f"{len(stored) - len(reported)} more found; {torn} incomplete lines cut off (seed {seed})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--write", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("path", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        trio.run(write, arguments.path, arguments.write)
    print(kill_writers(arguments.kills, arguments.seed))


if __name__ == "__main__":
    main()
