"""The receiver's scripted answers and faults, over TCP and over memory streams."""

from __future__ import annotations

import itertools
import json

import httpx
import pytest
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.support.receivers import (
    body_of,
    client_for,
    message_of,
    nothing_leaks,
    post,
    raw_connection,
    raw_request,
    read_all,
    request_to,
    stored_names,
    wait_until,
)
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome, ReceivedRequest, Reset, partial_success

networks = pytest.mark.parametrize("memory", [False, True], ids=["tcp", "memory"])

DISCONNECTS = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)


@networks
async def test_scripted_answers_are_used_in_order_and_then_the_default_answers(memory: bool) -> None:
    answers = [Answer(503, headers=[("Retry-After", "7")], body=b"busy"), Answer(204), None, Answer(299), Answer(404)]
    receiver = OTLPReceiver(listen=not memory, answers=answers)
    async with receiver, client_for(receiver, memory=memory) as client:
        response = await post(client, receiver, body_of("a"))
        assert (response.status_code, response.reason_phrase) == (503, "Service Unavailable")
        assert (response.headers["retry-after"], response.content) == ("7", b"busy")
        statuses = [(await post(client, receiver, body_of(name))).status_code for name in "bcdef"]
        assert statuses == [204, 200, 299, 404, 200]
        assert stored_names(receiver) == ["b", "c", "d", "f"]
        # The transport over memory does not use a connection again that a 503 came on.
        assert receiver.connections == (2 if memory else 1)


@networks
async def test_a_function_can_choose_the_answer_by_the_request(memory: bool) -> None:
    def decide(request: ReceivedRequest) -> Outcome | None:
        if request.location == "down":
            return Answer(503)
        return request.default_answer if request.location == "up" else None

    receiver = OTLPReceiver(listen=not memory, location_header="x", answers=decide)
    async with receiver, client_for(receiver, memory=memory) as client:
        statuses = [
            (await post(client, receiver, body_of("s"), x=location)).status_code for location in ("down", "up", "")
        ]
        assert statuses == [503, 200, 200]
        assert set(receiver.stored) == {"up", "default"}


@networks
async def test_a_script_can_store_spans_despite_an_error_and_not_store_them_despite_a_200(
    memory: bool,
) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Answer(503, store=True), Answer(200, store=False)])
    async with receiver, client_for(receiver, memory=memory) as client:
        assert (await post(client, receiver, body_of("taken"))).status_code == 503
        assert (await post(client, receiver, body_of("lost"))).status_code == 200
        assert stored_names(receiver) == ["taken"]


@networks
async def test_a_partial_success_is_reported_and_the_other_spans_are_stored(memory: bool) -> None:
    chosen = message_of("a", "b", "c").resource_spans[0].scope_spans[0].spans[:1]
    answers = [
        partial_success(2, "two are bad"),
        partial_success(1, "the first is bad", rejected_spans=chosen),
        partial_success(5, "more than there were"),
        partial_success(-3),
    ]
    receiver = OTLPReceiver(listen=not memory, answers=answers)
    async with receiver, client_for(receiver, memory=memory) as client:
        said = []
        for _ in answers:
            response = await post(client, receiver, body_of("a", "b", "c"))
            partial = ExportTraceServiceResponse.FromString(response.content).partial_success
            said.append((partial.rejected_spans, partial.error_message))
        assert said == [(2, "two are bad"), (1, "the first is bad"), (5, "more than there were"), (-3, "")]
        assert stored_names(receiver) == ["a", "b", "c", "a", "b", "c"]


def test_a_partial_success_in_json_has_its_number_as_a_string() -> None:
    answer = partial_success(2, "no", content_type="application/json")
    assert json.loads(answer.body) == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "no"}}
    assert answer.headers == (("content-type", "application/json"),)


@networks
@pytest.mark.parametrize("when", ["before_body", "after_body", "mid_response"])
@pytest.mark.parametrize("store", [False, True])
async def test_a_reset_breaks_the_connection(memory: bool, when: str, store: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Reset(when, store=store)])  # type: ignore[arg-type]  # a Literal
    with nothing_leaks():
        async with receiver, client_for(receiver, memory=memory) as client:
            with pytest.raises(DISCONNECTS):
                await post(client, receiver, body_of("x"))
            assert len(receiver.requests) == 1
            assert stored_names(receiver) == (["x"] if store and when != "before_body" else [])
            await wait_until(lambda: receiver.open_connections == 0)
            assert (await post(client, receiver, body_of("y"))).is_success


@networks
async def test_a_reset_before_the_body_from_a_function_is_a_reset_after_it(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=lambda _request: Reset("before_body"))
    async with receiver, client_for(receiver, memory=memory) as client:
        with pytest.raises(DISCONNECTS):
            await post(client, receiver, body_of("x"))
        assert receiver.requests[0].body == body_of("x")


