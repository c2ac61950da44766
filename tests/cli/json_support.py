"""Helpers for tests of OTLP JSON."""

from __future__ import annotations

import json
from typing import Any

from tests.support.paths import DATA_FOLDER
from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._spans.records import Span
from trio_spanbatch.cli.otlp_json import read_request

DATA = DATA_FOLDER
DOCUMENTS = [
    json.loads((DATA / "otlp-example-trace.json").read_text(encoding="utf-8")),
    *(json.loads(line) for line in (DATA / "agent-traces.jsonl").read_text(encoding="utf-8").splitlines()),
]


def read(document: Any) -> list[Span]:
    """Read a document without errors."""
    spans: list[Span] = []
    for span in read_request(document):
        assert isinstance(span, Span), span
        spans.append(span)
    return spans


def document_with(*spans: Any, **scope_spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans), **scope_spans}]}]}


def span_json(**fields: Any) -> dict[str, Any]:
    return {"traceId": "AB" * 16, "spanId": "cd" * 8, "name": "work"} | fields


def read_span(**fields: Any) -> Span:
    (span,) = read(document_with(span_json(**fields)))
    return span


def read_value(**value: Any) -> Any:
    return read_span(attributes=[{"key": "key", "value": value}]).attributes["key"]


def problem_of(*spans: Any) -> str:
    (problem,) = read_request(document_with(*spans))
    assert isinstance(problem, InvalidSpanError)
    return str(problem)
