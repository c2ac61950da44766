"""How a batcher reacts to a server's responses: `SpanBatcher` and `OTLPExporter` with a real TCP receiver."""

from __future__ import annotations

import logging
import random
from email.utils import formatdate

import pytest
import trio

from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from tests.support.deliveries import batcher_to, clear_environment, refusing, stored_ids
from tests.support.processes import DEADLINE
from tests.support.receivers import wait_until
from trio_spanbatch import BatchPolicy, InvalidLocationError, Limits, Loss, OTLPExporter, RetryPolicy, SpanBatcher
from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest, Reset, partial_success


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


# Which answers are repeated.


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_429_502_503_and_504_are_repeated_until_the_server_takes_the_batch(status: int) -> None:
    spans = make_spans(3)
    async with OTLPReceiver(answers=[Answer(status)] * 3) as receiver:
        async with batcher_to(receiver) as batcher:
            batcher.add_spans_nowait("a", spans)
            report = await batcher.flush()
        assert report.delivered == 3
        assert stored_ids(receiver) == ids_of(spans)
        assert len({request.body for request in receiver.requests}) == 1, "the same request"
    statistics = batcher.statistics()
    assert (statistics.requests, statistics.retries, statistics.ambiguous, statistics.splits) == (4, 3, 0, 0)


NEVER_REPEATED = [401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 414, 415, 416, 417, 418, 421, 423, 424]
NEVER_REPEATED += [425, 426, 428, 431, 451, 499, 500, 501, 505, 506, 507, 508, 510, 511, 520, 599]


async def test_any_other_4xx_or_5xx_is_neither_retried_nor_split_and_keeps_the_servers_message() -> None:
    def answer(request: ReceivedRequest) -> Answer:
        return Answer(int(request.location), body=b"so it is")

    losses: list[Loss] = []
    async with (
        OTLPReceiver(location_header="x-tenant", answers=answer) as receiver,
        batcher_to(receiver, on_loss=losses.append) as batcher,
    ):
        for status in NEVER_REPEATED:
            batcher.add_spans_nowait(str(status), make_spans(20))
        await batcher.flush()
    for status in NEVER_REPEATED:
        counts = batcher.statistics().locations[str(status)]
        assert (counts.requests, counts.splits, counts.rejected) == (1, 0, 20), status
    assert sorted((loss.location, loss.status_code) for loss in losses) == [(str(n), n) for n in NEVER_REPEATED]
    assert all(loss.reason.startswith(loss.location) and loss.reason.endswith("so it is") for loss in losses)


@pytest.mark.parametrize("value", ["61", "3600", "9" * 400, formatdate(4e9, usegmt=True)])
async def test_a_retry_after_that_ends_after_max_elapsed_hands_the_batch_back_at_once(value: str) -> None:
    retry = RetryPolicy(max_elapsed=60)
    async with OTLPReceiver(answers=[Answer(503, headers=[("retry-after", value)])]) as receiver:
        async with batcher_to(receiver, retry=retry) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert (report.undelivered, len(receiver.requests)) == (3, 1)
    (loss,) = batcher.undelivered
    assert (loss.reason, loss.status_code) == ("retries exhausted: 503 Service Unavailable", 503)


async def test_a_retry_after_that_ends_after_the_drain_hands_the_batch_back_at_once() -> None:
    retry = RetryPolicy(max_elapsed=7200)
    async with OTLPReceiver(answers=[Answer(429, headers=[("retry-after", "3600")])]) as receiver:
        async with batcher_to(receiver, retry=retry, shutdown_timeout=600) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert len(receiver.requests) == 1
    (loss,) = batcher.undelivered
    assert "before the shutdown deadline" in loss.reason
    assert "429" in loss.reason


@pytest.mark.parametrize(
    "value",
    ["0", "", "soon", "-5", "3600.5", "0x3600", "1e9", "3600 seconds", "Thu, 99 Foo 2099 99:99:99 GMT", "\xb2",
     formatdate(0, usegmt=True), "Sunday, 06-Nov-94 08:49:37 GMT"],
)  # fmt: skip
async def test_an_invalid_or_past_retry_after_is_replaced_by_the_backoff(value: str) -> None:
    async with (
        OTLPReceiver(answers=[Answer(503, headers=[("retry-after", value)])]) as receiver,
        batcher_to(receiver) as batcher,
    ):
        batcher.add_spans_nowait("a", make_spans(3))
        with trio.fail_after(DEADLINE):
            report = await batcher.flush()
    assert (report.delivered, batcher.statistics().requests) == (3, 2)


# Spans that the server did not accept.


