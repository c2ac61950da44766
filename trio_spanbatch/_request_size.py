"""How large a request one location takes, learnt from its refusals."""

from __future__ import annotations

import math

import attrs

__all__ = ["RequestSizeLimit"]


@attrs.define(eq=False)
class RequestSizeLimit:
    """Remembers, after a 413, the size that passed.

    A batch that was too large is halved until its parts pass. The next batch need not be refused again: it is halved
    beforehand, until it is no larger than the largest request that passed, or than half of the smallest that was
    refused, if that is more. (The latter for the case that a single large span was refused and tiny ones passed.)
    """

    _smallest_refused: float = math.inf
    _largest_passed: float = 0.0

    @property
    def limit(self) -> float:
        """The largest request to send, in bytes; `math.inf` if none was refused for its size."""
        if self._smallest_refused == math.inf:
            return math.inf
        return max(self._largest_passed, self._smallest_refused / 2)

    def refused(self, size: int) -> None:
        """A request was refused for its size. What a larger one did before counts no more."""
        self._smallest_refused = min(self._smallest_refused, size)
        if self._largest_passed >= size:
            self._largest_passed = 0.0

    def passed(self, size: int) -> None:
        """A request was taken."""
        self._largest_passed = max(self._largest_passed, size)
        if size >= self._smallest_refused:
            # The server takes more than it did.
            self._smallest_refused = math.inf
