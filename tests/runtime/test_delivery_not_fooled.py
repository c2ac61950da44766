"""No response makes a batcher hang, lose spans or use unbounded memory, with a real TCP receiver."""

from __future__ import annotations

import gzip
import logging
import math

import pytest

from tests.support import hostile_servers
from tests.support.batchers import make_spans
from tests.support.deliveries import batcher_to, clear_environment
from tests.support.exporters import no_connections_left
from tests.support.processes import DEADLINE
from tests.support.receivers import nothing_leaks
from trio_spanbatch import Loss, RetryPolicy
from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest, partial_success

HTML = [("content-type", "text/html; charset=utf-8")]
PROTOBUF = [("content-type", "application/x-protobuf")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


# Bounds.


@pytest.mark.long
async def test_no_hostile_server_causes_a_silent_loss_or_affects_another_location(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(request: ReceivedRequest) -> Outcome | None:
        return hostile_servers.FAST[request.location]() if request.location != "well" else None

    # Each has one attempt, as a second one would not differ. All of them at once need some seconds of CPU time, so
    # the usual timeouts would be too short on a busy machine.
    retry = RetryPolicy(initial=3600, maximum=3600, max_elapsed=1e-6, attempt_timeout=math.inf)
    losses: list[Loss] = []
    with nothing_leaks():
        async with OTLPReceiver(location_header="x-tenant", answers=answer, keep=False) as receiver:
            options = {"timeout": DEADLINE}
            async with batcher_to(receiver, retry=retry, exporter=options, on_loss=losses.append) as batcher:
                for location in [*hostile_servers.FAST, "well"]:
                    batcher.add_spans_nowait(location, make_spans(3))
                report = await batcher.flush()
            await no_connections_left(receiver)
    assert report.locations["well"].delivered == 3
    for location in hostile_servers.FAST:
        counts = report.locations[location]
        lost = [loss for loss in losses if loss.location == location]
        assert counts.rejected + counts.undelivered == sum(loss.count for loss in lost)
        assert counts.delivered + counts.rejected + counts.undelivered == 3
        assert all(0 < len(loss.reason) < 300 for loss in lost)


# Not fooled.


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(status: int) -> None:
    losses: list[Loss] = []
    async with OTLPReceiver() as elsewhere:
        answers = [Answer(status, headers=[("location", elsewhere.url)])]
        async with OTLPReceiver(answers=answers) as receiver:
            options = {"headers": {"authorization": "Bearer dapi-0123456789"}}
            async with batcher_to(receiver, exporter=options, on_loss=losses.append) as batcher:
                batcher.add_spans_nowait("a", make_spans(3))
                report = await batcher.flush()
            assert (report.rejected, len(receiver.requests), elsewhere.connections) == (3, 1, 0)
    assert [loss.status_code for loss in losses] == [status]
    assert "was not followed" in losses[0].reason


@pytest.mark.parametrize("headers", [HTML, []])
async def test_a_200_of_text_html_is_a_failure_that_says_login_page(headers: list[tuple[str, str]]) -> None:
    page = b"<!DOCTYPE html><html><head><title>Sign in - Example</title></head><body>...</body></html>"
    losses: list[Loss] = []
    async with OTLPReceiver(answers=[Answer(200, headers=headers, body=page, store=False)]) as receiver:
        async with batcher_to(receiver, on_loss=losses.append) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert (report.delivered, report.rejected, len(receiver.requests)) == (0, 3, 1)
    assert "a login page?" in losses[0].reason
    assert "Sign in - Example" in losses[0].reason


@pytest.mark.parametrize(
    "answer",
    [
        Answer(204),
        Answer(200),
        Answer(200, headers=PROTOBUF),
        Answer(200, headers=[("content-type", "text/plain")], body=b"200 OK"),
        Answer(200, body=b"OK"),
        Answer(202, headers=[("content-type", "application/json")], body=b"{}"),
        Answer(299),
    ],
    ids=["204", "empty 200", "empty protobuf", "plain text", "no type", "JSON 202", "299"],
)
async def test_204_an_empty_200_and_a_plain_text_200_are_deliveries(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    async with OTLPReceiver(answers=[answer]) as receiver, batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
    assert (report.delivered, len(receiver.requests)) == (3, 1)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_protobuf_200_that_does_not_parse_is_a_delivery_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        OTLPReceiver(answers=[Answer(200, headers=PROTOBUF, body=b"\xff\xff\xff")]) as receiver,
        batcher_to(receiver) as batcher,
    ):
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
    assert (report.delivered, len(receiver.requests)) == (3, 1)
    warning = "SpanBatcher: the server for 'a' accepted a batch with a warning: the answer's body cannot be read as"
    assert any(record.getMessage().startswith(warning) for record in caplog.records)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, headers=[("content-type", "application/json")], body=b'{"error": "no such table"}'),
        Answer(207, body=b'[{"status": 200}, {"status": 404, "message": "no such table"}]'),
        Answer(200, headers=PROTOBUF, body=b"\x08\x05\x12\x0dno such table"),
    ],
    ids=["JSON", "207", "google.rpc.Status"],
)
async def test_an_error_in_the_body_of_a_2xx_is_a_delivery_that_is_warned_about_once(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    losses: list[Loss] = []
    async with OTLPReceiver(answers=[answer] * 3) as receiver:
        async with batcher_to(receiver, on_loss=losses.append) as batcher:
            for _ in range(3):
                batcher.add_spans_nowait("a", make_spans(3))
                await batcher.flush()
        assert (batcher.statistics().delivered, batcher.statistics().rejected) == (9, 0)
    assert losses == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "the server for 'a' accepted a batch with a warning: the answer's body says an error" in warnings[0]
    assert "no such table" in warnings[0]


@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", "application/octet-stream", None])
@pytest.mark.parametrize("compressed", [False, True])
async def test_rejected_spans_are_counted_regardless_of_the_responses_content_type(
    kind: str | None, compressed: bool
) -> None:
    said = partial_success(2, "too old")
    headers = [] if kind is None else [("content-type", kind)]
    headers += [("Content-Encoding", "identity, GZIP")] if compressed else []
    body = gzip.compress(said.body) if compressed else said.body
    losses: list[Loss] = []
    async with (
        OTLPReceiver(answers=[Answer(200, headers=headers, body=body, store=False)]) as receiver,
        batcher_to(receiver, on_loss=losses.append) as batcher,
    ):
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (1, 2)
    assert "too old" in losses[0].reason
