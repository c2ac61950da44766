"""Wrong values of each parameter of the kit: the message names the parameter, the value and what it must be."""

from __future__ import annotations

import inspect
import itertools
import math
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from tests.kit.test_exported_spans import exported
from tests.support.receivers import body_of, client_for, post
from trio_spanbatch import Delivered, testing
from trio_spanbatch.testing import (
    Answer,
    Drip,
    ExportedSpans,
    Hang,
    InMemoryExporter,
    MemoryNetwork,
    MemoryTransport,
    OTLPReceiver,
    ReceivedRequest,
    Reset,
    SpanDicts,
    exporting_to,
    outage,
    partial_success,
    poison,
    rate_limited,
    slow,
)


async def async_function(*args: object) -> None: ...


class AsyncCallable:
    async def __call__(self, *args: object) -> None: ...


NOT_A_BOOL = [None, 1, "yes"]
NOT_A_STR = [1, b"bytes", ["list"]]
NOT_A_NUMBER = ["1", True, [1]]
NOT_AN_INT = ["1", True, 1.5, None]
NOT_SYNC = [1, "text", async_function, AsyncCallable(), int]
NOT_SECONDS = [*NOT_A_NUMBER, None, -1, math.nan]
NOT_HEADERS = [1, "a: b", {"a": "b"}, ["a"], [("a", 1)], [("a", "b", "c")]]
NOT_ANSWERS = [1, 503, "503", b"503", {503: 1}, object(), Answer(503), async_function, AsyncCallable(), int]
NOT_OUTCOMES = [["503"], [True], [503.0], [None, 99], [1000], [Delivered()]]
NOT_SSL = ["cert.pem", True, ssl]
MESSAGES_OF_SPANS = [1, "x", [b"span"], {}]

