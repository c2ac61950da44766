"""The server of the model and of the real batchers: it decides when it answers a request, and what.

It works on one request at a time, in the order in which they arrive. Other requests wait, up to a limit. A client that
has waited for its timeout sends the same batch again, but the server does not know that, and the time for the first
request is wasted. It has no clock, so that both a loop over events and an exporter can use it.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

from tests.herd.setting import Setting
from trio_spanbatch import Delivered, ExportResult, TryLater

__all__ = ["Figures", "Server"]

_UNREACHED = TryLater("connection refused", endpoint=True)
_REJECTED = TryLater("503 Service Unavailable", status_code=503)
_LATE = TryLater("no answer", ambiguous=True, cause="timeout")
_DELIVERED = Delivered()

# How long it takes until a connection is refused.
_REFUSAL = 0.002


@attrs.define
class Figures:
    """What happened in a run.

    Attributes:
        attempts: Attempts in the outage.
        rejected: 503s after it.
        late: Answers after it that came too late.
        lost: Spans that clients could not accept, as their queues were full.
        worked: The server's time for requests that were delivered, after the outage.
        wasted: The server's time for others.
        offered: Requests by the second.
        delivered: Spans that were delivered, by the second.
        drained: When each client's backlog was drained: the time from the end of the outage until the server had all
            spans that the client had accepted before.
    """

    attempts: int = 0
    rejected: int = 0
    late: int = 0
    lost: int = 0
    worked: float = 0.0
    wasted: float = 0.0
    offered: list[int] = attrs.Factory(list)
    delivered: list[int] = attrs.Factory(list)
    drained: list[float] = attrs.Factory(list)

    def drained_within(self, part: float) -> float:
        """Return when this part of the clients' backlogs were drained; `math.inf` if they never were."""
        return sorted(self.drained)[math.ceil(part * len(self.drained)) - 1]

    @property
    def wasted_part(self) -> float:
        """The part of the server's time after the outage that was wasted."""
        return self.wasted / (self.worked + self.wasted or 1.0)


class Server:
    """A server. Times are in seconds.

    Attributes:
        figures: What has happened.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._max_waiting = max(1, round(setting.waiting * setting.clients))
        self._ends: deque[float] = deque()
        self._busy_until = 0.0
        # Spans from before the end of the outage that are not delivered, by client. A client that has none is removed.
        self._backlogs: dict[int, int] = {}
        seconds = math.ceil(setting.end) + 1
        self.figures = Figures(offered=[0] * seconds, delivered=[0] * seconds)

    def recovered(self, backlogs: dict[int, int]) -> None:
        """Record the end of the outage, and the spans that each client has accepted until then."""
        self._backlogs = {client: spans for client, spans in backlogs.items() if spans}
        self.figures.drained = [0.0] * (len(backlogs) - len(self._backlogs))

    def ended(self) -> None:
        """Record the end of the run."""
        self.figures.drained += [math.inf] * len(self._backlogs)

    def request(self, now: float, client: int, spans: int, old: int) -> tuple[float, ExportResult]:
        """Return when a request is answered and what its client learns then.

        Args:
            now: The current time.
            client: The number of the client.
            spans: The spans of the request.
            old: How many of them were added before the end of the outage.
        """
        setting, figures = self._setting, self.figures
        is_after = setting.up_at <= now < setting.end
        if now < setting.end:
            figures.offered[int(now)] += 1
        if setting.down_at <= now < setting.up_at:
            figures.attempts += 1
            return now + _REFUSAL, _UNREACHED
        ends = self._ends
        while ends and ends[0] <= now:
            ends.popleft()
        if len(ends) > self._max_waiting:
            # It waits for nobody, but whoever is served next waits for it.
            self._busy_until += setting.seconds_of_rejection
            figures.rejected += is_after
            figures.wasted += setting.seconds_of_rejection * is_after
            return now + setting.latency, _REJECTED
        seconds = setting.seconds_of(spans)
        end = self._busy_until = max(now, self._busy_until) + seconds
        ends.append(end)
        if end + setting.latency > now + setting.timeout:
            figures.late += is_after
            figures.wasted += seconds * is_after
            return now + setting.timeout, _LATE
        figures.worked += seconds * is_after
        if end < setting.end:
            figures.delivered[int(end)] += spans
            self._deliver_old(end, client, old)
        return end + setting.latency, _DELIVERED

    def _deliver_old(self, end: float, client: int, old: int) -> None:
        if old and end >= self._setting.up_at and client in self._backlogs:
            self._backlogs[client] -= old
            if not self._backlogs[client]:
                del self._backlogs[client]
                self.figures.drained.append(end - self._setting.up_at)
