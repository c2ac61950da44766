"""Where one batch of a queue ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from tests.unit.scheduler.parts import make_span
from tests.unit.scheduler.support import HEADERS
from trio_spanbatch import EncodedSpan, SpanBatch
from trio_spanbatch._scheduler.splitter import NO_BATCH, OpenBatch, QueuedBatch, grow, runs_of


def _grown(spans: Iterable[EncodedSpan], max_spans: int, max_bytes: int) -> tuple[list[QueuedBatch], OpenBatch]:
    full: list[QueuedBatch] = []
    batch = NO_BATCH
    for number, span in enumerate(spans):
        growth = grow(batch, span, number, max_spans, max_bytes, float(number))
        full += growth.full
        batch = growth.open
    return full, batch


def _size(*spans: EncodedSpan) -> int:
    return SpanBatch("a", spans).size


TWO = _size(make_span(), make_span())

# max_spans, max_bytes, sizes: the ends of the full batches, and whether one is open.
TABLE = [
    (3, 9999, [10, 10], [], True),
    (3, 9999, [10, 10, 10], [3], False),
    (3, 9999, [10, 10, 10, 10], [3], True),
    (1, 9999, [10, 10], [1, 2], False),
    (9, TWO + 1, [10, 10], [], True),
    (9, TWO, [10, 10], [2], False),
    (9, TWO - 1, [10, 10], [1], True),
    (9, TWO, [10, 10, 10], [2], True),
    (9, 1, [10, 10], [1, 2], False),
    (9, TWO, [10, 500, 10], [1, 2], True),
]


@pytest.mark.parametrize(("max_spans", "max_bytes", "sizes", "ends", "is_open"), TABLE)
def test_a_batch_is_full_with_max_spans_or_if_another_span_would_exceed_max_bytes(
    max_spans: int, max_bytes: int, sizes: list[int], ends: list[int], is_open: bool
) -> None:
    spans = [make_span(size) for size in sizes]
    full, batch = _grown(spans, max_spans, max_bytes)
    assert [queued.end for queued in full] == ends
    assert [queued.first for queued in full] == [0, *ends][: len(ends)]
    assert [queued.size for queued in full] == [_size(*spans[queued.first : queued.end]) for queued in full]
    assert [queued.opened_at for queued in full] == [queued.first for queued in full]
    assert (batch is not NO_BATCH) == is_open
    if is_open:
        assert batch.first == (ends[-1] if ends else 0)
        assert batch.size == _size(*spans[batch.first :])


def test_planning_a_span_changes_nothing() -> None:
    span = make_span()
    batch = grow(NO_BATCH, span, 0, 9, 9999, 0.0).open
    before = (batch.first, batch.full_at, batch.size, batch.run_first)
    first, second = (grow(batch, make_span(7, 1), 1, 9, 9999, 1.0).open for _ in range(2))
    assert (batch.first, batch.full_at, batch.size, batch.run_first) == before
    assert first.size == second.size > batch.size
    assert NO_BATCH.size == 0


@pytest.mark.parametrize("pattern", ["0", "000", "01", "0110", "010101", "00111", "1000"])
def test_each_span_of_a_batch_has_the_headers_with_which_it_was_accepted(pattern: str) -> None:
    spans = [EncodedSpan(bytes([number]), HEADERS[int(kind)]) for number, kind in enumerate(pattern)]
    _, batch = _grown(spans, 99, 9999)
    runs = runs_of(batch.closed(len(spans)), [span.payload for span in spans])
    assert [(payload, headers) for headers, payloads in runs for payload in payloads] == [
        (span.payload, span.headers) for span in spans
    ]
    assert all(one[0] is not other[0] for one, other in pairwise(runs)), "runs are not joined"
