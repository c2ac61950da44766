"""The second act of ``trio-spanbatch demo``: kill an agent program with a spool half-way, and start it again.

Its spans are sent to a receiver that stores them in SQLite, and answers 503 for one location until the program has been
killed: these spans are on the program's disk only. At the end, the ids that the program has printed as committed are
compared with those in the store.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

import attrs
import trio

from ..testing import OTLPReceiver
from .agent import LOCATION_HEADER, LOCATIONS, PLANNED_WITH_SPOOL, Key
from .demo import FAILING, FailingServer
from .receive import Collector
from .screen import FAILS, Screen
from .signals import Interrupt
from .store import SpanStore

# A program leaves to the next one what it has not found in the spool by its end.
_MAX_LIVES = 5


@attrs.frozen(kw_only=True)
class KillResult:
    """The outcome of the committed spans."""

    committed: Sequence[Key]  # location, trace id and span id of each span that the programs have said to be committed
    stored: Sequence[Key]  # those of each row in the store
    failure: str = ""  # why there is no result
    interrupted: int = 0  # 128 plus the number of the signal that ended the demo, 0 if there was none

    @property
    def verdict(self) -> str:
        """The result of the comparison, in a sentence."""
        missing = len(set(self.committed) - set(self.stored))
        if self.interrupted or self.failure:
            return self.failure or "interrupted"
        if missing or len(self.stored) != len(set(self.stored)):
            return (
                f"committed spans were LOST or duplicated: {missing:,} of {len(self.committed):,} are not in the store"
            )
        return f"nothing was lost: all {len(self.committed):,} committed spans are in the store, one row each"

    @property
    def holds(self) -> bool:
        """Whether each committed span is stored exactly once."""
        return self.verdict.startswith("nothing was lost")

    @property
    def exit_code(self) -> int:
        """0 if nothing was lost or duplicated, else 1 or ``interrupted``."""
        return self.interrupted or int(not self.holds)


async def kill_and_restart(path: Path, screen: Screen) -> KillResult:
    """Run the program with the store in ``path``, kill it when half of its spans are committed, and start it again."""
    committed: list[Key] = []
    failure = ""
    interrupt = Interrupt()
    with closing(SpanStore(path)) as store, tempfile.TemporaryDirectory(prefix="trio-spanbatch-") as spool:
        before = set(store.keys())
        server = FailingServer(Collector(store, screen.warn), is_failing=True)

        def stored() -> list[Key]:
            return [key for key in store.keys() if key not in before]  # noqa: SIM118  # it is no dict

        async with OTLPReceiver(location_header=LOCATION_HEADER, answers=server.answer, keep=False) as receiver:
            with interrupt.on(signal.SIGINT, signal.SIGTERM), interrupt.scope:
                screen.say(f"the server answers 503 for {FAILING}", FAILS)
                ended = await _run(receiver.url, spool, committed, enough=PLANNED_WITH_SPOOL // 2)
                at_kill = [*committed], stored()
                if ended == -signal.SIGKILL:
                    screen.say(f"killed with SIGKILL: {_counts(*at_kill)}")
                    screen.say("starting it again; the server accepts all spans")
                else:
                    failure = f"the agent program ended with {ended} before it was killed"
                server.is_failing = False
                for _ in range(_MAX_LIVES):
                    if failure or not any(Path(spool).rglob("*.spans")):  # noqa: ASYNC240  # nobody waits
                        break
                    ended = await _run(receiver.url, spool, committed, enough=math.inf)
                    if ended:
                        failure = f"the agent program ended with {ended} when it was started again"
                if not failure:
                    screen.say(f"it has ended: {_counts(committed, stored())}")
                    _show(at_kill, (committed, stored()), screen)
        return KillResult(committed=committed, stored=stored(), failure=failure, interrupted=interrupt.exit_code)


async def _run(url: str, spool: str, committed: list[Key], *, enough: float) -> int:
    """Run the program until it ends, or kill it when it has committed ``enough`` spans. Return how it ended."""
    # In a session of its own, so that a Ctrl-C is for this process only.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"{__package__}.agent", url, spool], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    printed = b""
    try:
        # What it has printed before it was killed is read to the end.
        async for data in process.stdout:
            printed += data
            if printed.count(b"\n") >= enough:
                process.kill()
        ended = await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    for line in printed.decode().split("\n")[:-1]:
        location, trace_id, span_id = line.split()
        committed.append((location, trace_id, span_id))
    return ended


def _counts(committed: Sequence[Key], stored: Collection[Key]) -> str:
    return f"{len(committed):,} spans are committed, {len(set(committed) & set(stored)):,} of them are in the store"


def _show(
    at_kill: tuple[Sequence[Key], Collection[Key]], in_the_end: tuple[Sequence[Key], Collection[Key]], screen: Screen
) -> None:
    """Print a table of the committed spans, by location, and how many of them are stored."""
    rows = []
    for location in LOCATIONS:
        row = [location]
        for committed, stored in (at_kill, in_the_end):
            keys = {key for key in committed if key[0] == location}
            row += [f"{len(keys):,}", f"{len(keys & set(stored)):,}"]
        rows.append(row)
    screen.say("")
    columns = ["location", "committed when killed", "stored when killed", "committed in all", "stored in all"]
    screen.table(columns, rows, failing=FAILING)
    more = len(set(in_the_end[1]) - set(in_the_end[0]))
    if more:
        screen.say(f"and {more:,} more, which the program had no time to print before it was killed")
