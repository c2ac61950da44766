"""What a mistake with several spans says."""

from __future__ import annotations

from typing import Any

import pytest

from trio_spanbatch import Span, SpanBatch, SpanBatcher, SpanContext
from trio_spanbatch.testing import InMemoryExporter

SPAN = Span("a span", SpanContext(1, 1), start_time=1, end_time=2)


@pytest.mark.parametrize("wrong", [SPAN, 5, None, "text", b"bytes", {"a": 1}])
async def test_spans_that_are_no_iterable_of_spans_are_an_error_that_names_the_parameter(wrong: Any) -> None:
    message = rf"^spans is of type {type(wrong).__name__}; it must be an iterable of spans, such as a list$"
    async with SpanBatcher(InMemoryExporter()) as batcher:
        with pytest.raises(TypeError, match=message):
            batcher.add_spans_nowait("a", wrong)
        with pytest.raises(TypeError, match=message) as caught:
            await batcher.add_spans("a", wrong)
        assert vars(caught.value)["accepted"] == 0
    assert batcher.statistics().accepted == 0
    with pytest.raises(TypeError, match=message):
        SpanBatch("a", wrong)


def test_a_batch_of_spans_that_are_not_encoded_is_an_error() -> None:
    spans: Any = [SPAN]
    with pytest.raises(TypeError, match=r"^spans\[0\] is of type Span; it must be an EncodedSpan$"):
        SpanBatch("a", spans)
