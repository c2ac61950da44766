"""A small agent program: several tenants' agents run at once and record a span for each step.

It shows how a program uses a `SpanBatcher`. Its spans follow OpenTelemetry's conventions for generative AI. The program
itself does not deal with batches, retries or shutdown.
"""

from __future__ import annotations

import random
from typing import Any

import attrs
import trio

from .. import InstrumentationScope, Resource, SpanBatcher, SpanKind
from ..tracing import ActiveSpan, Tracer

_TOOLS = ("search_documents", "query_database", "send_mail", "read_calendar")
_QUESTIONS = ("Where is my parcel?", "¿Cuándo llega mi pedido?", "注文はいつ届きますか?", "Wann kommt mein Paket?")

# The number of spans in three consecutive answers.
SPANS_OF_THREE_ANSWERS = 5 + 7 + 9

# The longest duration of a step, in seconds.
_LONGEST_STEP = 0.12


class RecordingTracer(Tracer):
    """A tracer of one location that remembers the ids of the spans that the batcher accepted."""

    def __init__(self, batcher: SpanBatcher, location: str) -> None:
        resource = Resource({"service.name": "demo-agent", "tenant": location})
        scope = InstrumentationScope("trio_spanbatch.demo", "1")
        super().__init__(batcher, location=location, resource=resource, scope=scope)
        self.accepted: list[tuple[int, int]] = []

    def _take(self, span: ActiveSpan) -> None:
        dropped = self.dropped
        super()._take(span)
        if self.dropped == dropped:
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
