"""What the soak measures, and when that is called flat.

The rule: the first part of the run is the warm-up, in which caches, pools and the statistics of ended locations fill
up. What is left is cut into two halves, and a figure is flat if its median in the second half is at most its median in
the first half, plus a share of it, plus a fixed allowance. A median, so that an outage, the drain of a generation or a
single large batch says nothing; halves, so that each holds several generations and many restarts of the server. Less
than `SHORTEST` seconds after the warm-up, or less than two measurements in a half, are not judged.

What is measured under way (`UNDER_WAY`) moves with what is pending at the moment, so the allowances are wide. Between
two generations everything comes to rest: nothing is pending, all lanes have ended, only the lasting batcher lives. What
is measured then (`AT_REST`) moves very little, and a few hundred objects more are a leak.
"""

from __future__ import annotations

import gc
import os
import resource
import stat
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

__all__ = ["AT_REST", "SHORTEST", "UNDER_WAY", "Gauge", "Sample", "Verdict", "judge", "lanes_alive", "measure"]

MIB = 1024 * 1024

# Seconds after the warm-up.
SHORTEST = 120.0


@attrs.frozen
class Gauge:
    """A figure that has to be flat.

    Attributes:
        name: The field of a `Sample`.
        share: By which share of it it may be larger in the second half.
        allowance: And by how much besides.
        remark: When it is measured, for its label.
    """

    name: str
    share: float
    allowance: float
    remark: str = ""

    @property
    def label(self) -> str:
        return self.name + self.remark

    def most(self, first: float) -> float:
        """Return how large the second half's median may be."""
        return first * (1 + self.share) + self.allowance


UNDER_WAY = (
    Gauge("memory", 0.02, MIB),
    Gauge("server_memory", 0.02, MIB),
    Gauge("objects", 0.01, 1_500),
    Gauge("blocks", 0.01, 4_000),
    Gauge("tasks", 0.1, 20),
    Gauge("sockets", 0.1, 10),
    Gauge("lanes", 0.1, 20),
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
        objects: Objects that the garbage collector knows of, after a collection.
        blocks: Blocks of memory that Python has allocated.
        tasks: Trio's tasks.
        sockets: Sockets that are open.
        lanes: Live locations.
        remembered: Spans that the oracle remembers: those that are pending, and doubtful ones for a while.
        names: Names of locations so far.
        accepted: Spans accepted so far.
        requests: Exports so far.
        retries: Exports that repeated one, so far.
        faults: Faults injected so far.
    """

    at: float
    memory: int
    server_memory: int
    objects: int
    blocks: int
    tasks: int
    sockets: int
    lanes: int
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
    """Return a verdict for each gauge; none if there is too little after ``warm_up``."""
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
        lanes=lanes_alive(),
        **counts,
    )


def resident_bytes(process: int) -> int:
    """Return how much memory a process has."""
    statm = Path(f"/proc/{process}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(answer.stdout) * 1024


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        # The descriptor of the listing itself is gone by now.
        with suppress(OSError):
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
    return count


def lanes_alive() -> int:
    """Return how many tasks of this run are lanes."""
    return sum(task.name.startswith("trio_spanbatch lane") for task in _tasks())


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        yield task
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def _median(samples: Sequence[Sample], name: str) -> float:
    return float(statistics.median(getattr(sample, name) for sample in samples))
