"""Tools for testing programs that send spans: an in-memory exporter and a real OTLP/HTTP server with faults.

`trio_spanbatch.pytest_plugin` has fixtures of them.
"""

from __future__ import annotations

from ._answers import Answer, Drip, Hang, Outcome, Reset, partial_success
from ._faults import outage, poison, rate_limited, slow
from ._memory_exporter import InMemoryExporter
from ._network import MemoryNetwork, MemoryTransport
from ._programs import exporting_to
from ._receiver import OTLPReceiver
from ._requests import ReceivedRequest
from ._spans import ExportedSpans, SpanDicts

__all__ = [
    "Answer",
    "Drip",
    "ExportedSpans",
    "Hang",
    "InMemoryExporter",
    "MemoryNetwork",
    "MemoryTransport",
    "OTLPReceiver",
    "Outcome",
    "ReceivedRequest",
    "Reset",
    "SpanDicts",
    "exporting_to",
    "outage",
    "partial_success",
    "poison",
    "rate_limited",
    "slow",
]
