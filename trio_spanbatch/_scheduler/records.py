"""Records of the spool as the scheduler sees them, and a location's shelf: its spans that are on disk only."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TypeAlias

import attrs


@attrs.define(eq=False)
class CommittedRecord:
    """A record on disk.

    Attributes:
        token: Identifies it in the store.
        left: The number of its spans that are not accounted for. At 0, the store may forget the record.
        count: The number of its spans.
        nbytes: What its spans count as in the byte budgets.
        oldest: When the first of them was accepted, in seconds of Unix time.
        is_damaged: Whether reading it has failed for good.
    """

    token: int
    left: int
    count: int
    nbytes: int
    oldest: float
    is_damaged: bool = False


@attrs.define(eq=False)
class Piece:
    """Consecutive spans of a record.

    Attributes:
        record: The record.
        first: The number of the first of them in its location. Negative if the record was recovered.
        start: Their place in the record.
        count: How many there are.
        ambiguous: Whether they were counted as ambiguous.
    """

    record: CommittedRecord
    first: int
    start: int
    count: int
    ambiguous: bool = False

    def __len__(self) -> int:
        return self.count

    def __lt__(self, other: Piece) -> bool:
        return self.first < other.first

    @property
    def nbytes(self) -> int:
        """About what they count as in the byte budgets."""
        return self.record.nbytes * self.count // self.record.count

    def split(self, at: int) -> tuple[Piece, Piece]:
        """Return the first ``at`` spans and the others."""
        right = Piece(self.record, self.first + at, self.start + at, self.count - at, self.ambiguous)
        return Piece(self.record, self.first, self.start, at, self.ambiguous), right

    def goes_with(self, following: Piece) -> bool:
        """Return whether the piece that follows may be in the same batch."""
        is_next = following.first == self.first + self.count or following.first < 0
        return is_next and following.ambiguous == self.ambiguous


# A heap, with the oldest piece first. So pieces may come back in any order, and recovered ones be found at any time.
Shelf: TypeAlias = list[Piece]


def take(shelf: Shelf, max_spans: int, max_bytes: int) -> list[Piece]:
    """Remove and return the oldest spans, as many as one batch may have."""
    taken: list[Piece] = []
    spans = nbytes = 0
    while shelf and spans < max_spans:
        piece = shelf[0]
        if taken and not (taken[-1].goes_with(piece) and nbytes + piece.nbytes <= max_bytes):
            break
        heapq.heappop(shelf)
        if spans + len(piece) > max_spans:
            piece, rest = piece.split(max_spans - spans)
            heapq.heappush(shelf, rest)
        taken.append(piece)
        spans += len(piece)
        nbytes += piece.nbytes
    return taken


def split(pieces: Iterable[Piece], at: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Return the pieces of the first ``at`` spans and those of the others."""
    left: list[Piece] = []
    right: list[Piece] = []
    for piece in pieces:
        if 0 < at < len(piece):
            first, rest = piece.split(at)
            left.append(first)
            right.append(rest)
        else:
            (left if at > 0 else right).append(piece)
        at -= len(piece)
    return tuple(left), tuple(right)
