"""The cases, one per file. Each has a `CASE`; the table shows them in this order."""

from __future__ import annotations

from importlib import import_module

from bench.harness import Case

__all__ = ["CASES", "load_case"]

CASES = (
    "encoding",
    "span_to_wire",
    "span_to_wire_gzip",
    "requests",
    "accepting",
    "event_loop",
    "locations",
    "locations_http",
    "scale",
    "full_batches",
    "memory",
    "throughput",
    "spool",
    "noisy_neighbour",
    "outage",
    "background",
    "breakdown",
    "batch_sizes",
    "gzip_levels",
)


def load_case(name: str) -> Case:
    """Return a case. It is imported only when needed, so that a side's process loads no libraries of other cases."""
    case = import_module(f"bench.cases.{name}").CASE
    assert isinstance(case, Case)
    return case