@networks
async def test_a_reset_before_the_body_does_not_wait_for_it(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Reset("before_body")])
    async with receiver, raw_connection(receiver, memory=memory) as stream:
        await stream.send_all(raw_request(body := body_of("x"))[: -len(body)])
        assert await read_all(stream) == b""


@networks
@pytest.mark.parametrize("store", [False, True])
async def test_a_hanging_request_is_never_answered_and_ends_with_its_client(memory: bool, store: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Hang(store=store)])
    with nothing_leaks():
        async with receiver, client_for(receiver, memory=memory) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, client, receiver, body_of("x"))
                await receiver.wait_for_requests(1)
                assert stored_names(receiver) == (["x"] if store else [])
                nursery.cancel_scope.cancel()
            await wait_until(lambda: receiver.open_connections == 0)
            assert (await post(client, receiver, body_of("y"))).is_success


@networks
async def test_a_drip_is_written_unchanged_and_then_the_connection_is_closed(memory: bool) -> None:
    chunks = [b"HTTP/1.1 200 OK\r\nConte", b"nt-Length: 2\r\n\r\n", b"h", b"i"]
    receiver = OTLPReceiver(listen=not memory, answers=[Drip(chunks, store=True), Drip([b"garbage\r\n\r\n"])])
    async with receiver, client_for(receiver, memory=memory) as client:
        assert (await post(client, receiver, body_of("x"))).content == b"hi"
        assert stored_names(receiver) == ["x"]
        await wait_until(lambda: receiver.open_connections == 0)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(client, receiver, body_of("y"))


@networks
@pytest.mark.parametrize(
    "endless",
    [
        Drip(itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b"x" * 65536))),
        Drip(itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"Set-Cookie: a=b\r\n"))),
    ],
    ids=["body", "headers"],
)
async def test_endless_responses_end_with_the_client_and_leave_nothing_behind(memory: bool, endless: Drip) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=lambda _request: endless)
    with nothing_leaks():
        async with receiver, client_for(receiver, memory=memory) as client:
            with trio.CancelScope() as scope:
                try:
                    response = await client.send(request_to(receiver, body_of("x")), stream=True)
                    read = 0
                    # End it by cancelling: leaving httpx's generator early would leak it.
                    async for piece in response.aiter_raw():
                        read += len(piece)
                        if read > 1_000_000:
                            scope.cancel()
                except httpx.RemoteProtocolError:
                    pass  # h11 refuses headers that are too large.
            await wait_until(lambda: receiver.open_connections == 0)


@networks
async def test_an_answer_can_announce_a_longer_body_than_it_has(memory: bool) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Answer(headers=[("Content-Length", "100")], body=b"short")])
    async with receiver, client_for(receiver, memory=memory) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await post(client, receiver, body_of("x"))


@networks
async def test_a_failing_script_is_answered_500_and_logged(memory: bool, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([RuntimeError("a bug in the test"), "no answer"])

    def decide(_request: ReceivedRequest) -> Outcome:
        step = next(answers)
        if isinstance(step, Exception):
            raise step
        return step  # type: ignore[return-value]  # the mistake under test

    receiver = OTLPReceiver(listen=not memory, answers=decide)
    async with receiver, client_for(receiver, memory=memory) as client:
        for reason in ("a bug in the test", "'no answer'"):
            response = await post(client, receiver, body_of("x"))
            assert (response.status_code, response.text) == (500, "the receiver's answers failed")
            assert reason in caplog.text
        assert receiver.stored == {}


@networks
async def test_an_answer_with_impossible_headers_is_logged_and_closes_the_connection(
    memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = OTLPReceiver(listen=not memory, answers=[Answer(headers=[("bad name", "x")])])
    async with receiver, client_for(receiver, memory=memory) as client:
        with pytest.raises(DISCONNECTS):
            await post(client, receiver, body_of("x"))
        # The client may see the end of the connection first.
        await wait_until(lambda: "closes a connection" in caplog.text)
        assert (await post(client, receiver, body_of("x"))).is_success


@pytest.mark.parametrize("status", [100, 199, 1000])
def test_a_status_that_is_not_final_is_a_value_error(status: int) -> None:
    with pytest.raises(ValueError, match=f"status is {status}"):
        Answer(status)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_times_must_not_be_negative(seconds: float) -> None:
    with pytest.raises(ValueError, match="delay is"):
        Answer(delay=seconds)
    with pytest.raises(ValueError, match="interval is"):
        Drip([], seconds)


def test_a_reset_happens_at_one_of_three_moments() -> None:
    with pytest.raises(ValueError, match="when"):
        Reset("later")  # type: ignore[arg-type]  # the mistake under test
