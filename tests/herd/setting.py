"""What a run consists of: the clients, the server's capacity, and the outage."""

from __future__ import annotations

import attrs

from trio_spanbatch import BatchPolicy, Limits

__all__ = ["Setting"]

# Server time of a request, as parts: for the request itself, for each of its spans, and for answering 503 instead.
_PER_REQUEST, _PER_SPAN, _PER_REJECTION = 1.0, 0.002, 0.2


@attrs.frozen
class Setting:
    """A run. Times are in seconds.

    Attributes:
        clients: The number of clients. Each is one batcher.
        capacity: The server's capacity, as a multiple of what the clients need when nothing fails.
        locations: The number of locations of each client.
        rate: Spans a second of each location, at regular intervals.
        policy: When a batch is due.
        limits: The limits of a client.
        down_at: When the outage begins.
        outage: How long it lasts. No connection is accepted meanwhile.
        after: How long the run goes on after it.
        timeout: How long a client waits for an answer.
        latency: How long an answer takes to arrive.
        waiting: Requests for each client that may wait at the server; it answers 503 to others.
    """

    clients: int
    capacity: float = 2.2
    locations: int = 1
    rate: float = 6.0
    policy: BatchPolicy = attrs.Factory(BatchPolicy)
    limits: Limits = attrs.Factory(Limits)
    down_at: float = 30.0
    outage: float = 300.0
    after: float = 120.0
    timeout: float = 10.0
    latency: float = 0.005
    waiting: float = 0.1

    @property
    def up_at(self) -> float:
        """When the outage ends."""
        return self.down_at + self.outage

    @property
    def end(self) -> float:
        """When the run ends."""
        return self.up_at + self.after

    @property
    def window(self) -> float:
        """How long after its first span a batch is due, if nothing fails."""
        return min(self.policy.max_delay, (self.policy.max_spans - 1) / self.rate)

    @property
    def usual_spans(self) -> int:
        """The spans of a batch if nothing fails."""
        return int(self.window * self.rate + 1e-9) + 1

    @property
    def usual_requests(self) -> float:
        """Requests a second of all clients if nothing fails."""
        return self.clients * self.locations * self.rate / self.usual_spans

    @property
    def server_seconds(self) -> float:
        """The server's time for one part (see `_PER_REQUEST`)."""
        needed = self.usual_requests * (_PER_REQUEST + _PER_SPAN * self.usual_spans)
        return 1 / (self.capacity * needed)

    def seconds_of(self, spans: int) -> float:
        """Return the server's time for a request."""
        return self.server_seconds * (_PER_REQUEST + _PER_SPAN * spans)

    @property
    def seconds_of_rejection(self) -> float:
        """The server's time for a 503."""
        return self.server_seconds * _PER_REJECTION
