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
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import trio

from .. import BatchPolicy, InstrumentationScope, OTLPExporter, Resource, RetryPolicy, SpanBatcher, SpanKind, Spool
from ..tracing import ActiveSpan, Tracer

# Location, trace id and span id, the ids as hex.
Key: TypeAlias = tuple[str, str, str]

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


class RecordingTracer(Tracer):
    """A tracer of one location that remembers the spans that the batcher accepted."""

    def __init__(self, batcher: SpanBatcher, location: str) -> None:
        resource = Resource({"service.name": "demo-agent", "tenant": location})
        scope = InstrumentationScope("trio_spanbatch.demo", "1")
        super().__init__(batcher, location=location, resource=resource, scope=scope)
        self.accepted: list[Key] = []
        # How many of these were printed, as they are committed.
        self.printed = 0

    def _take(self, span: ActiveSpan) -> None:
        dropped = self.dropped
        super()._take(span)
        if self.dropped == dropped:
            self.accepted.append((self.location, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"))


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
        attributes = {"gen_ai.agent.name": "support", "question": question}
        with self.tracer.span("invoke_agent support", attributes=attributes):
            await self._think()
            async with trio.open_nursery() as nursery:
                for tool in self.chance.sample(_TOOLS, k=1 + number % 3):
                    nursery.start_soon(self._use_tool, tool)
            await self._think()

    async def _think(self) -> None:
        tokens = self.chance.randint(20, 2000)
        attributes: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": tokens}
        with self.tracer.span("chat", kind=SpanKind.CLIENT, attributes=attributes):
            await self._work()

    async def _use_tool(self, tool: str) -> None:
        with self.tracer.span(f"execute_tool {tool}", attributes={"gen_ai.tool.name": tool}):
            await self._work()
            with self.tracer.span("http request", kind=SpanKind.CLIENT, attributes={"http.request.method": "GET"}):
                await self._work()

    async def _work(self) -> None:
        await trio.sleep(self.chance.uniform(0, _LONGEST_STEP))


async def run_agents(tracers: Sequence[RecordingTracer], questions: int) -> None:
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
        tracers = [RecordingTracer(batcher, location) for location in LOCATIONS]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_agents, tracers, _ANSWERS_WITH_SPOOL)
            while nursery.child_tasks:
                await _print_committed(batcher, tracers)
                await trio.sleep(0.05)
        await _print_committed(batcher, tracers)


async def _print_committed(batcher: SpanBatcher, tracers: Sequence[RecordingTracer]) -> None:
    accepted = [(tracer, len(tracer.accepted)) for tracer in tracers]
    await batcher.sync()
    for tracer, count in accepted:
        sys.stdout.writelines(f"{' '.join(key)}\n" for key in tracer.accepted[tracer.printed : count])
        tracer.printed = count
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_run_with_spool, sys.argv[1], sys.argv[2])
