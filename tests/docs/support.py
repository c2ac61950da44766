"""Helpers for the tests of the examples on real frameworks: run one, and read the received spans as trees."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from textwrap import dedent, indent
from urllib.parse import urlsplit

import trio
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status

from tests.cli.support import Ended, clean_environment, run_command
from tests.support.paths import PROJECT
from tests.support.processes import DEADLINE, untraced_environment
from trio_spanbatch.testing import OTLPReceiver

EXAMPLES = PROJECT / "docs" / "examples" / "frameworks"
LOCATION_HEADER = "X-Scope-OrgID"


def environment(receiver: OTLPReceiver | None = None) -> dict[str, str]:
    """Return an environment that sends spans to ``receiver``. Coverage, which slows down imports, is not measured."""
    environ = {name: value for name, value in clean_environment().items() if name in untraced_environment()}
    if receiver is not None:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url.removesuffix("/v1/traces")
    return environ


async def run_example(name: str, receiver: OTLPReceiver | None) -> Ended:
    """Run an example as a user would."""
    program = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    with trio.fail_after(DEADLINE):
        return await run_command(program=program, environ=environment(receiver))


def attribute(span: SpanMessage, key: str) -> AnyValue:
    """Return the value of an attribute, or an empty value."""
    return next((pair.value for pair in span.attributes if pair.key == key), AnyValue())


def label(span: SpanMessage) -> str:
    """Return the name of a span with its URL, and marks for a remote parent, a cancellation and a failure."""
    words = [span.name]
    if url := attribute(span, "http.url").string_value:
        words.append(urlsplit(url).path)
    if span.parent_span_id and span.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK:
        words.append("(remote parent)")
    if attribute(span, "trio.cancelled").bool_value:
        words.append("cancelled")
    if span.status.code == Status.STATUS_CODE_ERROR:
        words.append(f"failed: {span.status.message}, {attribute(span, 'error.type').string_value}")
    return " ".join(words)


def trees(spans: Iterable[SpanMessage]) -> list[str]:
    """Return each trace as lines in alphabetical order, with children indented below their parent.

    A span whose parent is missing is at the top.
    """
    spans = list(spans)
    present = {(span.trace_id, span.span_id) for span in spans}
    children: defaultdict[tuple[bytes, bytes], list[SpanMessage]] = defaultdict(list)
    tops: list[SpanMessage] = []
    for span in spans:
        parent = span.trace_id, span.parent_span_id
        (children[parent] if parent in present else tops).append(span)

    def lines(span: SpanMessage) -> str:
        below = sorted(lines(child) for child in children[span.trace_id, span.span_id])
        return label(span) + "\n" + indent("".join(below), "  ")

    return sorted(lines(top) for top in tops)


def expected(*texts: str) -> list[str]:
    """Return traces written as indented lines in the form that `trees` returns."""
    return sorted(dedent(text.lstrip("\n")) for text in texts)


def assert_one_trace_is_one_location(stored: Mapping[str, Sequence[SpanMessage]]) -> None:
    """Assert that no trace is at two locations, and that no span was stored twice."""
    locations: defaultdict[bytes, set[str]] = defaultdict(set)
    for location, spans in stored.items():
        assert len({span.span_id for span in spans}) == len(spans)
        for span in spans:
            locations[span.trace_id].add(location)
    assert all(len(found) == 1 for found in locations.values()), locations
