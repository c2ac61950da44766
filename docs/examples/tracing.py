"""An agent that makes spans without OpenTelemetry: one tool is cancelled, another one fails."""

import trio

from trio_spanbatch import SpanBatcher, SpanKind
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import Tracer, current_span

exporter = InMemoryExporter()
batcher = SpanBatcher(exporter)
tracer = Tracer(batcher)


@tracer.traced("execute_tool weather", arguments=["city"])
async def look_up_weather(city: str) -> str:
    """Look up the weather, slowly."""
    if city == "Atlantis":
        await trio.sleep_forever()
    if city == "Avalon":
        raise LookupError("no such city")
    return "sunny"


async def agent(tenant: str, city: str) -> None:
    """Answer a question for a tenant."""
    with tracer.span("invoke_agent", location=tenant):
        with tracer.span("chat", kind=SpanKind.CLIENT, attributes={"gen_ai.request.model": "small"}) as span:
            await trio.lowlevel.checkpoint()
            span.set_attribute("gen_ai.usage.output_tokens", 12)
        try:
            with trio.move_on_after(0.01):
                await look_up_weather(city)
        except LookupError:
            if (current := current_span()) is not None:
                current.add_event("gave up", {"city": city})


async def main() -> None:
    """Run three agents at once, and print what was delivered."""
    async with batcher, trio.open_nursery() as nursery:
        for tenant, city in [("acme", "Paris"), ("globex", "Atlantis"), ("initech", "Avalon")]:
            nursery.start_soon(agent, tenant, city)
    for location, spans in sorted(exporter.delivered.items()):
        for span in (each.to_message() for each in spans):
            cancelled = any(pair.key == "trio.cancelled" for pair in span.attributes)
            print(location, span.name, span.status.message or ("cancelled" if cancelled else "ok"), sep=": ")
    print("dropped:", tracer.dropped)


trio.run(main)
