"""Span to wire, with gzip: ours at level 5, OpenTelemetry's at its own 9."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http import Compression

from bench.cases.span_to_wire import case

__all__ = ["CASE"]

CASE = case(
    "span_to_wire_gzip",
    "Span to wire, gzip",
    "The same with gzip: at level 5 here, at 9 there.",
    "gzip",
    Compression.Gzip,
)
