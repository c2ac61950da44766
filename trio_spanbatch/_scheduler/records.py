"""Records of the spool as the scheduler sees them: how many of their spans are left, and pieces of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

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


@attrs.frozen(eq=False)
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

    @property
    def nbytes(self) -> int:
        """About what they count as in the byte budgets."""
        return self.record.nbytes * self.count // self.record.count

    def split(self, at: int) -> tuple[Piece, Piece]:
        """Return the first ``at`` spans and the others."""
        right = attrs.evolve(self, first=self.first + at, start=self.start + at, count=self.count - at)
        return attrs.evolve(self, count=at), right


def split(pieces: Iterable[Piece], at: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Return the pieces of the first ``at`` spans and those of the others."""
    left: list[Piece] = []
    right: list[Piece] = []
    for piece in pieces:
        if at >= len(piece):
            left.append(piece)
        elif at <= 0:
            right.append(piece)
        else:
            for part, side in zip(piece.split(at), (left, right), strict=True):
                side.append(part)
        at -= len(piece)
    return tuple(left), tuple(right)


class Shelf:
    """The spans of a location that are on disk and nowhere in memory, oldest first.

    Recovered ones, whose numbers are negative, are apart: while earlier processes' files are still being read, more are
    found that are older than all that this process has accepted.
    """

    __slots__ = ("_own", "_recovered")

    def __init__(self) -> None:
        self._recovered: deque[Piece] = deque()
        self._own: deque[Piece] = deque()

    def __bool__(self) -> bool:
        return bool(self._recovered or self._own)

    def __iter__(self) -> Iterator[Piece]:
        yield from self._recovered
        yield from self._own

    @property
    def first(self) -> Piece:
        """The oldest piece. There must be one."""
        return (self._recovered or self._own)[0]

    def put(self, pieces: Iterable[Piece]) -> None:
        """Put pieces where they belong."""
        for piece in pieces:
            queue = self._recovered if piece.first < 0 else self._own
            if not queue or queue[-1].first < piece.first:
                queue.append(piece)
            elif piece.first < queue[0].first:
                queue.appendleft(piece)
            else:
                # Parts of batches that failed at the same time.
                place = next(number for number, other in enumerate(queue) if piece.first < other.first)
                queue.insert(place, piece)

    def take(self, max_spans: int, max_bytes: int) -> list[Piece]:
        """Remove and return the oldest spans, as many as one batch may have, from records that follow each other."""
        taken: list[Piece] = []
        queue = self._recovered or self._own
        spans = nbytes = 0
        while queue and spans < max_spans:
            piece = queue[0]
            if taken and not (_fits(taken[-1], piece) and nbytes + piece.nbytes <= max_bytes):
                break
            queue.popleft()
            if spans + len(piece) > max_spans:
                piece, rest = piece.split(max_spans - spans)
                queue.appendleft(rest)
            taken.append(piece)
            spans += len(piece)
            nbytes += piece.nbytes
        return taken

    def take_damaged(self) -> list[Piece]:
        """Remove and return the pieces of records that are damaged."""
        damaged = [piece for piece in self if piece.record.is_damaged]
        self._recovered = deque(piece for piece in self._recovered if not piece.record.is_damaged)
        self._own = deque(piece for piece in self._own if not piece.record.is_damaged)
        return damaged


def _fits(piece: Piece, following: Piece) -> bool:
    """Return whether two pieces may be in one batch."""
    return following.first == piece.first + len(piece) and following.ambiguous == piece.ambiguous
