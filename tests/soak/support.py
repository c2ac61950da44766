"""The protocol between the soak's two processes: the spans that the server refuses, and the lines of its reports.

A line on the server's standard input makes it break all connections; the end of that stream ends the server. On its
standard output it writes a line for each request whose spans it stored, before it answers, and a line for each fault.
Ids are unique in a run, so they suffice to identify spans.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "DROP",
    "FAULT",
    "LOCATION_HEADER",
    "MAX_REQUEST_BYTES",
    "PLAIN",
    "POISON",
    "PORT",
    "STORED",
    "UNWANTED",
    "fault_line",
    "port_line",
    "stored_line",
]

LOCATION_HEADER = "X-Soak-Location"

# Kinds of spans, by their names. The server refuses a request with a poisonous span, and leaves out unwanted spans with
# a partial success.
PLAIN = "plain"
POISON = "poison"
UNWANTED = "unwanted"

# Larger requests are answered 413.
MAX_REQUEST_BYTES = 24_000

# The first words of the lines.
PORT = "port"
STORED = "stored"
FAULT = "fault"

DROP = b"drop\n"


def port_line(port: int) -> str:
    return f"{PORT} {port}\n"


def stored_line(location: str, span_ids: Sequence[int]) -> str:
    return f"{STORED} {location} {' '.join(map(str, span_ids))}\n"


def fault_line(kind: str) -> str:
    return f"{FAULT} {kind}\n"
