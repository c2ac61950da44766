"""Two agents of pydantic-ai on asyncio; the spans of each go to a separate location."""

import asyncio
import os
import sys

from model_server import model_server
from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from trio_spanbatch import Loss, OTLPExporter
from trio_spanbatch.opentelemetry import background_batcher, use_location


def weather(city: str) -> str:
    """Return the weather in a city: the tool of the agents."""
    return f"sunny in {city}"


async def ask(agent: Agent[None, str], tenant: str, city: str) -> None:
    """Run an agent for a tenant. Its spans, and those below them, go to the tenant's location."""
    with use_location(f"main.{tenant}.spans"):
        await agent.run(city)


async def ask_all(url: str, provider: TracerProvider) -> None:
    """Run an agent for each of two tenants at once."""
    model = OpenAIChatModel("simulated", provider=OpenAIProvider(base_url=url, api_key="none"))
    agent = Agent(model, name="forecaster", tools=[weather])
    # Prompts and answers are not recorded.
    agent.instrument = InstrumentationSettings(tracer_provider=provider, include_content=False)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(agent, "acme", "Paris"))
        tasks.create_task(ask(agent, "globex", "Tokyo"))


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why."""
    print(loss, file=sys.stderr)


def main() -> None:
    """Trace the agents. When the `with` ends, every span is accounted for."""
    exporter = OTLPExporter.from_env(location_header="X-Scope-OrgID")
    with background_batcher(exporter, shutdown_timeout=8, on_loss=tell) as processor, model_server() as url:
        provider = TracerProvider()
        provider.add_span_processor(processor)
        asyncio.run(ask_all(url, provider))
    print(f"delivered: {processor.batcher.statistics().delivered}")


if __name__ == "__main__":
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        sys.exit("set OTEL_EXPORTER_OTLP_ENDPOINT to the URL of the server, for instance http://127.0.0.1:4318")
    main()