@pytest.mark.parametrize("content_type", ["application/x-protobuf", "application/json"])
@pytest.mark.parametrize(("said", "rejected"), [(2, 2), (5, 5), (6, 5), (10**15, 5), (-1, 0), (-(10**15), 0)])
async def test_partial_success_is_counted_as_rejected_within_the_batch_with_the_servers_message_and_never_retried(
    said: int, rejected: int, content_type: str
) -> None:
    losses: list[Loss] = []
    answers = [partial_success(said, "too old", content_type=content_type)]
    async with OTLPReceiver(answers=answers) as receiver:
        async with batcher_to(receiver, on_loss=losses.append) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            report = await batcher.flush()
        assert len(receiver.requests) == 1
    assert (report.delivered, report.rejected, report.undelivered) == (5 - rejected, rejected, 0)
    assert [(loss.count, loss.outcome, loss.reason) for loss in losses] == (
        [(rejected, "rejected", "too old")] if rejected else []
    )


async def test_a_message_with_zero_rejected_spans_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        OTLPReceiver(answers=[partial_success(0, "v1 ends in May")]) as receiver,
        batcher_to(receiver) as batcher,
    ):
        batcher.add_spans_nowait("a", make_spans(5))
        report = await batcher.flush()
    assert (report.delivered, len(receiver.requests)) == (5, 1)
    assert [(record.levelno, record.getMessage()) for record in caplog.records if "trio_spanbatch" in record.name] == [
        (logging.WARNING, "SpanBatcher: the server for 'a' accepted a batch with a warning: v1 ends in May")
    ]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_of_512_spans_of_which_8_are_bad_504_are_delivered_and_8_rejected_each_with_the_servers_words(
    status: int,
) -> None:
    spans = make_spans(512)
    bad = random.Random(status).sample(ids_of(spans), 8)
    losses: list[Loss] = []
    async with OTLPReceiver(answers=refusing(bad, status)) as receiver:
        async with batcher_to(receiver, on_loss=losses.append) as batcher:
            batcher.add_spans_nowait("a", spans)
            report = await batcher.flush()
        assert (report.delivered, report.rejected, report.undelivered) == (504, 8, 0)
        assert stored_ids(receiver) == sorted(set(ids_of(spans)) - set(bad))
    assert sorted(span_ids(span for loss in losses for span in loss.batch.spans)) == sorted(bad)
    assert {(loss.count, loss.status_code) for loss in losses} == {(1, status)}
    assert all("BAD_SPAN: span" in loss.reason for loss in losses)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_server_that_refuses_everything_gets_at_most_32_requests_and_then_one_per_batch_until_one_passes(
    status: int,
) -> None:
    refuse = True
    bad = make_span()

    def answer(request: ReceivedRequest) -> Answer | None:
        return Answer(status) if refuse else refusing([bad.context.span_id], status)(request)

    async with OTLPReceiver(answers=answer) as receiver, batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", make_spans(512))
        assert (await batcher.flush()).rejected == 512
        assert 1 < len(receiver.requests) <= 32
        for _ in range(3):
            seen = len(receiver.requests)
            batcher.add_spans_nowait("a", make_spans(512))
            assert (await batcher.flush()).rejected == 512
            assert len(receiver.requests) == seen + 1
        refuse = False
        batcher.add_spans_nowait("a", [*make_spans(200), bad, *make_spans(311)])
        report = await batcher.flush()
        assert (report.delivered, report.rejected) == (511, 1)


async def test_after_a_413_batches_are_made_small_enough_and_only_the_span_that_is_too_large_is_rejected() -> None:
    losses: list[Loss] = []
    async with (
        OTLPReceiver(max_request_bytes=20_000) as receiver,
        batcher_to(receiver, on_loss=losses.append) as batcher,
    ):
        batcher.add_spans_nowait("a", [*make_spans(150, size=1000), make_span("huge", size=30_000)])
        report = await batcher.flush()
        assert (report.delivered, report.rejected) == (150, 1)
        seen = len(receiver.requests)
        batcher.add_spans_nowait("a", make_spans(150, size=1000))
        assert (await batcher.flush()).delivered == 150
        later = receiver.requests[seen:]
        assert all(request.body for request in later), "none was refused for its size"
    assert [(loss.status_code, len(loss.batch.spans)) for loss in losses] == [(413, 1)]


async def test_a_span_larger_than_max_request_bytes_is_rejected_unsent_and_the_others_are_delivered() -> None:
    losses: list[Loss] = []
    async with (
        OTLPReceiver() as receiver,
        batcher_to(receiver, exporter={"max_request_bytes": 20_000}, on_loss=losses.append) as batcher,
    ):
        batcher.add_spans_nowait("a", [*make_spans(30), make_span("huge", size=30_000)])
        report = await batcher.flush()
        assert (report.delivered, report.rejected) == (30, 1)
        assert all(len(request.body) <= 20_000 for request in receiver.requests)
    assert [len(loss.batch.spans) for loss in losses] == [1]
    assert "more than 20000 (max_request_bytes) are not sent" in losses[0].reason


