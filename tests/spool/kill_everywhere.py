"""Kill programs with a spool at random moments, start them again, and check that no committed span is missing.

    python -m tests.spool.kill_everywhere --kills 1000 --seed 7

A real receiver on TCP answers in this process, and fails in various ways. `agent` is killed with SIGKILL after a random
number of its lines: while it enters the batcher, adds, commits, or leaves. Three lives make a round on one directory,
which ends with lives that may end by themselves. Then

- every span that was committed is stored by the receiver, at its own location;
- nothing is stored that was not added;
- a span is stored twice only by different lives, or if a request of unknown outcome was repeated;
- nothing is left in the spool.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import attrs
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.spool.agent import LIFE_HEADER, LOCATION_HEADER, location_of
from tests.support.processes import DEADLINE, untraced_environment
from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest, Reset

LIVES = 3
# More ids than any life uses.
_IDS_OF_LIFE = 1_000_000
_LAST_SPANS = 10
_LAST_LIVES = 10


@attrs.define
class Round:
    """The lives on one directory.

    Attributes:
        committed: The first id and the last committed id of each life.
        added: The last id that each life may have added, by its first one.
        answered: How many times the receiver has stored a span and said so, by the first id of the life that sent it
            and the span's id.
        kills: How many lives were killed.
        twice: How many spans the receiver has stored more than once.
    """

    committed: list[tuple[int, int]] = attrs.Factory(list)
    added: dict[int, int] = attrs.Factory(dict)
    answered: Counter[tuple[int, int]] = attrs.Factory(Counter)
    kills: int = 0
    twice: int = 0


async def run_round(directory: Path, seed: int) -> Round:
    """Run the lives of a round, and check what the receiver has stored."""
    rng = random.Random(seed)
    done = Round()
    receiver = OTLPReceiver(location_header=LOCATION_HEADER, answers=lambda request: _answer(request, rng, done))
    with trio.fail_after(DEADLINE):
        async with receiver:
            for life in range(LIVES):
                count = rng.choice([-1, -1, rng.randint(1, 200)])
                await _live(directory, receiver.url, life * _IDS_OF_LIFE + 1, count, rng, done, is_killed=True)
            for life in range(LIVES, LIVES + _LAST_LIVES):
                await _live(directory, receiver.url, life * _IDS_OF_LIFE + 1, _LAST_SPANS, rng, done, is_killed=False)
                # A batcher leaves to the next one what it has not found when it is left.
                if not (left := [path.name for path in (directory / "trio-spanbatch").iterdir()]):
                    break
    assert not left, f"left in the spool: {left}"
    _check(receiver, done)
    return done


def _answer(request: ReceivedRequest, rng: random.Random, done: Round) -> Outcome:
    chance = rng.random()
    if chance < 0.2:
        return Answer(503)
    if chance < 0.3:
        return Reset(store=rng.random() < 0.5)
    life = int(dict(request.headers)[LIFE_HEADER])
    done.answered.update((life, _id_of(span)) for span in request.spans)
    return request.default_answer


def _id_of(span: SpanMessage) -> int:
    return int.from_bytes(span.span_id, "big")


async def _live(
    directory: Path, url: str, first: int, count: int, rng: random.Random, done: Round, *, is_killed: bool
) -> None:
    """Run a life. If it is to be killed, that is after a random number of lines, or while it leaves the batcher."""
    arguments = [sys.executable, "-m", "tests.spool.agent", str(directory), url, str(first), str(count)]
    process = await trio.lowlevel.open_process(
        [*arguments, str(rng.getrandbits(32))], stdout=subprocess.PIPE, env=untraced_environment()
    )
    lines_left = rng.choice([1, rng.randint(1, 10), rng.randint(1, 80)])
    assert process.stdout is not None
    received = b""
    try:
        while data := await process.stdout.receive_some():
            received += data
            lines_left -= data.count(b"\n")
            if is_killed and (lines_left <= 0 or b"leaving\n" in received):
                break
    finally:
        if is_killed:
            process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            # What it wrote before it was killed counts too.
            while data := await process.stdout.receive_some():
                received += data
            await process.wait()
    lines = received.decode().split("\n")[:-1]
    has_ended = process.returncode == 0
    assert has_ended or (is_killed and process.returncode == -signal.SIGKILL), f"it ended with {process.returncode}"
    done.kills += not has_ended
    numbers = {word: int(number) for word, _, number in (line.partition(" ") for line in lines) if number}
    done.added[first] = numbers.get("adding", first - 1)
    committed = done.added[first] if has_ended else numbers.get("committed", first - 1)
    done.committed.append((first, committed))


def _check(receiver: OTLPReceiver, done: Round) -> None:
    stored: Counter[int] = Counter()
    for location, spans in receiver.stored.items():
        for span in spans:
            span_id = _id_of(span)
            assert location == location_of(span_id), f"span {span_id} is stored at {location}"
            stored[span_id] += 1
    for first, last in done.committed:
        missing = [span_id for span_id in range(first, last + 1) if span_id not in stored]
        assert not missing, f"{len(missing)} of {last - first + 1} committed spans are lost: {missing[:10]}"
    added = [range(first, last + 1) for first, last in done.added.items()]
    invented = [span_id for span_id in stored if not any(span_id in ids for ids in added)]
    assert not invented, f"invented: {invented[:10]}"
    repeated = [span_id for (_, span_id), times in done.answered.items() if times > 1]
    assert not repeated, f"sent again by the life that had been told that they are stored: {repeated[:10]}"
    done.twice = sum(times > 1 for times in stored.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill programs with a spool at random moments.")
    parser.add_argument("--kills", type=int, default=1000, help="how many programs to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first round (%(default)s)")
    options = parser.parse_args(arguments)
    kills = committed = twice = 0
    for seed in itertools.count(options.seed):
        if kills >= options.kills:
            break
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = trio.run(run_round, Path(folder) / "spool", seed)
            except BaseException:
                print(f"failed: repeat it with --kills {LIVES} --seed {seed}", file=sys.stderr)
                raise
        kills += done.kills
        committed += sum(last - first + 1 for first, last in done.committed)
        twice += done.twice
        if sys.stderr.isatty() or not seed % 20:
            print(f"{kills:,} kills, {committed:,} committed spans", file=sys.stderr, flush=True)
    print(f"{kills:,} kills: {committed:,} committed spans, all delivered, {twice:,} of them more than once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
