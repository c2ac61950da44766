"""Span to wire, with gzip: at level 5 here, and at OpenTelemetry's own level 9."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http import Compression

from bench.cases.span_to_wire import case

__all__ = ["CASE"]

CASE = case(
    "span_to_wire_gzip",
    "Span to wire, gzip",
    "The same with gzip: level 5 here, level 9 in OpenTelemetry's exporter.",
    "gzip",
    Compression.Gzip,
)
