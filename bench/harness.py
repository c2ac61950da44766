"""The harness of the cases: it measures and compares figures.

A case has sides: this library, a peer, a limit. Each side is a function that prepares once and returns a function that
runs one round and returns figures by name. Each side has its own process, so that sides share no memory and caches, and
the process's CPU time belongs to the side alone. Sides take turns (A B A B ...), since the load of the machine changes
from minute to minute: figures are compared within a round, and the median of these ratios is the result. A round ends
with a check that every span arrived, and raises if one did not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeAlias

import attrs

from bench.receiver import Receiver

__all__ = [
    "Bar",
    "Case",
    "Figures",
    "Limit",
    "Plot",
    "Result",
    "Round",
    "Row",
    "Setup",
    "Spread",
    "Watch",
    "figures_of",
    "in_turns",
    "watch",
]

Figures: TypeAlias = dict[str, float]
Round: TypeAlias = Callable[[], Figures]


@attrs.frozen
class Setup:
    """The arguments of a side.

    Attributes:
        receiver: The server to send to.
        quick: Whether to look only for crashes and lost spans.
    """

    receiver: Receiver
    quick: bool

    def size(self, full: int, quick: int) -> int:
        """Return the first number, or the second one in a quick run."""
        return quick if self.quick else full


@attrs.frozen
class Limit:
    """A fixed number to compare with."""

    value: float


@attrs.frozen
class Row:
    """A line of the table: one figure of this library, and the figure to compare it with.

    Attributes:
        what: A description of the figure.
        figure: The name of the figure.
        unit: Its unit.
        beside: The figure to compare with: another side's figure of the same name, another figure of any side
            (``"side: figure"``), or a limit. `None` if it is not compared.
        goal: The maximum of the ratio; `None` for no goal.
        at_least: Whether the goal is a minimum instead.
        side: The side that measures the figure.
    """

    what: str
    figure: str
    unit: str
    beside: str | Limit | None = None
    goal: float | None = None
    at_least: bool = False
    side: str = "trio-spanbatch"


@attrs.frozen
class Bar:
    """A bar of a plot.

    Attributes:
        label: The text next to it.
        figure: The figure that it shows: ``"side: figure"``.
        is_ours: Whether it is a figure of this library.
    """

    label: str
    figure: str
    is_ours: bool = True


@attrs.frozen
class Plot:
    """A picture of some of the figures."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    is_logarithmic: bool = False


@attrs.frozen
class Case:
    """One measurement of all sides.

    Attributes:
        name: The name of its file.
        title: Its heading in the documentation.
        about: A description of the measurement, for the documentation.
        sides: The functions that prepare the sides.
        rows: The lines of its table.
        plots: Its plots.
        rounds: How many rounds count. They come after a warm-up round, unless each is fresh.
        fresh: Whether each round has new processes, because memory is measured.
    """

    name: str
    title: str
    about: str
    sides: Mapping[str, Callable[[Setup], Round]]
    rows: tuple[Row, ...]
    plots: tuple[Plot, ...] = ()
    rounds: int = 7
    fresh: bool = False


@attrs.frozen
class Spread:
    """The median of some numbers, and their range."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        """Return the median and range of ``numbers``."""
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@attrs.frozen
class Result:
    """The result for one row."""

    row: Row
    figure: Spread
    beside: Spread | None
    ratio: Spread | None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; `None` if there is none."""
        return None if self.missed_by is None else self.missed_by <= 0

    @property
    def missed_by(self) -> float | None:
        """By which fraction of the goal the ratio misses it; 0 or less if it is met, `None` if there is none."""
        if self.row.goal is None or self.ratio is None:
            return None
        too_much = self.ratio.median / self.row.goal - 1
        return -too_much if self.row.at_least else too_much

    @classmethod
    def of(cls, row: Row, rounds: Mapping[str, list[Figures]]) -> Result:
        """Return the result of ``row``, from all sides' figures round by round."""
        figures = figures_of(f"{row.side}: {row.figure}", rounds)
        if row.beside is None:
            return cls(row, Spread.of(figures), None, None)
        if isinstance(row.beside, Limit):
            beside = [row.beside.value] * len(figures)
        else:
            beside = figures_of(row.beside if ": " in row.beside else f"{row.beside}: {row.figure}", rounds)
        ratios = [figure / other for figure, other in zip(figures, beside, strict=True)]
        return cls(row, Spread.of(figures), Spread.of(beside), Spread.of(ratios))


def figures_of(name: str, rounds: Mapping[str, list[Figures]]) -> list[float]:
    """Return a figure round by round. ``name`` is ``"side: figure"``."""
    side, _, figure = name.partition(": ")
    return [figures[figure] for figures in rounds[side]]


@attrs.define
class Watch:
    """The figures of `watch`.

    Attributes:
        cpu: Seconds of CPU time of this process, all threads.
        wall: Seconds that passed.
    """

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def watch() -> Iterator[Watch]:
    """Measure the time inside the block."""
    seen = Watch()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield seen
    finally:
        seen.cpu, seen.wall = time.process_time() - cpu, time.perf_counter() - wall


def in_turns(case: Case, receiver: Receiver, *, quick: bool) -> dict[str, list[Figures]]:
    """Run the rounds of a case, side after side. Return each side's figures, round by round.

    Raises:
        RuntimeError: A side failed. Its standard error says why.
    """
    rounds: dict[str, list[Figures]] = {name: [] for name in case.sides}
    with ExitStack() as stack:
        sides: dict[str, _SideProcess] = {}
        # Processes that are new in each round need no warm-up.
        warm_ups = 0 if quick or case.fresh else 1
        for number in range(warm_ups + (1 if quick else case.rounds)):
            for name in case.sides:
                if case.fresh or name not in sides:
                    sides[name] = stack.enter_context(_running_side(case.name, name, receiver, quick))
                figures = sides[name].run_round()
                if case.fresh:
                    stack.close()
                if number >= warm_ups:
                    rounds[name].append(figures)
    return rounds


class _SideProcess:
    """A side in its own process. It runs a round for each line that it gets, and answers with a line."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    def run_round(self) -> Figures:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # The process has ended, and its output will show that. Popen would write the unread line again when it
            # closes the pipe, and that error would hide ours: close the pipe here.
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._name} failed with exit code {self._process.wait()}")
        figures: Figures = json.loads(answer)
        return figures


@contextmanager
def _running_side(case: str, side: str, receiver: Receiver, quick: bool) -> Iterator[_SideProcess]:
    command = [sys.executable, "-m", "bench.side", case, side, str(receiver.port), *(["--quick"] if quick else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _SideProcess(f"{case}: {side}", process)
        finally:
            process.kill()