# Connections.


async def test_a_batcher_sends_nothing_without_spans() -> None:
    async with OTLPReceiver() as receiver:
        async with batcher_to(receiver) as batcher:
            await batcher.flush()
        assert (receiver.requests, receiver.connections) == ([], 0)


async def test_connections_are_kept_alive_between_batches() -> None:
    async with OTLPReceiver(answers=[None, Answer(500), Answer(404), None, Answer(204)]) as receiver:
        async with batcher_to(receiver) as batcher:
            for _ in range(6):
                batcher.add_spans_nowait("a", make_spans(2))
                await batcher.flush()
        assert (len(receiver.requests), receiver.connections) == (6, 1)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_batch_is_repeated_on_another_connection_after_a_502_503_or_504(status: int) -> None:
    async with OTLPReceiver(answers=[None, Answer(status), None]) as receiver:
        async with batcher_to(receiver) as batcher:
            for _ in range(3):
                batcher.add_spans_nowait("a", make_spans(2))
                await batcher.flush()
        assert (len(receiver.requests), receiver.connections) == (4, 2)


async def test_there_are_never_more_connections_than_max_exports() -> None:
    most = 0

    def look(request: ReceivedRequest, status: int | None) -> None:
        nonlocal most
        most = max(most, receiver.open_connections)

    async with OTLPReceiver(location_header="x-tenant", on_request=look) as receiver:
        async with batcher_to(receiver, batch=BatchPolicy(max_spans=5), limits=Limits(max_exports=3)) as batcher:
            for location in range(20):
                batcher.add_spans_nowait(str(location), make_spans(20))
            assert (await batcher.flush()).delivered == 400
        assert 1 < most <= 3
        assert receiver.connections <= 3


async def test_a_location_never_has_more_connections_than_max_exports_per_location() -> None:
    most = 0

    def look(request: ReceivedRequest, status: int | None) -> None:
        nonlocal most
        most = max(most, receiver.open_connections)

    limits = Limits(max_exports=10, max_exports_per_location=2)
    async with OTLPReceiver(location_header="x-tenant", on_request=look) as receiver:
        async with batcher_to(receiver, batch=BatchPolicy(max_spans=5), limits=limits) as batcher:
            batcher.add_spans_nowait("a", make_spans(200))
            assert (await batcher.flush()).delivered == 200
        assert (most, receiver.connections) == (2, 2)


async def test_each_location_has_its_own_queue_acknowledgement_and_retries() -> None:
    def answer(request: ReceivedRequest) -> Answer | None:
        return {"busy": Answer(503), "gone": Answer(404)}.get(request.location)

    retry = RetryPolicy(initial=3600, maximum=3600, max_elapsed=7200)
    async with (
        OTLPReceiver(location_header="x-tenant", answers=answer) as receiver,
        batcher_to(receiver, retry=retry, shutdown_timeout=1e-3) as batcher,
    ):
        for location in ("busy", "gone", "well"):
            batcher.add_spans_nowait(location, make_spans(3))
        well = await batcher.flush("well")
        gone = await batcher.flush("gone")
        batcher.add_spans_nowait("well", make_spans(3))
        await batcher.flush("well")
        busy = batcher.statistics().locations["busy"]
        assert (busy.queued + busy.in_flight, busy.delivered) == (3, 0)
    assert (well.delivered, gone.rejected) == (3, 3)
    assert batcher.statistics().locations["well"].delivered == 6
    assert batcher.statistics().undelivered == 3


# Unknown outcomes.


@pytest.mark.parametrize("outcome", [
    Reset("before_body"), Reset("after_body"), Reset("after_body", store=True), Reset("mid_response", store=True),
], ids=["before the body", "after the body", "after storing", "in the response"])  # fmt: skip
async def test_a_connection_that_breaks_is_retried_and_its_spans_are_counted_as_ambiguous_once(
    outcome: Reset,
) -> None:
    spans = make_spans(3)
    async with OTLPReceiver(answers=[outcome, outcome]) as receiver, batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", spans)
        batcher.add_spans_nowait("b", make_spans(2))
        report = await batcher.flush()
        # Delivery is at least once: a server that had stored them gets them again.
        assert set(stored_ids(receiver)) >= set(ids_of(spans))
    statistics = batcher.statistics()
    assert (report.delivered, statistics.delivered, statistics.retries) == (5, 5, 2)
    assert statistics.ambiguous in (3, 2, 5), "of the locations whose connections broke"
    assert statistics.ambiguous == sum(counts.ambiguous for counts in statistics.locations.values())


async def test_a_server_that_cannot_be_reached_is_retried_and_nothing_is_ambiguous() -> None:
    async with OTLPReceiver() as receiver:
        port = receiver.port
    async with batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.flush)
            await wait_until(lambda: batcher.statistics().retries > 1)
            async with OTLPReceiver(port=port) as again:
                await again.wait_for_requests(1)
                await wait_until(lambda: batcher.statistics().delivered == 3)
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.ambiguous) == (3, 0)


