"""Take measurements during the soak and print a row for each."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tests.soak.child import ServerProcess
from tests.soak.figures import MIB, Sample, measure
from tests.soak.oracle import ForgettingOracle
from tests.soak.program import Program

__all__ = ["Watch"]

_ROWS_PER_HEADING = 20
_HEADING = (
    "   time  memory  server  objects   blocks  tasks  sockets  locations  names  remembered  spans/s"
    "  requests  retries  faults"
)
_NOTHING = Sample(at=0.0, memory=0, server_memory=0, objects=0, blocks=0, tasks=0, sockets=0, locations=0)


class Watch:
    """The measurements of a run.

    Attributes:
        samples: The measurements under load.
        rests: The measurements at rest.
    """

    def __init__(self, oracle: ForgettingOracle, server: ServerProcess, say: Callable[[str], object]) -> None:
        self.samples: list[Sample] = []
        self.rests: list[Sample] = []
        self._oracle = oracle
        self._server = server
        self._say = say
        self._began = trio.current_time()
        self._last = _NOTHING
        self._rows = 0

    @property
    def seconds(self) -> float:
        """The duration of the run so far."""
        return trio.current_time() - self._began

    def look(self, program: Program) -> None:
        """Run the oracle's checks, and measure unless the run is coming to rest."""
        program.compare()
        self._oracle.sweep()
        if not program.is_resting:
            self.samples.append(self._measure(program, ""))

    def note_rest(self, program: Program) -> None:
        """Measure at rest."""
        self.rests.append(self._measure(program, "  at rest"))

    def _measure(self, program: Program, remark: str) -> Sample:
        counts = {
            "remembered": len(self._oracle),
            "names": program.names,
            "accepted": self._oracle.accepted,
            "requests": program.total("requests"),
            "retries": program.total("retries"),
            "faults": sum(self._server.faults.values()),
        }
        sample = measure(self.seconds, self._server.process.pid, counts)
        if self._rows % _ROWS_PER_HEADING == 0:
            self._say(_HEADING)
        self._say(_row(sample, self._last) + remark)
        self._rows += 1
        self._last = sample
        return sample


def _row(sample: Sample, last: Sample) -> str:
    minutes, seconds = divmod(int(sample.at), 60)
    rate = (sample.accepted - last.accepted) / (sample.at - last.at)
    return (
        f"{minutes:4d}:{seconds:02d}{sample.memory / MIB:8.1f}{sample.server_memory / MIB:8.1f}{sample.objects:9d}"
        f"{sample.blocks:9d}{sample.tasks:7d}{sample.sockets:9d}{sample.locations:11d}{sample.names:7d}"
        f"{sample.remembered:12d}{rate:9.0f}{sample.requests:10d}{sample.retries:9d}{sample.faults:8d}"
    )
