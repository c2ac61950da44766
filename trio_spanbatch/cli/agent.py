"""A small agent program: several tenants' agents run at once and record a span for each step.

It shows how a program uses a `SpanBatcher`. Its spans follow OpenTelemetry's conventions for generative AI. The program
itself does not deal with batches, retries or shutdown.

``python -m trio_spanbatch.cli.agent URL DIRECTORY`` runs it with a spool. It prints the location and the ids of each
span that is committed.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from .. import (
    BatchPolicy,
    InstrumentationScope,
    OTLPExporter,
    Resource,
    RetryPolicy,
    Span,
    SpanBatcher,
    SpanContext,
    SpanEvent,
    Spool,
    Status,
)
from .._spans.records import SpanKind, StatusCode

_SCOPE = InstrumentationScope("trio_spanbatch.demo", "1")
_TOOLS = ("search_documents", "query_database", "send_mail", "read_calendar")
_QUESTIONS = ("Where is my parcel?", "¿Cuándo llega mi pedido?", "注文はいつ届きますか?", "Wann kommt mein Paket?")

LOCATION_HEADER = "X-Databricks-UC-Table-Name"
LOCATIONS = ("main.support.agent_spans", "main.sales.agent_spans", "main.finance.agent_spans", "main.ops.agent_spans")
BATCH = BatchPolicy(max_spans=128, max_delay=0.5)
RETRY = RetryPolicy(initial=0.2, maximum=1.0)

_AGENTS_PER_LOCATION = 6
# How many questions each agent of the program with a spool answers.
_ANSWERS_WITH_SPOOL = 12

# The number of spans in three consecutive answers.
SPANS_OF_THREE_ANSWERS = 5 + 7 + 9

# The longest duration of a step, in seconds.
_LONGEST_STEP = 0.12


def planned_spans(questions: int) -> int:
    """Return how many spans all agents record if each answers that many questions, a multiple of three."""
    return len(LOCATIONS) * _AGENTS_PER_LOCATION * questions // 3 * SPANS_OF_THREE_ANSWERS


PLANNED_WITH_SPOOL = planned_spans(_ANSWERS_WITH_SPOOL)


@attrs.define
class Tracer:
    """Records spans and adds them to a batcher when they end."""

    batcher: SpanBatcher
    location: str
    ids: random.Random
    accepted: list[tuple[int, int]] = attrs.Factory(list)  # the trace id and span id of every accepted span
    not_accepted: int = 0  # the number of spans that were not accepted because the queue was full
    printed: int = 0  # how many of the accepted spans were printed, as they are committed
    _resource: Resource = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._resource = Resource({"service.name": "demo-agent", "tenant": self.location})

    @contextmanager
    def span(
        self, name: str, parent: SpanContext | None = None, kind: SpanKind = SpanKind.INTERNAL, **attributes: Any
    ) -> Iterator[SpanContext]:
        """Record a span around the body. The span also ends if the body raises or is cancelled."""
        trace_id = parent.trace_id if parent is not None else self.ids.getrandbits(128) or 1
        context = SpanContext(trace_id, self.ids.getrandbits(64) or 1)
        started = time.time_ns()
        status, events = Status(StatusCode.OK), []
        try:
            yield context
        except BaseException as error:
            status = Status(StatusCode.ERROR, type(error).__name__)
            events.append(SpanEvent("exception", time.time_ns(), {"exception.type": type(error).__name__}))
            raise
        finally:
            self._add(
                Span(
                    name,
                    context,
                    start_time=started,
                    end_time=time.time_ns(),
                    kind=kind,
                    parent=parent,
                    attributes={key.replace("__", "."): value for key, value in attributes.items()},
                    events=events,
                    status=status,
                    resource=self._resource,
                    instrumentation_scope=_SCOPE,
                )
            )

    def _add(self, span: Span) -> None:
        # Synchronous, so that it works during a cancellation too.
        try:
            self.batcher.add_span_nowait(self.location, span)
        except trio.WouldBlock:
            self.not_accepted += 1
        else:
            self.accepted.append((span.context.trace_id, span.context.span_id))


@attrs.frozen
class Agent:
    """Answers questions one after the other, with 5, 7 or 9 spans each."""

    tracer: Tracer  # records its spans
    chance: random.Random  # selects questions, tools and durations

    async def run(self, questions: int) -> None:
        for number in range(questions):
            await self._answer(number)

    async def _answer(self, number: int) -> None:
        question = self.chance.choice(_QUESTIONS)
        with self.tracer.span("invoke_agent support", gen_ai__agent__name="support", question=question) as root:
            await self._think(root)
            async with trio.open_nursery() as nursery:
                for tool in self.chance.sample(_TOOLS, k=1 + number % 3):
                    nursery.start_soon(self._use_tool, root, tool)
            await self._think(root)

    async def _think(self, parent: SpanContext) -> None:
        tokens = self.chance.randint(20, 2000)
        with self.tracer.span(
            "chat", parent, SpanKind.CLIENT, gen_ai__operation__name="chat", gen_ai__usage__output_tokens=tokens
        ):
            await self._work()

    async def _use_tool(self, parent: SpanContext, tool: str) -> None:
        with self.tracer.span(f"execute_tool {tool}", parent, gen_ai__tool__name=tool) as span:
            await self._work()
            with self.tracer.span("http request", span, SpanKind.CLIENT, http__request__method="GET"):
                await self._work()

    async def _work(self) -> None:
        await trio.sleep(self.chance.uniform(0, _LONGEST_STEP))


async def run_agents(tracers: Sequence[Tracer], questions: int) -> None:
    """Run all agents of all locations."""
    async with trio.open_nursery() as nursery:
        for number, tracer in enumerate(tracers):
            for agent in range(_AGENTS_PER_LOCATION):
                chance = random.Random(number * _AGENTS_PER_LOCATION + agent)
                nursery.start_soon(Agent(tracer, chance).run, questions)


async def _run_with_spool(url: str, directory: str) -> None:
    exporter = OTLPExporter(url, location_header=LOCATION_HEADER)
    spool = Spool(directory, commit_interval=0.05)
    # However slow the server is: it is that of the demo.
    batcher = SpanBatcher(
        exporter, spool=spool, batch=BATCH, retry=RETRY, shutdown_timeout=math.inf, log_level=logging.INFO
    )
    async with batcher:
        tracers = [Tracer(batcher, location, random.Random()) for location in LOCATIONS]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_print_committed, batcher, tracers)
            await run_agents(tracers, _ANSWERS_WITH_SPOOL)
            nursery.cancel_scope.cancel()
        await _print_committed(batcher, tracers, once=True)


async def _print_committed(batcher: SpanBatcher, tracers: Sequence[Tracer], *, once: bool = False) -> None:
    while True:
        accepted = [(tracer, len(tracer.accepted)) for tracer in tracers]
        await batcher.sync()
        for tracer, count in accepted:
            for trace_id, span_id in tracer.accepted[tracer.printed : count]:
                sys.stdout.write(f"{tracer.location} {trace_id:032x} {span_id:016x}\n")
            tracer.printed = count
        sys.stdout.flush()
        if once:
            return
        await trio.sleep(0.05)


if __name__ == "__main__":
    trio.run(_run_with_spool, sys.argv[1], sys.argv[2])
