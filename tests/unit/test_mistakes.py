"""What a mistake says: each parameter of each public callable, with values of wrong types made from the signatures.

A record of a span is checked when it is encoded, so its parameters are tried by encoding a span that has it.
"""

from __future__ import annotations

import asyncio
import collections.abc
import functools
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs
import pytest
import trio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import trio_spanbatch
from tests.kit import test_kit_arguments
from trio_spanbatch import (
    Auth,
    AuthError,
    BatchPolicy,
    ConsoleExporter,
    Delivered,
    EncodedSpan,
    EndpointStatistics,
    EntityRef,
    ExportResult,
    FlushCounts,
    FlushReport,
    InstrumentationScope,
    InvalidLocationError,
    InvalidSpanError,
    JSONFileExporter,
    Limits,
    LimitsItsAttempts,
    LocationChecker,
    LocationStatistics,
    Loss,
    OTLPExporter,
    Refused,
    Resource,
    RetryPolicy,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanContext,
    SpanEvent,
    SpanExporter,
    SpanKind,
    SpanLike,
    SpanLink,
    Spool,
    SpoolError,
    SpoolStatistics,
    Status,
    StatusCode,
    TellsEndpoints,
    TooManyLocationsError,
    TryLater,
    UndeliveredSpansError,
    destinations,
    exit_on_sigterm,
    opentelemetry,
    scrub,
    testing,
    tracing,
)
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.destinations import mlflow, unity_catalog, zerobus
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, background_batcher, use_location
from trio_spanbatch.opentelemetry._use_location import used_location
from trio_spanbatch.testing import Answer, InMemoryExporter, OTLPReceiver, SpanDicts
from trio_spanbatch.tracing import ActiveSpan, Tracer, current_span

NOW = 1_800_000_000_000_000_000
CONTEXT = SpanContext(1, 1)
SPAN = Span("a span", CONTEXT, start_time=NOW, end_time=NOW)


class Odd:
    """Of no type that anything asks for."""

    def __repr__(self) -> str:
        return "<Odd>"


TRACER = Tracer(SpanBatcher(InMemoryExporter()))

WRONG: tuple[object, ...] = (5, -1, 1.5, float("nan"), "text", b"bytes", True, [1], {"a": 1}, ("x",), Odd())


def encoded_with(record: Any) -> object:
    """Encode a span with ``record`` in it."""
    fields: dict[type, dict[str, Any]] = {
        SpanContext: {"context": record},
        SpanEvent: {"events": [record]},
        SpanLink: {"links": [record]},
        Status: {"status": record},
        Resource: {"resource": record},
        InstrumentationScope: {"instrumentation_scope": record},
    }
    if isinstance(record, EntityRef):
        fields[EntityRef] = {"resource": Resource(entity_refs=(record,))}
    span = record if isinstance(record, Span) else attrs.evolve(SPAN, **fields[type(record)])
    return SpanEncoder().encode(span)


# The public callables, with the arguments that they need.
CALLABLES: dict[Callable[..., Any], dict[str, Any]] = {
    SpanBatcher: {"exporter": InMemoryExporter()},
    BatchPolicy: {},
    Limits: {},
    RetryPolicy: {},
    Spool: {"directory": "/missing"},
    SpanBatch.from_request: {"location": "a", "data": b""},
    OTLPExporter: {"endpoint": "http://localhost:4318/v1/traces"},
    OTLPExporter.from_env: {"environ": {}},
    Delivered: {},
    TryLater: {"reason": "busy"},
    Refused: {"reason": "no"},
    mlflow: {"tracking_uri": "http://localhost:5000", "environ": {}},
    unity_catalog: {"host": "https://a.cloud.databricks.com"},
    zerobus: {"host": "https://a.cloud.databricks.com"},
    use_location: {"location": "a"},
    background_batcher: {"exporter": InMemoryExporter()},
    ConsoleExporter: {},
    JSONFileExporter: {"path": "/missing/spans.jsonl"},
    BatcherSpanProcessor: {"batcher": SpanBatcher(InMemoryExporter())},
    opentelemetry.span: {"name": "a span"},
    opentelemetry.traced: {},
    Tracer: {"batcher": SpanBatcher(InMemoryExporter())},
    TRACER.span: {"name": "a span"},
    TRACER.traced: {},
    TRACER.span("a span").set_attribute: {"key": "a", "value": 1},
    TRACER.span("a span").set_attributes: {"attributes": {}},
    TRACER.span("a span").add_event: {"name": "an event"},
    TRACER.span("a span").record_exception: {"error": ValueError()},
    TRACER.span("a span").set_status: {"status": StatusCode.OK},
    scrub: {},
}
RECORDS: dict[Callable[..., Any], dict[str, Any]] = {
    Span: {"name": "a span", "context": CONTEXT, "start_time": NOW, "end_time": NOW},
    SpanContext: {"trace_id": 1, "span_id": 1},
    SpanEvent: {"name": "an event", "timestamp": NOW},
    SpanLink: {"context": CONTEXT},
    Status: {},
    Resource: {},
    InstrumentationScope: {"name": "agents"},
    EntityRef: {"type": "service"},
}
# Texts of a span may be of any type (see `Span`), and so may the trace state. So may an int where a flag of a record is
# one: nobody reads these but the exporter that made them.
ANY_TYPE = {"name", "description", "schema_url", "version", "type", "trace_state"}
ANY_FLAG = {"is_remote", "trace_flags"}
# Public names are imported when they are first used, so they may not be among `vars` of the package yet.
PUBLIC = {name: getattr(trio_spanbatch, name) for name in trio_spanbatch.__all__}


