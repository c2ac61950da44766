"""Isolation: finds the spans for which a server refuses a whole batch.

Many servers answer 400, 413 or 422 to a request of hundreds of spans because of one. The batch is then halved until the
bad span is alone: the good ones are delivered, and the bad one is rejected with the server's message. This module
decides which part to send next and what a response means; it sends nothing.

Open parts are on a stack, with the next one to send on top. A part whose result is known is not sent: if a batch was
refused for its content and its left half was accepted, the bad span is in the right half, which is halved without being
sent, or rejected if it is a single span. A 413 does not imply this: both halves may be small enough.

A server that refuses everything must not receive a request for every span. Isolation stops after `MAX_REFUSALS`
refusals in a row (eight adjacent bad spans in a batch of 512 take 21), and after `MAX_REQUESTS` requests for one batch,
counted from its first refusal other than a 413. Requests before that do not count, because each part of a large batch
may be accepted once it is small enough.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeAlias

import attrs

from .._exporter import Delivered, Refused
from .._reporting.statistics import Settlement
from .location import Lease

MAX_REFUSALS = 24
MAX_REQUESTS = 256

Verdict: TypeAlias = tuple[Lease, Settlement]


@attrs.define(eq=False)
class _Part:
    """An open part of the batch.

    Attributes:
        lease: Its spans.
        known_refusal: The refusal that applies to it, if that is known without sending it.
        sibling: The other half, to which ``refusal`` applies if this one is accepted.
        refusal: The refusal of both halves together.
    """

    lease: Lease
    known_refusal: Refused | None = None
    sibling: _Part | None = None
    refusal: Refused | None = None


class Isolation:
    """The parts of one batch, from its first request until each of its spans has a verdict.

    Attributes:
        open: The parts that are not accounted for yet. Whoever accounts for one removes it.
        any_passed: Whether the server accepted any part.
    """

    def __init__(self, lease: Lease, split: Callable[[Lease, int], tuple[Lease, Lease]]) -> None:
        self.open: dict[Lease, None] = {lease: None}
        self.any_passed = False
        self._split = split
        self._parts = [_Part(lease)]
        self._was_split = False
        self._any_isolated = False
        self._any_given_up = False
        self._refusals = 0
        self._requests = 0
        self._last_refusal: Refused | None = None
        self._counts_requests = False

    @property
    def refused_everything(self) -> bool:
        """Whether all parts of a batch of several spans were refused."""
        return self._was_split and self._any_isolated and not self.any_passed and not self._any_given_up

    def next(self) -> Lease | None:
        """Return the part to send next; None if every span has a verdict."""
        return self._parts[-1].lease if self._parts else None

    def probe_first(self) -> None:
        """Split the first span off, so that it is sent alone first."""
        if len(self._parts[-1].lease) > 1:
            self._split_part(self._parts.pop(), 1)

    def halve(self) -> None:
        """Send the halves of the next part instead of it. It must have at least two spans."""
        part = self._parts.pop()
        self._split_part(part, len(part.lease) // 2)

    def passed(self, result: Delivered) -> list[Verdict]:
        """Record that the server accepted the part that was sent, except for the spans that it reports as rejected."""
        part = self._parts.pop()
        self._requests += self._counts_requests
        self._refusals = 0
        self.any_passed = True
        # If the server rejected spans of this part, both halves together may have been refused for those.
        if part.sibling is not None and result.rejected <= 0:
            part.sibling.known_refusal = part.refusal
        return [(part.lease, _delivered(part.lease, result)), *self._go_on()]

    def refused(self, result: Refused, *, give_up: bool) -> list[Verdict]:
        """Record that the server refused the part that was sent.

        Args:
            result: The refusal.
            give_up: Whether the server is known to refuse everything. If so, and it has accepted no part of this batch,
                the remaining parts are rejected without being sent.
        """
        part = self._parts.pop()
        self._counts_requests |= result.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        self._last_refusal = result
        self._requests += self._counts_requests
        self._refusals += 1
        self._any_isolated |= result.isolate
        if give_up and not self.any_passed:
            return [(part.lease, _rejected(part.lease, result)), *self._end(result)]
        if not result.isolate or len(part.lease) == 1:
            verdicts = [(part.lease, _rejected(part.lease, result))]
        else:
            verdicts = []
            self._halve(part, result)
        return verdicts + self._go_on()

    def given_up(self, settlement: Settlement) -> list[Verdict]:
        """Record another verdict on the part that was sent. It implies nothing for the other parts."""
        part = self._parts.pop()
        self._any_given_up = True
        return [(part.lease, settlement), *self._settle_known()]

    def _go_on(self) -> list[Verdict]:
        if self._last_refusal is not None and (self._refusals >= MAX_REFUSALS or self._requests >= MAX_REQUESTS):
            return self._end(self._last_refusal)
        return self._settle_known()

    def _end(self, refusal: Refused) -> list[Verdict]:
        """Give all open parts their verdict without sending them."""
        unsent, self._parts = self._parts, []
        if not self.any_passed:
            return [(part.lease, _rejected(part.lease, refusal)) for part in unsent]
        verdict = Settlement(
            reason=f"isolation budget: {refusal.reason}", status_code=refusal.status_code, cause=refusal.cause
        )
        return [(part.lease, attrs.evolve(verdict, undelivered=len(part.lease))) for part in unsent]

    def _settle_known(self) -> list[Verdict]:
        verdicts = []
        while self._parts and (refusal := self._parts[-1].known_refusal) is not None:
            part = self._parts.pop()
            if len(part.lease) == 1:
                verdicts.append((part.lease, _rejected(part.lease, refusal)))
            else:
                self._halve(part, refusal)
        return verdicts

    def _halve(self, part: _Part, refusal: Refused) -> None:
        self._split_part(part, len(part.lease) // 2)
        if refusal.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            left, right = self._parts[-1], self._parts[-2]
            left.sibling, left.refusal = right, refusal

    def _split_part(self, part: _Part, at: int) -> None:
        self._was_split = True
        left, right = self._split(part.lease, at)
        del self.open[part.lease]
        self.open[left] = self.open[right] = None
        self._parts += (_Part(right), _Part(left))


def _delivered(lease: Lease, result: Delivered) -> Settlement:
    rejected = max(0, min(result.rejected, len(lease)))
    reason = result.message or "the server gave no reason"
    return Settlement(delivered=len(lease) - rejected, rejected=rejected, reason=reason)


def _rejected(lease: Lease, refusal: Refused) -> Settlement:
    return Settlement(rejected=len(lease), reason=refusal.reason, status_code=refusal.status_code, cause=refusal.cause)
