"""Zerobus' endpoint: looked up in the workspace once, and always a host of Databricks."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.destinations.databricks_support import METASTORE, TABLE, json_answer
from tests.destinations.zerobus_support import HOST, OTHER_TABLE, setup_of
from tests.support.batchers import make_spans
from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, Refused, SpanBatcher, TryLater
from trio_spanbatch.destinations.zerobus import _host_in
from trio_spanbatch.destinations.zerobus_auth import Answer as Answered
from trio_spanbatch.testing import Answer, Hang

WORKSPACE = "dbc-1.cloud.databricks.com"


async def test_the_endpoint_is_found_through_the_workspace_which_is_named_by_its_id(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of() as setup:
        assert setup.exporter.endpoint == f"https://{WORKSPACE}"
        for table in (TABLE, OTHER_TABLE):
            assert await setup.export(batch_of(2, table)) == Delivered()
        assert setup.exporter.endpoint == f"https://{HOST}/v1/traces"
        assert setup.workspace.summaries == 1
        assert setup.transport.asked == [WORKSPACE, WORKSPACE, HOST, WORKSPACE, HOST]
        # The fake workspace answers only requests that name it.
        (summary,) = [request for request in setup.workspace.receiver.requests if "summary" in request.target]
        assert summary.header("x-databricks-workspace-id") == "12345"


async def test_concurrent_exports_share_one_look_up_and_its_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(metastore=Answer(503, delay=3)) as setup:
        results: list[Any] = []

        async def one(number: int) -> None:
            results.append(await setup.export(batch_of(1, f"main.agents.spans_{number}")))

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(one, number)
        reason = (
            f"no endpoint of Zerobus: https://{WORKSPACE} answered 503 to the request for its metastore; set "
            "ZEROBUS_ENDPOINT, or give the endpoint"
        )
        assert results == [TryLater(reason)] * 64
        assert setup.workspace.summaries == 1


async def test_a_look_up_that_failed_is_made_again_and_the_batcher_delivers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(metastore=Hang()) as setup:

        async def mend() -> None:
            await trio.sleep(60)
            setup.workspace.metastore = dict(METASTORE)

        async with trio.open_nursery() as nursery, SpanBatcher(setup.exporter, shutdown_timeout=300) as batcher:
            nursery.start_soon(mend)
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.ambiguous) == (3, 0)


@pytest.mark.parametrize(
    ("metastore", "result"),
    [
        (
            json_answer(404, {"error_code": "METASTORE_DOES_NOT_EXIST"}),
            Refused(
                f"no endpoint of Zerobus: https://{WORKSPACE} answered 404 to the request for its metastore; set "
                "ZEROBUS_ENDPOINT, or give the endpoint"
            ),
        ),
        (
            json_answer(401, {}),
            Refused(
                f"no endpoint of Zerobus: https://{WORKSPACE} answered 401 to the request for its metastore; set "
                "ZEROBUS_ENDPOINT, or give the endpoint"
            ),
        ),
        (
            Answer(302, headers=[("location", "https://evil.example")]),
            Refused(
                f"no endpoint of Zerobus: https://{WORKSPACE} answered 302 to the request for its metastore; set "
                "ZEROBUS_ENDPOINT, or give the endpoint"
            ),
        ),
        (Hang(), TryLater(f"no endpoint of Zerobus: https://{WORKSPACE}: no complete answer from")),
    ],
)
async def test_a_workspace_that_does_not_return_its_metastore_is_reported(
    metastore: Any, result: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of(metastore=metastore) as setup:
        got = await setup.export(batch_of(1, TABLE))
        assert type(got) is type(result)
        assert got.reason.startswith(result.reason)
        assert set(setup.transport.asked) == {WORKSPACE}


@pytest.mark.parametrize(
    ("summary", "host"),
    [
        (METASTORE, HOST),
        ({"cloud": "AWS", "region": "US-WEST-2"}, HOST),
        ({"global_metastore_id": "aws:us-west-2:6f2a"}, HOST),
        ({"cloud": "azure", "region": "eastus"}, "12345.zerobus.eastus.azuredatabricks.net"),
        ({"cloud": "gcp", "region": "us-east1"}, "12345.zerobus.us-east1.gcp.databricks.com"),
    ],
)
def test_the_host_is_derived_from_cloud_and_region(summary: dict[str, object], host: str) -> None:
    assert _host_in(Answered(200, summary), "12345", staging=False) == host


def test_the_host_for_a_staging_workspace_contains_staging() -> None:
    assert (
        _host_in(Answered(200, METASTORE), "12345", staging=True)
        == "12345.zerobus.us-west-2.staging.cloud.databricks.com"
    )


EVIL = [
    ("evil.example/", "12345"),
    ("evil.example/.us-west-2", "12345"),
    ("evil.example#", "12345"),
    ("evil.example?", "12345"),
    ("evil.example\\", "12345"),
    ("user:pass@evil.example", "12345"),
    ("evil.example:443", "12345"),
    ("us-west-2.evil.example", "12345"),
    ("us-west-2.staging", "12345"),
    ("us-west-2.", "12345"),
    (".us-west-2", "12345"),
    ("us west", "12345"),
    ("us-west-2\n", "12345"),
    ("-us", "12345"),
    ("us%2ewest", "12345"),
    ("\uff55s-west-2", "12345"),
    ("x" * 64, "12345"),
    ("us_west", "12345"),
    ("us-west-2", "evil.example/"),
    ("us-west-2", "evil.example/12345"),
    ("us-west-2", "1@evil"),
    ("us-west-2", ""),
    ("us-west-2", "1.2"),
    ("", "12345"),
]


@pytest.mark.parametrize(("region", "workspace_id"), EVIL)
def test_no_response_of_a_workspace_leads_to_a_host_that_is_not_one_of_zerobus(region: str, workspace_id: str) -> None:
    assert _host_in(Answered(200, {"cloud": "aws", "region": region}), workspace_id, staging=False) is None


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"cloud": "evil.example", "region": "us-west-2"},
        {"cloud": "", "region": "us-west-2"},
        {"cloud": ["aws"], "region": {"a": 1}},
        {"global_metastore_id": "aws"},
        {"cloud": "aws"},
    ],
)
async def test_no_credential_is_sent_to_a_host_that_is_not_one_of_zerobus(
    summary: dict[str, object], autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of(metastore=summary) as setup:
        assert await setup.export(batch_of(1, TABLE)) == Refused(
            f"no endpoint of Zerobus: the cloud and region in the metastore summary of https://{WORKSPACE} are not "
            "those of a Zerobus host; set ZEROBUS_ENDPOINT, or give the endpoint"
        )
        assert set(setup.transport.asked) == {WORKSPACE}
        # Nor is a token for the table requested.
        assert setup.workspace.token_requests == []


async def test_a_cancelled_look_up_is_taken_over_by_a_waiting_export(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(metastore=Answer(503, delay=9)) as setup:
        results: list[Any] = []

        async def one() -> None:
            results.append(await setup.export(batch_of(1, TABLE)))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as first:
                    first.start_soon(one)
                    await setup.workspace.receiver.wait_for_requests(1)
                    nursery.start_soon(one)
                    await trio.sleep(1)
                    setup.workspace.metastore = dict(METASTORE)
                    scope.cancel()
        assert results == [Delivered()]


async def test_an_attempt_with_a_slow_look_up_still_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(seconds=4.0) as setup:
        setup.auth.delay = 9.0
        began = trio.current_time()
        result = await setup.export(batch_of(1, TABLE))
        assert trio.current_time() - began == 4.0
        assert isinstance(result, TryLater)
        assert not result.ambiguous
        assert result.reason.startswith("no endpoint of Zerobus within 4 s")


async def test_closing_closes_the_given_transport_once(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of() as setup:
        assert await setup.export(batch_of(1, TABLE)) == Delivered()
        await setup.exporter.aclose()
        assert setup.transport.closed == 1
        with pytest.raises(trio.ClosedResourceError):
            await setup.export(batch_of(1, TABLE))
