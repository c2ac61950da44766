"""An outage: the CPU time that the event loop takes while an endpoint is down, by number of locations.

It runs on trio's mock clock, which jumps to the next time at which a task has something to do. So the CPU time of the
process, divided by the simulated seconds, is the load of a program that does nothing else.
"""

from __future__ import annotations

import logging
import random
from functools import partial

import attrs
import trio
from opentelemetry.sdk.trace import ReadableSpan
from trio.testing import MockClock

from bench.harness import Case, Figures, Limit, Round, Row, Setup, watch
from bench.ids import check_ids, ids_of_batch
from bench.spans import frozen_agent_spans
from trio_spanbatch import Delivered, ExportResult, Limits, SpanBatch, SpanBatcher, TryLater

__all__ = ["CASE"]

_COUNTS = (100, 1_000, 10_000)
_PER_SECOND = 50  # spans that are added, after the first ones
_FULL_LOCATION = "main.agents.spans"


class _Server:
    """A `SpanExporter` that cannot connect while it is down, and accepts every batch afterwards."""

    def __init__(self) -> None:
        self.is_down = True
        self.ids: list[int] = []

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.sleep(0.01)
        if self.is_down:
            return TryLater("cannot connect: Connection refused", endpoint=True)
        self.ids += ids_of_batch(batch)
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Program:
    """Adds spans in turn to some locations.

    Attributes:
        added: How many spans were accepted.
    """

    def __init__(self, batcher: SpanBatcher, spans: list[ReadableSpan], locations: int) -> None:
        self.added = 0
        self._batcher = batcher
        self._spans = spans
        self._locations = [f"main.agents.spans_{number}" for number in range(locations)]

    def add(self, most: int, location: str | None = None) -> None:
        """Add up to ``most`` spans, as long as there is space."""
        for _ in range(most):
            place = location or self._locations[self.added % len(self._locations)]
            try:
                self._batcher.add_span_nowait(place, self._spans[self.added])
            except trio.WouldBlock:
                return
            self.added += 1

    async def add_for(self, seconds: int) -> None:
        """Try to add `_PER_SECOND` spans a second."""
        for _ in range(seconds * _PER_SECOND):
            await trio.sleep(1 / _PER_SECOND)
            self.add(1)


@attrs.frozen
class _Plan:
    """What one measurement has.

    Attributes:
        pending: The number of spans that are added first.
        seconds: How long the load is measured.
        bytes: The byte budget of all locations if it is to be used up: enough for a span of each.
        is_full: Whether it is.
        waits: Whether an adder waits for it, or, if it is not used up, for space in one location that is full.
    """

    pending: int
    seconds: int
    bytes: int
    is_full: bool
    waits: bool

    def limits(self, locations: int) -> Limits:
        budget = self.bytes if self.is_full else 1 << 40
        return Limits(
            max_pending_bytes=budget, max_pending_bytes_per_location=self.bytes // 8, max_locations=locations + 1
        )


def _prepared(setup: Setup, *, is_full: bool = False, waits: bool = False) -> Round:
    plan = _Plan(setup.size(20_000, 2_000), setup.size(180, 10), setup.size(8 << 20, 1 << 20), is_full, waits)
    spans = frozen_agent_spans(plan.pending * 2 + (60 + plan.seconds) * _PER_SECOND)

    def run_round() -> Figures:
        return {
            _name(count): trio.run(
                _load, spans, setup.size(count, count // 10), plan, clock=MockClock(autojump_threshold=0)
            )
            for count in _COUNTS
        }

    return run_round


async def _load(spans: list[ReadableSpan], locations: int, plan: _Plan) -> float:
    """Return the load in percent of a core, after the first minute of an outage."""
    logger = logging.getLogger("bench.outage")
    logger.disabled = True  # the outage is logged, as expected
    server = _Server()
    limits = plan.limits(locations)
    async with SpanBatcher(server, limits=limits, rng=random.Random(7), logger=logger) as batcher:
        program = _Program(batcher, spans, locations)
        if plan.waits and not plan.is_full:
            program.add(plan.pending, _FULL_LOCATION)
        program.add(plan.pending)
        async with trio.open_nursery() as nursery:
            if plan.waits:
                nursery.start_soon(batcher.add_span, _FULL_LOCATION, spans[-1])
            await program.add_for(60)
            with watch() as seen:
                await program.add_for(plan.seconds)
            nursery.cancel_scope.cancel()
        server.is_down = False
        await batcher.flush()
    check_ids(server.ids, program.added)
    return seen.cpu / plan.seconds * 100


def _name(count: int) -> str:
    return f"{count:,} locations"


def _rows(side: str, what: str) -> tuple[Row, ...]:
    first, *others = map(_name, _COUNTS)
    return (
        *(Row(f"{what}, {name}: CPU", name, "%", f"{side}: {first}", goal=1.5, side=side) for name in others),
        Row(f"{what}, {_name(_COUNTS[-1])}: CPU, of a core", _name(_COUNTS[-1]), "%", Limit(3), goal=1.0, side=side),
    )


_SIDE = "trio-spanbatch"

CASE = Case(
    name="outage",
    title="An outage",
    about=(
        "20,000 spans are pending for 100, 1,000 or 10,000 locations, and 50 spans per second are added, while the "
        "endpoint refuses connections. The figures are the CPU time of the process, in percent of a core, over three "
        "minutes after the first one, on trio's mock clock. An adder waits for space in a full location, or, if the "
        "byte budget is used up, for bytes; spans that do not fit are encoded and refused. The comparison is the same "
        "with 100 locations, or a limit. Then the endpoint is up again, and everything is delivered."
    ),
    sides={
        _SIDE: _prepared,
        "an adder waits": partial(_prepared, waits=True),
        "full budget": partial(_prepared, is_full=True),
        "full budget, an adder waits": partial(_prepared, is_full=True, waits=True),
    },
    rows=(
        *_rows(_SIDE, "Space for all spans"),
        *_rows("an adder waits", "An adder waits for its location"),
        *_rows("full budget", "The byte budget is used up"),
        *_rows("full budget, an adder waits", "The byte budget is used up and an adder waits"),
    ),
)
