"""Spans without credentials, personal data and very long prompts."""

import hashlib
import hmac
from typing import Any

import trio

from trio_spanbatch import DROP, SpanBatcher, scrub
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import Tracer

PEPPER = b"from the program's configuration"

scrubbed = scrub(keys=["email"], patterns=[r"\b\d{3}-\d{2}-\d{4}\b"])


def redact(key: str, value: Any) -> Any:
    """Return what is sent in place of ``value``."""
    if key == "user.id":
        # The same user has the same pseudonym.
        return hmac.digest(PEPPER, str(value).encode(), hashlib.sha256).hex()[:16]
    if key.startswith("gen_ai.tool.call.arguments"):
        return DROP
    return scrubbed(key, value)


async def main() -> None:
    """Send a span, and print what arrives."""
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, redact=redact, max_attribute_bytes=80) as batcher:
        attributes = {
            "user.id": 4711,
            "gen_ai.input.messages": '[{"content": "I am 123-45-6789", "email": "a@example.com"}]',
            "gen_ai.output.messages": '{"url": "https://user:hunter2@example.com", "api_key": "abc"}',
            "gen_ai.tool.call.arguments": "anything",
            "document": "word " * 1000,
        }
        with Tracer(batcher).span("chat with Bearer abc123def456", attributes=attributes):
            pass
    span = exporter.delivered["default"][0].to_message()
    print(span.name)
    for pair in span.attributes:
        print(pair.key, pair.value.string_value, sep=": ")
    print("absent:", span.dropped_attributes_count, "cut:", batcher.statistics().cut)


trio.run(main)
