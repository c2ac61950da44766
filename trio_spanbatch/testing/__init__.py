"""Tools for testing programs that send spans: an in-memory exporter and a real OTLP/HTTP server with faults."""

from __future__ import annotations

from ._answers import Answer, Drip, Hang, Outcome, Reset, partial_success
from ._faults import outage, poison, rate_limited, slow
from ._memory_exporter import InMemoryExporter
from ._network import MemoryNetwork, MemoryTransport
from ._receiver import OTLPReceiver
from ._requests import ReceivedRequest

__all__ = [
    "Answer",
    "Drip",
    "Hang",
    "InMemoryExporter",
    "MemoryNetwork",
    "MemoryTransport",
    "OTLPReceiver",
    "Outcome",
    "ReceivedRequest",
    "Reset",
    "outage",
    "partial_success",
    "poison",
    "rate_limited",
    "slow",
]
