"""Spans that a real MLflow server cannot read are rejected one by one; those around them are stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.destinations.mlflow_support import MLflowServer, running_mlflow, stored_spans
from trio_spanbatch import BatchPolicy, EncodedSpan, Loss, RetryPolicy, SpanBatcher
from trio_spanbatch.destinations import mlflow

pytestmark = pytest.mark.long

TRACE_ID = 0x90150
# Each violates a different rule of OTLP; our encoder cannot produce any of them.
POISON = {17: {"span_id": b"\x01" * 9}, 18: {"trace_id": b""}, 83: {"trace_id": b"\x02" * 17}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


def span(number: int) -> EncodedSpan:
    message = SpanMessage(
        trace_id=TRACE_ID.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        name=f"step {number}",
        start_time_unix_nano=number,
        end_time_unix_nano=number + 1,
    )
    for field, value in POISON.get(number, {}).items():
        setattr(message, field, value)
    return EncodedSpan(message.SerializeToString())


async def test_of_100_spans_with_three_bad_ones_97_are_stored_and_three_rejected_with_their_reasons(
    server: MLflowServer,
) -> None:
    experiment = server.create_experiment("poisoned")
    losses: list[Loss] = []
    batch = BatchPolicy(max_spans=100, max_delay=60)
    exporter = mlflow(server.uri, environ={})
    retry = RetryPolicy(attempt_timeout=60)
    async with SpanBatcher(exporter, batch=batch, retry=retry, on_loss=losses.append) as batcher:
        batcher.add_spans_nowait(experiment, [span(number) for number in range(1, 101)])
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.rejected, statistics.undelivered) == (97, 3, 0)
    assert all(loss.outcome == "rejected" and loss.reason.startswith("422") for loss in losses)
    rejected = [lost.to_message().name for loss in losses for lost in loss.batch.spans]
    assert sorted(rejected) == sorted(f"step {number}" for number in POISON)
    stored = stored_spans(server.trace(TRACE_ID))
    expected = [number for number in range(1, 101) if number not in POISON]
    assert sorted(int.from_bytes(message.span_id, "big") for message in stored) == expected
