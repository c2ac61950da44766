"""What the soak's two processes agree on: which spans the server does not take, and how it tells what it did.

The server's standard input has a line for each time that it shall break all connections, and its end is the server's.
On its standard output it writes a line for each request whose spans it stored, before it answers, and one for each
fault. Ids are unique in a run, so the client knows from them all that it has to.
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

# Kinds of spans, by their names. For a poisonous one the server refuses the whole request; an unwanted one it leaves
# out with a partial success.
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