# For each callable the values of a correct call, and for each parameter wrong values.
RECEIVER = OTLPReceiver(listen=False)
TABLE: list[tuple[Callable[..., object], dict[str, object], dict[str, list[Any]]]] = [
    (
        Answer,
        {},
        {
            "status": [*NOT_A_NUMBER, None, 100, 1000, 200.5],
            "headers": [None, *NOT_HEADERS],
            "body": ["text", None, 1, bytearray()],
            "delay": NOT_SECONDS,
            "store": [1, "yes"],
            "rejected": NOT_AN_INT,
            "rejected_spans": MESSAGES_OF_SPANS,
        },
    ),
    (Reset, {}, {"when": [*NOT_A_STR, None, "later"], "store": NOT_A_BOOL}),
    (Hang, {}, {"store": NOT_A_BOOL}),
    (Drip, {"chunks": [b"x"]}, {"chunks": [1, b"x", "x", ["x"], None], "interval": NOT_SECONDS, "store": NOT_A_BOOL}),
    (
        partial_success,
        {"rejected": 1},
        {
            "rejected": [*NOT_AN_INT, 2**63],
            "message": [*NOT_A_STR, None],
            "content_type": [*NOT_A_STR, None, "text/html"],
            "rejected_spans": MESSAGES_OF_SPANS,
        },
    ),
    (outage, {}, {"seconds": [*NOT_SECONDS, 0]}),
    (slow, {}, {"seconds": NOT_SECONDS}),
    (rate_limited, {"requests": 1}, {"requests": [*NOT_AN_INT, 0], "retry_after": ["1", True, 1.5, -1]}),
    (poison, {}, {"predicate": [*NOT_SYNC, None]}),
    (InMemoryExporter, {}, {"results": [*NOT_ANSWERS, [503], ["delivered"]], "delay": [*NOT_SECONDS, async_function]}),
    (InMemoryExporter().export, {}, {"batch": [None, "batch", []]}),
    (MemoryNetwork, {}, {"serve": [*NOT_SYNC, None]}),
    (RECEIVER.network.connect_tcp, {"host": "x", "port": 1}, {"host": [*NOT_A_STR, None], "port": NOT_AN_INT}),
    (
        MemoryTransport,
        {"network": RECEIVER.network},
        {"network": [None, RECEIVER, "receiver.test"], "ssl_context": NOT_SSL},
    ),
    (
        OTLPReceiver,
        {"listen": False},
        {
            "host": [*NOT_A_STR, None],
            "port": [*NOT_AN_INT, -1, 65536],
            "location_header": [*NOT_A_STR, "", "X Y", "X:", "é"],
            "answers": [*NOT_ANSWERS, *NOT_OUTCOMES],
            "on_request": NOT_SYNC,
            "keep": NOT_A_BOOL,
            "ssl_context": NOT_SSL,
            "path": [*NOT_A_STR, "v1/traces"],
            "max_request_bytes": [*NOT_AN_INT, 0],
            "listen": NOT_A_BOOL,
        },
    ),
    (RECEIVER.set_answers, {}, {"answers": [*NOT_ANSWERS, *NOT_OUTCOMES]}),
    (
        RECEIVER.assert_delivered,
        {"location": "a", "names": []},
        {"location": [1, None], "names": [1, "chat", [1], None]},
    ),
    (RECEIVER.memory_transport, {}, {"ssl_context": NOT_SSL}),
    (RECEIVER.wait_for_requests, {}, {"count": [*NOT_AN_INT, -1]}),
    (RECEIVER.serve_stream, {}, {"stream": [None, "stream", RECEIVER]}),
    (
        ReceivedRequest,
        {
            "method": "POST",
            "target": "/",
            "headers": [],
            "location": "a",
            "body": b"",
            "content": b"",
            "message": None,
            "at": 0.0,
            "default_answer": Answer(),
        },
        {
            "method": [*NOT_A_STR, None],
            "target": [*NOT_A_STR, None],
            "headers": [None, *NOT_HEADERS],
            "location": [*NOT_A_STR, None],
            "body": ["text", None],
            "content": ["text", None],
            "message": ["text", b"bytes"],
            "at": [*NOT_A_NUMBER, None, -1],
            "default_answer": [None, 200],
        },
    ),
    (ExportedSpans, {}, {"source": [None, "acme", {}]}),
    (ExportedSpans(RECEIVER).at, {}, {"location": [1, None]}),
    (exporting_to, {}, {"exporter": [None, "http://localhost", InMemoryExporter, async_function]}),
]


def cases() -> Iterator[Any]:
    for call, right, wrong in TABLE:
        for parameter, values in wrong.items():
            for number, value in enumerate(values):
                yield pytest.param(call, right, parameter, value, id=f"{call.__qualname__}-{parameter}-{number}")


