"""The message of `UndeliveredSpansError`, often the only information about a program that has ended."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from trio.testing import MockClock

from tests.support.batchers import make_span, make_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, Refused, SpanBatcher, UndeliveredSpansError
from trio_spanbatch.testing import Answer, InMemoryExporter, OTLPReceiver

ONE = BatchPolicy(max_spans=1)


async def ended_with(exporter: InMemoryExporter, count: int, batch: BatchPolicy = ONE) -> UndeliveredSpansError:
    with pytest.raises(UndeliveredSpansError) as caught:
        async with SpanBatcher(exporter, batch=batch, strict=True) as batcher:
            await batcher.add_spans("a", make_spans(count))
    return caught.value


async def test_a_strict_batchers_error_has_the_servers_reason() -> None:
    error = await ended_with(InMemoryExporter([Refused("401 Unauthorized: token expired", 401)]), 1)
    assert str(error) == "1 span was rejected: 401 Unauthorized: token expired (1)"
    assert error.reasons == {"rejected": {"401 Unauthorized: token expired": 1}, "undelivered": {}}


async def test_a_strict_batchers_error_has_the_reasons_of_spans_handed_back(autojump_clock: MockClock) -> None:
    error = await ended_with(InMemoryExporter(delay=math.inf), 2, BatchPolicy())
    assert str(error) == "2 spans were handed back undelivered: the shutdown deadline passed (2)"
    assert (error.rejected, error.undelivered) == (0, 2)


async def test_reasons_of_the_two_outcomes_are_separate() -> None:
    error = await ended_with(InMemoryExporter([Refused("no"), RuntimeError("bug"), Refused("no")]), 3)
    assert str(error) == (
        "2 spans were rejected and 1 was handed back undelivered; rejected: no (2); "
        "handed back: the exporter raised RuntimeError (1)"
    )


@pytest.mark.parametrize(
    ("different", "end"),
    [(5, "reason 4 (1)"), (6, "and 1 other reason (1)"), (12, "and 7 other reasons (7)"), (40, "reasons (35)")],
)
async def test_the_most_frequent_reasons_are_named_and_the_others_counted(different: int, end: str) -> None:
    answers = [Refused(f"reason {number}") for number in range(different)]
    error = await ended_with(InMemoryExporter(answers), different)
    assert str(error).startswith(f"{different} spans were rejected: reason 0 (1), reason 1 (1)")
    assert str(error).endswith(end)


async def test_the_most_frequent_reason_comes_first() -> None:
    error = await ended_with(InMemoryExporter([Refused("rare"), *[Refused("frequent")] * 3]), 4)
    assert str(error) == "4 spans were rejected: frequent (3), rare (1)"


def test_without_reasons_the_message_has_the_counts() -> None:
    assert str(UndeliveredSpansError(1, 2)) == "1 span was rejected and 2 were handed back undelivered"
    assert str(UndeliveredSpansError(0, 2)) == "2 spans were handed back undelivered"


def test_with_reasons_for_only_one_outcome_the_message_has_those() -> None:
    error = UndeliveredSpansError(1, 2, {"undelivered": {"busy": 2}})
    assert str(error) == "1 span was rejected and 2 were handed back undelivered; handed back: busy (2)"
    assert str(UndeliveredSpansError(1, 0, {})) == "1 span was rejected"


async def test_reasons_beyond_the_twentieth_are_counted_together() -> None:
    error = await ended_with(InMemoryExporter([Refused(f"reason {number}") for number in range(30)]), 30)
    assert str(error).endswith("and more than 15 other reasons (25)")
    assert error.reasons["rejected"]["other reasons"] == 10


async def test_a_long_reason_is_cut_and_stays_on_one_line() -> None:
    error = await ended_with(InMemoryExporter([Refused("first line\nsecond \x1b[31mline\x07 " + "x" * 100_000)]), 1)
    assert str(error).startswith("1 span was rejected: first line second [31mline xxx")
    assert len(str(error)) < 400
    assert str(error).isprintable()


async def test_credentials_that_a_server_repeats_are_not_in_the_message() -> None:
    secret = "dapi-0123456789abcdef"
    answer = Answer(401, headers=[("content-type", "text/plain")], body=f"bad token {secret}".encode())
    async with OTLPReceiver(listen=False, answers=lambda _request: answer) as receiver:
        exporter = OTLPExporter(
            receiver.url, transport=receiver.memory_transport(), headers={"authorization": f"Bearer {secret}"}
        )
        with pytest.raises(UndeliveredSpansError, match="1 span was rejected: 401 Unauthorized: bad token") as caught:
            async with SpanBatcher(exporter, strict=True) as batcher:
                batcher.add_span_nowait("a", make_span())
    for text in (str(caught.value), repr(caught.value), repr(caught.value.reasons)):
        assert secret not in text


async def test_an_exception_can_be_copied_and_pickled() -> None:
    error = await ended_with(InMemoryExporter([Refused("no")]), 1)
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error)
        assert (again.rejected, again.undelivered, again.reasons) == (1, 0, error.reasons)
