"""Tests of the travel desk with the fixtures of trio_spanbatch: no network, and no time passes."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from travel_desk import Services, Trip, price, serve, think

from trio_spanbatch.testing import Answer, ExportedSpans, OTLPReceiver, ReceivedRequest, outage, poison

pytestmark = pytest.mark.trio

PARIS, ROME, OSLO = Trip("acme", "Paris"), Trip("acme", "Rome"), Trip("globex", "Oslo")
TRIP = ["plan trip", "tool flight", "tool hotel", "chat"]


async def broken(city: str) -> int:
    """Fail after half a second."""
    await trio.sleep(0.5)
    raise ConnectionError(f"no rooms in {city}")


async def forever(city: str) -> int:
    """Never answer."""
    await trio.sleep_forever()


async def test_each_tenants_spans_are_at_its_location(
    otlp_receiver: OTLPReceiver, exported_spans: ExportedSpans, autojump_clock: trio.testing.MockClock
) -> None:
    """Also while the server fails: two trips of one tenant, one of another."""
    otlp_receiver.set_answers([503, outage(10), Answer(429, headers=[("retry-after", "3")])])
    plans = await serve([PARIS, ROME, OSLO], Services(think, {"flight": price, "hotel": price}))
    assert plans[OSLO] == "Visit Oslo for 80!"
    otlp_receiver.assert_delivered("acme", TRIP * 2)
    otlp_receiver.assert_delivered("globex", TRIP)
    assert exported_spans.at("globex").tree() == [
        {
            "name": "plan trip",
            "attributes": {"city": "Oslo", "total": 80},
            "children": [
                {"name": "tool flight", "attributes": {"city": "Oslo", "price": 40}, "children": []},
                {"name": "tool hotel", "attributes": {"city": "Oslo", "price": 40}, "children": []},
                {"name": "chat", "attributes": {"prompt": "Oslo for 80"}, "children": []},
            ],
        }
    ]


async def test_a_customer_who_waits_too_long_leaves_spans_that_say_so(
    exported_spans: ExportedSpans, autojump_clock: trio.testing.MockClock
) -> None:
    """The deadline cancels the tools, and their spans arrive."""
    assert await serve([PARIS], Services(think, {"hotel": forever})) == {}
    (trip,) = exported_spans.at("acme").tree()
    (hotel,) = trip["children"]
    assert hotel == {"name": "tool hotel", "attributes": {"city": "Paris", "trio.cancelled": True}, "children": []}


async def test_a_tool_that_fails_cancels_the_others(
    exported_spans: ExportedSpans, autojump_clock: trio.testing.MockClock
) -> None:
    """One span has failed, and the other was cancelled."""
    assert await serve([PARIS], Services(think, {"flight": forever, "hotel": broken})) == {}
    spans = {span["name"]: span for span in exported_spans.at("acme")}
    assert spans["tool flight"]["attributes"] == {"city": "Paris", "trio.cancelled": True}
    hotel = spans["tool hotel"]
    assert (hotel["status"], hotel["status_message"]) == ("error", "ConnectionError: no rooms in Paris")


@pytest.mark.span_batcher(allow_losses=True)
async def test_a_span_that_the_server_refuses_costs_no_other_one(
    otlp_receiver: OTLPReceiver, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is told."""
    otlp_receiver.set_answers(poison(lambda span: span.name == "chat"))
    await serve([PARIS], Services(think, {"flight": price, "hotel": price}))
    otlp_receiver.assert_delivered("acme", ["plan trip", "tool flight", "tool hotel"])
    assert capsys.readouterr().err.startswith("acme: 1 rejected: ")


async def test_one_tenant_does_not_wait_for_another(
    otlp_receiver: OTLPReceiver, autojump_clock: trio.testing.MockClock
) -> None:
    """The server is slow for one of them."""

    def slow_for_acme(request: ReceivedRequest) -> Answer | None:
        return Answer(delay=5) if request.location == "acme" else None

    otlp_receiver.set_answers(slow_for_acme)
    await serve([PARIS, OSLO], Services(think, {"hotel": price}))
    first, second = otlp_receiver.requests
    assert {first.location, second.location} == {"acme", "globex"}
    assert second.at - first.at < 1