@pytest.mark.parametrize(("call", "right", "parameter", "value"), list(cases()))
async def test_a_wrong_argument_is_named_with_its_value_and_what_it_must_be(
    call: Callable[..., Any], right: dict[str, object], parameter: str, value: object
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        result = call(**right | {parameter: value})
        if inspect.isawaitable(result):
            await result
    message = str(caught.value)
    assert message.startswith((f"{parameter} is ", f"{parameter}[")), message
    assert "must be " in message
    shown = next((one for one in value if one is not None), value) if isinstance(value, list) else value
    assert repr(shown)[:20] in message


def test_all_parameters_of_all_public_callables_are_in_the_table() -> None:
    listed = {call.__qualname__: set(wrong) for call, _, wrong in TABLE}
    skipped = {"Outcome", "SpanDicts"}  # a type alias; a list of dicts that `ExportedSpans.at` returns
    for name in set(testing.__all__) - skipped:
        assert set(inspect.signature(getattr(testing, name)).parameters) == listed[name], name
        methods = inspect.getmembers(getattr(testing, name), inspect.isfunction)
        for method in (method for key, method in methods if not key.startswith("_")):
            parameters = set(inspect.signature(method).parameters) - {"self"}
            if parameters and method.__module__.startswith("trio_spanbatch.testing"):
                known = listed.get(method.__qualname__, {"accepted", "header"} if name == "Answer" else None)
                assert known is not None or method.__qualname__ == "ReceivedRequest.header", method.__qualname__


def test_the_name_of_a_header_must_be_a_str() -> None:
    _, right, _ = next(row for row in TABLE if row[0] is ReceivedRequest)
    request = ReceivedRequest(**right)  # type: ignore[arg-type]  # each value has its type
    with pytest.raises(TypeError, match="name is 1; it must be a str"):
        request.header(1)  # type: ignore[arg-type]  # the mistake under test


async def test_the_fields_of_a_tree_must_be_names_of_fields() -> None:
    from tests.kit.test_exported_spans import span

    spans = (await exported(span("chat", 1, 1, 2))).at("acme")
    assert isinstance(spans, SpanDicts)
    with pytest.raises(TypeError, match="fields is 1; it must be names of fields"):
        spans.tree(1)  # type: ignore[arg-type]  # the mistake under test


# -- plain numbers -------------------------------------------------------------------------------------------------


STATUSES = itertools.cycle([503, 404])


@pytest.mark.parametrize(
    "answers",
    [[503, 404], (503, 404), iter([503, 404]), lambda request: next(STATUSES)],
    ids=["list", "tuple", "iterator", "function"],
)
async def test_a_plain_number_is_the_answer_with_that_status(answers: Any) -> None:
    async with OTLPReceiver(listen=False, answers=answers) as receiver, client_for(receiver, memory=True) as client:
        assert [(await post(client, receiver, body_of("x"))).status_code for _ in range(2)] == [503, 404]


async def test_a_number_that_is_no_status_is_told_in_the_log_if_a_function_gives_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = OTLPReceiver(listen=False, answers=lambda request: 42)
    async with receiver, client_for(receiver, memory=True) as client:
        assert (await post(client, receiver, body_of("x"))).status_code == 500
    assert "an answer of answers is 42; it must be an Answer, a status from 200 to 999" in caplog.text


async def test_answers_that_were_not_used_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(listen=False) as receiver, client_for(receiver, memory=True) as client:
        receiver.assert_answers_used()
        receiver.set_answers([503, rate_limited(2), slow(1)])
        for left in (3, 2, 2):
            with pytest.raises(AssertionError, match=f"^{left} scripted answers were not used$"):
                receiver.assert_answers_used()
            await post(client, receiver, body_of("x"))
        with pytest.raises(AssertionError, match=r"^1 scripted answer was not used$"):
            receiver.assert_answers_used()
        await post(client, receiver, body_of("x"))
        receiver.assert_answers_used()
        receiver.set_answers([404])
        receiver.set_answers(None)
        receiver.assert_answers_used()
        for unknown in (itertools.repeat(503), (status for status in [503]), lambda request: 503):
            receiver.set_answers(unknown)
            receiver.assert_answers_used()


# -- before entering -----------------------------------------------------------------------------------------------


def test_url_and_port_of_a_receiver_that_was_not_entered_say_what_to_do() -> None:
    for name, call in (("URL", lambda: OTLPReceiver().url), ("port", lambda: OTLPReceiver().port)):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == (
            f"the receiver has no {name} before it is entered, as the system chooses its port: use `async with "
            "OTLPReceiver() as receiver:`, give port=, or do without a socket with listen=False"
        )
    with pytest.raises(RuntimeError, match="before it is entered"):
        OTLPReceiver().exporter()


async def test_a_url_that_is_known_can_be_read_before_and_after() -> None:
    assert OTLPReceiver(port=4318).url == "http://127.0.0.1:4318/v1/traces"
    assert (OTLPReceiver(listen=False).url, OTLPReceiver(listen=False).port) == ("http://receiver.test/v1/traces", 0)
    async with OTLPReceiver() as receiver:
        url = receiver.url
    assert receiver.url == url
