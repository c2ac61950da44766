"""The server's behaviour in these tests, and its records.

It records the spans that it accepts before it answers, so that the records are complete even if the server is killed.
Spans named `LEFT_OUT` are left out with a partial success; a request with a span named `POISON` is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from trio_spanbatch.testing import Answer, Hang, Outcome, ReceivedRequest, partial_success

LOCATION_HEADER = "X-Location"
LEFT_OUT = "left out"
POISON = "poison"


@attrs.frozen
class Record:
    """The outcome of one request.

    Attributes:
        location: The location of its spans.
        stored: The ids of the spans that were stored.
        left_out: The ids of the spans that were left out with a partial success.
    """

    location: str
    stored: Sequence[int]
    left_out: Sequence[int] = ()

    def to_line(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode() + b"\n"


def read_records(path: Path) -> list[Record]:
    """Return the records in a file that a server process writes, or wrote until it was killed."""
    # The last line may be incomplete; a request is answered after its line was written.
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [Record(**json.loads(line)) for line in lines]


class Collector:
    """Answers a receiver's requests.

    Attributes:
        hanging: Locations whose requests are never answered.
        delay: Seconds until an answer.
        answers: The number of accepted requests that are still answered; later ones are accepted without an answer.
    """

    def __init__(self, record: Callable[[Record], object]) -> None:
        self.hanging: frozenset[str] = frozenset()
        self.delay = 0.0
        self.answers = sys.maxsize
        self._record = record

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        """Decide on a request, as `OTLPReceiver`'s ``answers``."""
        if request.message is None:
            return None
        if request.location in self.hanging:
            return Hang()
        if any(span.name == POISON for span in request.spans):
            return Answer(400, body=b"poison", delay=self.delay)
        left_out = [span for span in request.spans if span.name == LEFT_OUT]
        taken = [span for span in request.spans if span.name != LEFT_OUT]
        self._record(Record(request.location, _ids(taken), _ids(left_out)))
        self.answers -= 1
        if self.answers < 0:
            return Hang()
        answer = partial_success(len(left_out), "left out", rejected_spans=left_out) if left_out else Answer()
        return attrs.evolve(answer, delay=self.delay)


def _ids(spans: Sequence[SpanMessage]) -> list[int]:
    return [int.from_bytes(span.span_id, "big") for span in spans]
