"""mlflow(experiments="name"): each name is looked up once, despite failures and cancellation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
import trio
import trio.testing

from tests.support.batchers import make_spans
from tests.support.exporters import SECRET, batch_of
from trio_spanbatch import Delivered, OTLPExporter, Refused, SpanBatcher, TryLater
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, ReceivedRequest, Reset

URI = "http://mlflow.test/team"
JSON = [("content-type", "application/json")]
UNKNOWN = Answer(404, headers=JSON, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Could not find"}')
NO_EXPERIMENT = Answer(404, headers=JSON, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment"}')

Outcome = Answer | Drip | Hang | Reset


def found(experiment_id: object, **fields: object) -> Answer:
    document = {"experiment": {"experiment_id": experiment_id, "lifecycle_stage": "active", **fields}}
    return Answer(headers=JSON, body=json.dumps(document).encode())


@attrs.define
class MLflow:
    """A scripted MLflow: lookups are answered from a script and then from ``ids``, traces from another script."""

    ids: dict[str, str] = attrs.field(factory=dict)
    lookups: list[Outcome] = attrs.field(factory=list)
    traces: list[Outcome] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)

    def __call__(self, request: ReceivedRequest) -> Outcome | None:
        if request.method == "POST":
            assert request.target == "/team/v1/traces"
            return self.traces.pop(0) if self.traces else None
        parts = urlsplit(request.target)
        assert parts.path == "/team/api/2.0/mlflow/experiments/get-by-name"
        (name,) = parse_qs(parts.query)["experiment_name"]
        self.asked.append(name)
        if self.lookups:
            return self.lookups.pop(0)
        return found(self.ids[name]) if name in self.ids else UNKNOWN


@asynccontextmanager
async def serving(server: MLflow, **options: Any) -> AsyncIterator[tuple[OTLPExporter, OTLPReceiver]]:
    """An exporter, and the receiver that stands in for MLflow."""
    async with OTLPReceiver(
        listen=False, path=None, location_header="x-mlflow-experiment-id", answers=server
    ) as receiver:
        exporter = mlflow(URI, experiments="name", environ={}, transport=receiver.memory_transport(), **options)
        yield exporter, receiver
        await exporter.aclose()


async def test_each_name_is_looked_up_once() -> None:
    names = {"support": "3", "für alle 東京 & 1+1=2?": "4"}
    server = MLflow(names)
    async with serving(server, token=SECRET) as (exporter, receiver):
        for name in [*names, *names, *names]:
            assert await exporter.export(batch_of(1, name)) == Delivered()
    assert server.asked == list(names)
    assert {location: len(spans) for location, spans in receiver.stored.items()} == {"3": 3, "4": 3}
    assert {request.header("authorization") for request in receiver.requests} == {f"Bearer {SECRET}"}
    assert len({request.header("user-agent") for request in receiver.requests}) == 1


async def test_concurrent_exports_of_one_name_share_a_lookup(autojump_clock: trio.testing.MockClock) -> None:
    server = MLflow(lookups=[attrs.evolve(found("3"), delay=5), attrs.evolve(found("4"), delay=5)])
    async with serving(server) as (exporter, receiver), trio.open_nursery() as nursery:
        for name in ["support"] * 4 + ["search"]:
            nursery.start_soon(exporter.export, batch_of(1, name))
    assert sorted(server.asked) == ["search", "support"]
    assert sum(map(len, receiver.stored.values())) == 5


async def test_a_failed_lookup_is_shared_too_and_then_repeated(autojump_clock: trio.testing.MockClock) -> None:
    server = MLflow({"support": "3"}, lookups=[Answer(503, delay=5)])
    results: list[Any] = []
    async with serving(server) as (exporter, _receiver):

        async def export() -> None:
            results.append(await exporter.export(batch_of(1, "support")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(export)
        assert server.asked == ["support"]
        assert await exporter.export(batch_of(1, "support")) == Delivered()
    assert results == [TryLater("looking up the experiment 'support': 503 Service Unavailable", status_code=503)] * 3


async def test_an_export_that_waits_for_a_cancelled_lookup_makes_its_own() -> None:
    server = MLflow({"support": "3"}, lookups=[Hang()])
    results: list[Any] = []

    async def export(exporter: OTLPExporter, scope: trio.CancelScope) -> None:
        with scope:
            results.append(await exporter.export(batch_of(1, "support")))

    first = trio.CancelScope()
    async with serving(server) as (exporter, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(export, exporter, first)
        await receiver.wait_for_requests(1)
        nursery.start_soon(export, exporter, trio.CancelScope())
        nursery.start_soon(export, exporter, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
    assert server.asked == ["support", "support"]
    assert first.cancelled_caught
    assert results == [Delivered(), Delivered()]


async def test_an_experiment_that_is_created_later_is_found_by_the_next_batch() -> None:
    server = MLflow()
    async with serving(server) as (exporter, receiver):
        assert await exporter.export(batch_of(1, "support")) == Refused(
            "looking up the experiment 'support': MLflow has no experiment named 'support': create it, or correct the "
            "location",
            404,
        )
        server.ids["support"] = "3"
        assert await exporter.export(batch_of(1, "support")) == Delivered()
    assert list(receiver.stored) == ["3"]


async def test_an_id_that_the_server_no_longer_knows_is_forgotten() -> None:
    server = MLflow({"support": "3"}, traces=[NO_EXPERIMENT])
    async with serving(server) as (exporter, receiver):
        result = await exporter.export(batch_of(1, "support"))
        assert isinstance(result, Refused)
        server.ids["support"] = "4"
        assert await exporter.export(batch_of(1, "support")) == Delivered()
    assert list(receiver.stored) == ["4"]


async def test_a_name_is_looked_up_again_after_five_minutes_and_may_be_deleted_by_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = MLflow({"support": "3"})
    async with serving(server) as (exporter, receiver):
        assert await exporter.export(batch_of(1, "support")) == Delivered()
        await trio.sleep(299)
        assert await exporter.export(batch_of(1, "support")) == Delivered()
        assert server.asked == ["support"]
        await trio.sleep(2)
        server.lookups = [found("3", lifecycle_stage="deleted")]
        result = await exporter.export(batch_of(1, "support"))
        assert isinstance(result, Refused)
        assert "the experiment named 'support' (id 3) is deleted" in result.reason
        assert await exporter.export(batch_of(1, "support")) == Delivered()
    assert server.asked == ["support"] * 3
    assert list(receiver.stored) == ["3"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(429, headers=[("retry-after", "7")]), TryLater("429 Too Many Requests", after=7.0, status_code=429)),
        (Answer(500, body=b"down"), TryLater("500 Internal Server Error: down", status_code=500)),
        (Answer(503), TryLater("503 Service Unavailable", status_code=503)),
        (Answer(599), TryLater("599", status_code=599)),
        (
            Answer(302, headers=[("location", "https://login.test/?token=x")]),
            Refused("302 Found: the redirect to https://login.test/ was not followed", 302),
        ),
        (Answer(400, body=b"what?"), Refused("400 Bad Request: what?", 400)),
        (
            Answer(401, body=b"who?"),
            Refused(
                "401 Unauthorized: who?; give the right username and password, or token (MLFLOW_TRACKING_USERNAME, "
                "_PASSWORD, _TOKEN)",
                401,
            ),
        ),
        (Answer(404, body=b"nothing"), Refused("404 Not Found: nothing; does the tracking URI lead to MLflow?", 404)),
        (
            Answer(headers=[("content-type", "text/html")], body=b"<title>Sign in</title>"),
            Refused("200 OK with a web page instead of an OTLP answer: a login page? (Sign in)", 200),
        ),
        (
            found("3", lifecycle_stage="deleted"),
            Refused("the experiment named 'support' (id 3) is deleted: restore it, or correct the location"),
        ),
        *(
            (answer, Refused("the response has no experiment: does the tracking URI lead to MLflow?", answer.status))
            for answer in [
                Answer(204),
                Answer(headers=JSON, body=b""),
                Answer(headers=JSON, body=b"{"),
                Answer(headers=JSON, body=b"[" * 10_000),
                Answer(headers=JSON, body=b"[]"),
                Answer(headers=JSON, body=b"[" + b"0," * 30_000 + b"0]"),
                Answer(headers=JSON, body=b'{"experiment": []}'),
                Answer(headers=JSON, body=b'{"experiment": {}}'),
                Answer(headers=[*JSON, ("content-encoding", "gzip")], body=b"no gzip"),
                found(3),
                found("3\r\nx: y"),
                found("three"),
            ]
        ),
        (Answer(headers=JSON, body=b" " * 1_100_000), Refused("200: the answer is larger than 1048576 bytes", 200)),
    ],
)
async def test_a_lookup_that_fails_is_reported_with_the_name_and_the_answer(
    answer: Answer, expected: TryLater | Refused
) -> None:
    async with serving(MLflow(lookups=[answer])) as (exporter, receiver):
        result = await exporter.export(batch_of(1, "support"))
    assert result == attrs.evolve(expected, reason=f"looking up the experiment 'support': {expected.reason}")
    assert [request.method for request in receiver.requests] == ["GET"]


@pytest.mark.parametrize("when", ["before_body", "after_body", "mid_response"])
async def test_a_connection_that_breaks_during_a_lookup_makes_no_span_ambiguous(when: Any) -> None:
    async with serving(MLflow(lookups=[Reset(when)])) as (exporter, _receiver):
        result = await exporter.export(batch_of(1, "support"))
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert result.reason.startswith("looking up the experiment 'support': the exchange with mlflow.test:80 broke")


async def test_a_server_that_cannot_be_reached_is_tried_later() -> None:
    async with OTLPReceiver() as receiver:
        uri = receiver.url.removesuffix("/v1/traces")
    exporter = mlflow(uri, experiments="name", environ={})
    result = await exporter.export(batch_of(1, "support"))
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert "cannot connect to 127.0.0.1:" in result.reason
    await exporter.aclose()


def endless() -> Sequence[Callable[[], Outcome]]:
    drip = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    return [Hang, lambda: Drip([drip, *[b" "] * 900], interval=1)]


@pytest.mark.parametrize("make", endless(), ids=["never answers", "a byte a second"])
async def test_a_lookup_takes_no_longer_than_the_timeout(
    make: Callable[[], Outcome], autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(MLflow(lookups=[make()])) as (exporter, receiver):
        began = trio.current_time()
        result = await exporter.export(batch_of(1, "support"))
        assert trio.current_time() - began == pytest.approx(60)
        assert result == TryLater(
            "looking up the experiment 'support': no complete answer from mlflow.test:80 within 60 s"
        )
        # The receiver notices with the next byte that it writes.
        await trio.sleep(2)
        assert receiver.open_connections == 0


async def test_secrets_that_a_server_repeats_are_not_shown() -> None:
    async with serving(MLflow(lookups=[Answer(400, body=f"not {SECRET}".encode())]), token=SECRET) as (exporter, _r):
        result = await exporter.export(batch_of(1, "support"))
    assert result == Refused("looking up the experiment 'support': 400 Bad Request: not ***", 400)


async def test_a_long_name_is_shortened_in_reasons() -> None:
    async with serving(MLflow()) as (exporter, _receiver):
        result = await exporter.export(batch_of(1, "x" * 500))
    assert isinstance(result, Refused)
    assert "x" * 60 in result.reason
    assert "x" * 61 not in result.reason


async def test_a_batcher_delivers_to_names_although_the_first_lookup_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = MLflow({"support": "3", "search": "4"}, lookups=[Answer(503), Answer(503)])
    async with serving(server) as (exporter, receiver), SpanBatcher(exporter) as batcher:
        for name in server.ids:
            await batcher.add_spans(name, make_spans(20))
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.ambiguous) == (40, 0)
    assert {location: len(spans) for location, spans in receiver.stored.items()} == {"3": 20, "4": 20}