def parameters() -> Iterator[Any]:
    """Yield each parameter, with how it is called."""
    for function, needed in (*CALLABLES.items(), *RECORDS.items()):
        made = getattr(function, "__init__", function) if inspect.isclass(function) else function
        hints = typing.get_type_hints(made, localns={**PUBLIC, "Self": object})
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not parameter.POSITIONAL_ONLY and not (
                function in RECORDS and name in ANY_TYPE | ANY_FLAG
            ):
                yield pytest.param(function, needed, name, hints[name], id=f"{function.__qualname__}-{name}")


def is_of_type(value: object, kind: Any) -> bool:
    """Return whether ``value`` is of the type that an annotation names, as far as it is tried here."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, each) for each in typing.get_args(kind))
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is collections.abc.Callable:
        return callable(value)
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    # A protocol is for type checkers, and no value tried here is one.
    return not getattr(kind, "_is_protocol", False) and isinstance(value, origin or kind)


@pytest.mark.parametrize(("function", "needed", "name", "kind"), list(parameters()))
def test_a_value_of_a_wrong_type_is_an_error_with_the_parameter_and_the_remedy(
    function: Callable[..., Any], needed: dict[str, Any], name: str, kind: Any
) -> None:
    tried = 0
    for value in (value for value in WRONG if not is_of_type(value, kind)):
        tried += 1
        with warnings.catch_warnings(), pytest.raises((TypeError, ValueError)) as caught:
            warnings.simplefilter("ignore")
            made = function(**{**needed, name: value})
            if function in RECORDS:
                encoded_with(made)
        message = str(caught.value)
        assert name in message, (value, message)
        assert any(word in message for word in ("must", " is an int ", "give ")), (value, message)
    assert tried or kind is Any or "Mapping" in str(kind)


# -- mistakes that are made often --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"parent": SPAN},
            r"^parent is of type Span: it must be a SpanContext, such as the `context` of ",
        ),
        ({"context": SPAN}, r"^context is of type Span: it must be a SpanContext"),
        ({"resource": {"service.name": "a"}}, r"^resource is of type dict: it must be a Resource, such as "),
        (
            {"instrumentation_scope": "agents"},
            r"^instrumentation_scope is 'agents': it must be an Instrumentation",
        ),
        ({"events": [("begin", NOW)]}, r"^events\[0\] is of type tuple: it must be a SpanEvent$"),
        ({"links": [CONTEXT]}, r"^links\[0\] is of type SpanContext: it must be a SpanLink$"),
        ({"links": [SpanLink(SPAN)]}, r"^links\[0\]\.context is of type Span: it must be a SpanContext"),  # type: ignore[arg-type]  # the mistake
        ({"status": "OK"}, r"^status is 'OK': it must be a Status$"),
        ({"kind": "client"}, r"^kind is 'client': it must be a SpanKind$"),
        ({"start_time": NOW / 1e9}, r"^start_time is 18.*: a time in nanoseconds is an int .* time\.time_ns\(\)$"),
        ({"resource": Resource(entity_refs=("a",))}, r"^resource.entity_refs is 'a': it must be an EntityRef$"),  # type: ignore[arg-type]  # the mistake
    ],
)
def test_a_field_of_a_wrong_kind_is_named_with_what_it_must_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpanError, match=message):
        encoded_with(attrs.evolve(SPAN, **fields))


async def test_a_swapped_location_and_span_are_named() -> None:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        swapped: Any = batcher.add_span_nowait
        with pytest.raises(InvalidSpanError, match="the location is the first argument, and the span the second"):
            swapped(SPAN, "a")


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "microseconds"])
async def test_times_in_another_unit_are_warned_about_once(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    scale = {"seconds": 10**9, "milliseconds": 10**6, "microseconds": 10**3}[unit]
    early = attrs.evolve(SPAN, start_time=NOW // scale, end_time=NOW // scale + 1)
    async with SpanBatcher(exporter := InMemoryExporter()) as batcher:
        batcher.add_spans_nowait("a", [SPAN, attrs.evolve(SPAN, start_time=0), attrs.evolve(SPAN, start_time=1)])
        assert not caplog.messages
        batcher.add_spans_nowait("a", [early, early])
    (message,) = caplog.messages
    assert message.startswith(f"SpanBatcher: start_time is {NOW // scale}, which is in 1970: times are in nanoseconds")
    assert message.endswith(f"; is this in {unit}?")
    assert len(exporter.delivered["a"]) == 5


def test_under_asyncio_a_batcher_says_what_to_use() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"needs trio: .* trio\.run, .*background_batcher") as caught:
            async with SpanBatcher(InMemoryExporter()):
                raise AssertionError("entered")
        assert "asyncio" in str(caught.value)

    asyncio.run(main())


def test_an_exporter_of_opentelemetry_is_refused_when_the_batcher_is_made() -> None:
    exporter: Any = InMemorySpanExporter()
    with pytest.raises(TypeError, match=r"^exporter is of type InMemorySpanExporter, an exporter of OpenTelemetry, wh"):
        SpanBatcher(exporter)


@pytest.mark.parametrize("name", ["export", "aclose"])
def test_a_synchronous_exporter_is_refused_when_the_batcher_is_made(name: str) -> None:
    class Synchronous(InMemoryExporter):
        pass

    setattr(Synchronous, name, lambda *_: Delivered())
    with pytest.raises(TypeError, match=rf"^exporter\.{name} of Synchronous is a synchronous function; .*`async def "):
        SpanBatcher(Synchronous())


def test_a_wrapper_may_return_what_an_async_method_returns() -> None:
    class Wrapper:
        def __init__(self, exporter: InMemoryExporter) -> None:
            self.export = functools.partial(exporter.export)
            self.aclose = exporter.aclose

    SpanBatcher(Wrapper(InMemoryExporter()))


async def test_a_404_says_that_the_endpoint_has_no_path() -> None:
    async with OTLPReceiver(answers=[Answer(404)]) as receiver:
        root = receiver.url.removesuffix("/v1/traces")
        exporter = OTLPExporter(root)
        result = await exporter.export(SpanBatch("a", [SpanEncoder().encode(SPAN)]))
        await exporter.aclose()
    assert isinstance(result, Refused)
    assert result.reason.startswith("404 Not Found")
    assert result.reason.endswith("the endpoint's path does not end with /v1/traces, as that of most servers does")


def test_use_location_decorates_functions() -> None:
    @use_location("acme")
    def work(number: int) -> tuple[int, str | None]:
        return number, used_location()

    assert work(3) == (3, "acme")
    assert work.__name__ == "work"
    assert used_location() is None


async def test_use_location_decorates_async_functions_for_all_of_their_run() -> None:
    @use_location("acme")
    async def work() -> list[str | None]:
        before = used_location()
        await trio.lowlevel.checkpoint()
        return [before, used_location()]

    assert await work() == ["acme", "acme"]
    assert inspect.iscoroutinefunction(work)
    assert used_location() is None


def test_use_location_does_not_decorate_generators() -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"generator is a generator; use `with use_location\('acme'\):` inside it"):
        use_location("acme")(generator)


# -- no public callable is missing ---------------------------------------------------------------------------------

# Each has a reason why nobody's mistake is in a call of it.
NOT_CALLED_BY_USERS = {
    # Types to write down, not to call.
    *(Auth, ExportResult, LimitsItsAttempts, LocationChecker, SpanExporter, SpanLike, TellsEndpoints),
    # Exceptions that the library raises.
    *(AuthError, InvalidLocationError, InvalidSpanError, SpoolError, TooManyLocationsError, UndeliveredSpansError),
    # Records that the library makes, and the spans of a tracer and of a batch.
    *(EndpointStatistics, FlushCounts, FlushReport, LocationStatistics, Loss, SpanBatcherStatistics, SpoolStatistics),
    *(ActiveSpan, EncodedSpan, SpanDicts),
    # Enumerations, whose message is Python's own.
    *(SpanKind, StatusCode),
    # They take nothing.
    *(current_span, exit_on_sigterm),
    # In tables of their own: tests/unit/test_mistakes_of_spans.py and tests/spool.
    *(SpanBatch, Spool),
}


def test_no_public_callable_is_missing_from_the_tables_of_mistakes() -> None:
    tried = {*CALLABLES, *RECORDS, *(function for function, *_ in test_kit_arguments.TABLE)}
    for module in (trio_spanbatch, opentelemetry, destinations, testing, tracing):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and value not in NOT_CALLED_BY_USERS:
                assert value in tried, f"{module.__name__}.{name}"