# Logging.


async def test_the_first_failure_of_a_location_and_its_recovery_are_logged_with_the_users_logger_and_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("mine")
    caplog.set_level(logging.DEBUG, "mine")
    answers = [Answer(503, body=b"overloaded")] * 20
    async with (
        OTLPReceiver(answers=answers) as receiver,
        batcher_to(receiver, logger=logger, log_level=logging.INFO) as batcher,
    ):
        batcher.add_spans_nowait("a", make_spans(3))
        await batcher.flush()
    assert batcher.statistics().requests == 21
    mine = [record for record in caplog.records if record.name == "mine"]
    assert {record.levelno for record in mine} == {logging.INFO}
    first, last = (record.getMessage() for record in mine)
    assert first == "SpanBatcher: exports to 'a' fail: 503 Service Unavailable: overloaded"
    assert last.startswith("SpanBatcher: exports to 'a' succeed again: 20 attempts failed in ")


# Secrets and locations.

SECRET = "dapi-0123456789abcdef"


async def test_secrets_appear_in_no_log_repr_exception_loss_or_statistic_even_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "trio_spanbatch"):
        caplog.set_level(logging.DEBUG, name)
    echo = f"not with Bearer {SECRET}".encode()
    answers: list[Outcome] = [
        Reset(),
        Answer(503, body=echo),
        Answer(302, headers=[("location", "http://elsewhere.test/login")], body=echo),
        Answer(401, body=echo),
        partial_success(1, echo.decode()),
    ]
    losses: list[Loss] = []
    async with OTLPReceiver(answers=answers) as receiver:
        exporter = {"headers": {"authorization": f"Bearer {SECRET}"}}
        async with batcher_to(receiver, exporter=exporter, on_loss=losses.append) as batcher:
            for _ in range(4):
                batcher.add_spans_nowait("a", make_spans(2))
                await batcher.flush()
        assert all(request.header("authorization") == f"Bearer {SECRET}" for request in receiver.requests)
    assert len(losses) == 3
    shown = caplog.text + repr((losses, batcher, batcher.statistics(), batcher.undelivered))
    assert SECRET not in shown
    assert SECRET.encode().hex() not in shown


@pytest.mark.parametrize(
    "location", ["", " a", "a ", "a\rb", "a\nb", "a\r\nx-admin: 1", "a\0b", "a\tb", "caf\xe9", "\u4e2d", "\x7f"]
)
async def test_a_location_that_no_header_can_carry_is_refused_before_anything_is_accepted(location: str) -> None:
    async with OTLPReceiver() as receiver:
        async with batcher_to(receiver) as batcher:
            with pytest.raises(InvalidLocationError):
                batcher.add_span_nowait(location, make_span())
            with pytest.raises(InvalidLocationError):
                batcher.add_spans_nowait(location, make_spans(2))
            with pytest.raises(InvalidLocationError):
                await batcher.add_span(location, make_span())
            with pytest.raises(InvalidLocationError):
                await batcher.add_spans(location, make_spans(2))
            assert batcher.statistics().accepted == 0
        assert receiver.requests == []


async def test_flush_and_shutdown_tell_success_failure_and_timeout_apart() -> None:
    def answer(request: ReceivedRequest) -> Answer | None:
        return {"busy": Answer(503), "gone": Answer(404), "slow": Answer(delay=3600)}.get(request.location)

    retry = RetryPolicy(initial=3600, maximum=3600, max_elapsed=1e-6)
    async with (
        OTLPReceiver(location_header="x-tenant", answers=answer) as receiver,
        batcher_to(receiver, retry=retry, shutdown_timeout=0.01) as batcher,
    ):
        for location in ("busy", "gone", "well"):
            batcher.add_spans_nowait(location, make_spans(2))
        report = await batcher.flush()
        batcher.add_spans_nowait("slow", make_spans(2))
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.001):
            await batcher.flush()
    assert (report.delivered, report.rejected, report.undelivered) == (2, 2, 2)
    assert {loss.location: loss.reason for loss in batcher.undelivered} == {
        "busy": "retries exhausted: 503 Service Unavailable",
        "slow": "the shutdown deadline passed",
    }


async def test_a_batch_over_max_request_bytes_is_sent_in_parts_and_every_span_arrives() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url, max_request_bytes=2000)
        async with SpanBatcher(exporter) as batcher:
            for _ in range(2):
                batcher.add_spans_nowait("a", make_spans(8, size=600))
                report = await batcher.flush()
                assert (report.delivered, report.rejected) == (8, 0)
    assert all(len(request.content) <= 2000 for request in receiver.requests)
