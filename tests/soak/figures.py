"""The figures of the soak, and the rule for whether they are flat.

The first part of the run is the warm-up, in which caches, pools and the statistics of ended locations fill up. The rest
is cut into halves. A figure is flat if its median in the second half is at most its median in the first half, plus a
share of it, plus a fixed allowance. The median makes the rule insensitive to an outage, the drain of a generation or a
single large batch; each half contains several generations and many restarts of the server. Less than `SHORTEST` seconds
after the warm-up, or fewer than two measurements in a half, are not judged.

Figures measured under load (`UNDER_WAY`) vary with the number of pending spans, so their allowances are wide. Between
two generations everything comes to rest: nothing is pending, all locations have ended, and only the lasting batcher is
open. Figures measured then (`AT_REST`) vary very little, and a few hundred additional objects are a leak.
"""

from __future__ import annotations

import gc
import os
import resource
import stat
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from trio_spanbatch._scheduler.location import Location

__all__ = ["AT_REST", "SHORTEST", "UNDER_WAY", "Gauge", "Sample", "Verdict", "judge", "live_locations", "measure"]

MIB = 1024 * 1024

# Seconds after the warm-up.
SHORTEST = 120.0


@attrs.frozen
class Gauge:
    """A figure that must be flat.

    Attributes:
        name: The field of a `Sample`.
        share: The share by which it may be larger in the second half.
        allowance: The amount by which it may be larger in addition.
        remark: A suffix of its label.
    """

    name: str
    share: float
    allowance: float
    remark: str = ""

    @property
    def label(self) -> str:
        return self.name + self.remark

    def most(self, first: float) -> float:
        """Return the largest median allowed in the second half."""
        return first * (1 + self.share) + self.allowance


UNDER_WAY = (
    Gauge("memory", 0.02, MIB),
    Gauge("server_memory", 0.02, MIB),
    Gauge("objects", 0.01, 1_500),
    Gauge("blocks", 0.01, 4_000),
    Gauge("tasks", 0.1, 20),
    Gauge("sockets", 0.1, 10),
    Gauge("locations", 0.1, 20),
    Gauge("remembered", 0.1, 500),
)
AT_REST = (
    Gauge("memory", 0.02, MIB, " at rest"),
    Gauge("objects", 0.0, 300, " at rest"),
    Gauge("blocks", 0.0, 1_000, " at rest"),
    Gauge("tasks", 0.0, 0, " at rest"),
    Gauge("sockets", 0.0, 2, " at rest"),
)


@attrs.frozen(kw_only=True)
class Sample:
    """The figures at one moment.

    Attributes:
        at: Seconds since the start.
        memory: Resident bytes of the process with the batchers.
        server_memory: Resident bytes of the server.
        objects: Objects that the garbage collector tracks, after a collection.
        blocks: Blocks of memory that Python has allocated.
        tasks: Trio tasks.
        sockets: Open sockets.
        locations: Live locations.
        remembered: Spans that the oracle remembers: pending ones, and ambiguous ones for a while.
        names: Names of locations so far.
        accepted: Spans accepted so far.
        requests: Exports so far.
        retries: Exports that repeated another one, so far.
        faults: Faults injected so far.
    """

    at: float
    memory: int
    server_memory: int
    objects: int
    blocks: int
    tasks: int
    sockets: int
    locations: int
    remembered: int = 0
    names: int = 0
    accepted: int = 0
    requests: int = 0
    retries: int = 0
    faults: int = 0


@attrs.frozen
class Verdict:
    """Whether a figure is flat.

    Attributes:
        gauge: The figure.
        first: Its median in the first half after the warm-up.
        second: Its median in the second half.
    """

    gauge: Gauge
    first: float
    second: float

    @property
    def is_flat(self) -> bool:
        return self.second <= self.gauge.most(self.first)


def judge(samples: Sequence[Sample], warm_up: float, gauges: Sequence[Gauge]) -> list[Verdict]:
    """Return a verdict for each gauge; none if there are too few samples after ``warm_up``."""
    judged = [sample for sample in samples if sample.at >= warm_up]
    if not judged or judged[-1].at - warm_up < SHORTEST:
        return []
    middle = (warm_up + judged[-1].at) / 2
    first = [sample for sample in judged if sample.at < middle]
    second = [sample for sample in judged if sample.at >= middle]
    if min(len(first), len(second)) < 2:
        return []
    return [Verdict(gauge, _median(first, gauge.name), _median(second, gauge.name)) for gauge in gauges]


def measure(at: float, server: int, counts: Mapping[str, int]) -> Sample:
    """Measure this process and the one with the id ``server``; ``counts`` are the other fields."""
    gc.collect()
    return Sample(
        at=at,
        memory=resident_bytes(os.getpid()),
        server_memory=resident_bytes(server),
        objects=len(gc.get_objects()),
        blocks=sys.getallocatedblocks(),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        sockets=open_sockets(),
        locations=live_locations(),
        **counts,
    )


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process."""
    statm = Path(f"/proc/{process}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(answer.stdout) * 1024


def open_sockets() -> int:
    """Return the number of this process's open sockets."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        # The descriptor of the directory listing itself is closed by now.
        with suppress(OSError):
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
    return count


def live_locations() -> int:
    """Return the number of live locations, over all batchers."""
    return sum(type(it) is Location and not it.has_ended for it in gc.get_objects())


def _median(samples: Sequence[Sample], name: str) -> float:
    return float(statistics.median(getattr(sample, name) for sample in samples))
