"""Isolation: finding the spans for which a server refuses a whole batch.

Many servers answer 400, 413 or 422 to a request of hundreds of spans because of one. The batch is halved until the bad
span stands alone: the good ones are delivered, the bad one is rejected with the server's words. This module decides
which part to send next, and what a response says about it; it sends nothing itself.

The parts that are still open lie on a stack, the next one to send on top. What is known of a part without asking is
used: where a batch was refused for its content and its left half passed, the right half must hold the bad span, so that
it is not sent as a whole but halved at once, or rejected if it is a single span. A 413 says nothing of the kind: both
halves may be small enough.

A server that refuses everything must not be asked about every span. Isolation gives up after `MAX_REFUSALS` refusals in
a row without a part that passed (eight bad spans side by side in a batch of 512 take 21), or after `MAX_REQUESTS` for
one batch, whether its last part passed or not. Those are counted from the first refusal that is about what the spans
are: into however many requests their size cuts a batch, each of them can pass.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeAlias

import attrs

from .._exporter import Delivered, Refused
from .._reporting.statistics import Settlement
from .ledger import Lease

__all__ = ["MAX_REFUSALS", "MAX_REQUESTS", "Isolation", "Verdict"]

MAX_REFUSALS = 24
MAX_REQUESTS = 256

Verdict: TypeAlias = tuple[Lease, Settlement]


@attrs.define(eq=False)
class _Part:
    """A part of the batch that is still open.

    Attributes:
        lease: Its spans.
        told: The refusal that is known to hold for it without asking.
        twin: The other half, which is to blame for ``refusal`` if this one passes.
        refusal: The refusal of both halves together.
    """

    lease: Lease
    told: Refused | None = None
    twin: _Part | None = None
    refusal: Refused | None = None


class Isolation:
    """One batch, from its first request until each of its spans has a verdict.

    Attributes:
        any_passed: Whether the server took any part.
    """

    def __init__(self, lease: Lease, split: Callable[[Lease, int], tuple[Lease, Lease]]) -> None:
        self.any_passed = False
        self._split = split
        self._parts = [_Part(lease)]
        self._was_cut = False
        self._any_isolated = False
        self._any_given_up = False
        self._refusals = 0
        self._requests = 0
        self._last_refusal: Refused | None = None
        # The last one for what the spans are, not for how many bytes they have.
        self._last_judgement: Refused | None = None

    @property
    def refused_everything(self) -> bool:
        """Whether a batch of several spans was refused in all its parts."""
        return self._was_cut and self._any_isolated and not self.any_passed and not self._any_given_up

    def next(self) -> Lease | None:
        """Return the part to send next; None if every span has a verdict."""
        return self._parts[-1].lease if self._parts else None

    def probe_first(self) -> None:
        """Send one span alone first."""
        if len(self._parts[-1].lease) > 1:
            self._cut(self._parts.pop(), 1)

    def halve(self) -> None:
        """Do not send the next part as it is, but its halves. It must have two spans."""
        part = self._parts.pop()
        self._cut(part, len(part.lease) // 2)

    def passed(self, result: Delivered) -> list[Verdict]:
        """The server took the part that was sent, less the spans that it says it rejected."""
        part = self._parts.pop()
        self._requests += self._last_judgement is not None
        self._refusals = 0
        self.any_passed = True
        # Where the server left out spans of this part, the refusal of both halves may have been about those.
        if part.twin is not None and result.rejected <= 0:
            part.twin.told = part.refusal
        return [(part.lease, _delivered(part.lease, result)), *self._go_on()]

    def refused(self, result: Refused, *, give_up: bool) -> list[Verdict]:
        """The server refused the part that was sent.

        Args:
            result: What it said.
            give_up: Whether it is known to refuse everything. Then the rest is not sent if no part has passed.
        """
        part = self._parts.pop()
        if result.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            self._last_judgement = result
        self._last_refusal = result
        self._requests += self._last_judgement is not None
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
        """The part that was sent has another verdict; it says nothing of the others."""
        part = self._parts.pop()
        self._any_given_up = True
        return [(part.lease, settlement), *self._use_what_is_known()]

    def _go_on(self) -> list[Verdict]:
        if self._last_refusal is not None and (self._refusals >= MAX_REFUSALS or self._requests >= MAX_REQUESTS):
            return self._end(self._last_refusal)
        return self._use_what_is_known()

    def _end(self, refusal: Refused) -> list[Verdict]:
        """Give all that is left its verdict without asking."""
        rest, self._parts = self._parts, []
        if not self.any_passed:
            return [(part.lease, _rejected(part.lease, refusal)) for part in rest]
        reason = f"isolation budget: {refusal.reason}"
        return [
            (
                part.lease,
                Settlement(
                    undelivered=len(part.lease), reason=reason, status_code=refusal.status_code, cause=refusal.cause
                ),
            )
            for part in rest
        ]

    def _use_what_is_known(self) -> list[Verdict]:
        verdicts = []
        while self._parts and (refusal := self._parts[-1].told) is not None:
            part = self._parts.pop()
            if len(part.lease) == 1:
                verdicts.append((part.lease, _rejected(part.lease, refusal)))
            else:
                self._halve(part, refusal)
        return verdicts

    def _halve(self, part: _Part, refusal: Refused) -> None:
        self._cut(part, len(part.lease) // 2)
        if refusal.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            left, right = self._parts[-1], self._parts[-2]
            left.twin, left.refusal = right, refusal

    def _cut(self, part: _Part, at: int) -> None:
        self._was_cut = True
        left, right = self._split(part.lease, at)
        self._parts += (_Part(right), _Part(left))


def _delivered(lease: Lease, result: Delivered) -> Settlement:
    rejected = max(0, min(result.rejected, len(lease)))
    reason = result.message or "the server gave no reason"
    return Settlement(delivered=len(lease) - rejected, rejected=rejected, reason=reason)


def _rejected(lease: Lease, refusal: Refused) -> Settlement:
    return Settlement(rejected=len(lease), reason=refusal.reason, status_code=refusal.status_code, cause=refusal.cause)
