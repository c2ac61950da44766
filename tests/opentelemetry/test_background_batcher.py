"""`background_batcher`: for programs on asyncio or without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import math
import signal
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import trio

import trio_spanbatch
from tests.opentelemetry.background_program import SPANS
from tests.opentelemetry.support import assert_all_counted, delivered_names, drops, end_spans, provider_of, tracer_of
from tests.support.processes import child, run_to_end
from trio_spanbatch import BatchPolicy, InvalidLocationError, Limits, Refused, SpanBatcher, UndeliveredSpansError
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, background_batcher, use_location
from trio_spanbatch.testing import Hang, InMemoryExporter

ALL = [f"span {number}" for number in range(SPANS)]


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "trio_spanbatch background"]


# -- without an event loop, on asyncio, in threads ------------------------------------------------------------------


def test_without_an_event_loop_everything_accepted_is_delivered_at_the_end() -> None:
    exporter = InMemoryExporter()
    with background_batcher(exporter) as processor:
        assert isinstance(processor, BatcherSpanProcessor)
        assert isinstance(processor.batcher, SpanBatcher)
        end_spans(tracer_of(processor), SPANS)
    assert delivered_names(exporter) == {"default": ALL}
    assert exporter.closed
    assert_all_counted(processor, processor.batcher)
    assert background_threads() == []


def test_functions_of_the_batcher_see_the_context_variables_of_the_caller() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    variable.set("the caller's")
    seen: list[tuple[str, str]] = []
    exporter = InMemoryExporter([Refused("no")])
    with background_batcher(exporter, on_loss=lambda loss: seen.append((variable.get(), loss.outcome))) as processor:
        end_spans(tracer_of(processor), 1)
    assert seen == [("the caller's", "rejected")]


def test_around_asyncio_run_everything_accepted_is_delivered_at_the_end() -> None:
    exporter = InMemoryExporter()

    async def agent(name: str) -> None:
        with use_location(name), tracer.start_as_current_span(f"agent {name}"):
            await asyncio.sleep(0)
            with tracer.start_as_current_span(f"chat {name}"):
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(agent("acme"), agent("globex"))

    with background_batcher(exporter) as processor:
        tracer = tracer_of(processor)
        asyncio.run(main())
    assert delivered_names(exporter) == {name: [f"chat {name}", f"agent {name}"] for name in ("acme", "globex")}


def test_it_can_be_used_inside_a_coroutine_of_asyncio() -> None:
    exporter = InMemoryExporter()

    async def main() -> None:
        with background_batcher(exporter) as processor:
            end_spans(tracer_of(processor), SPANS)
            await asyncio.sleep(0)

    asyncio.run(main())
    assert delivered_names(exporter) == {"default": ALL}


def test_it_can_be_used_in_a_thread_and_several_at_once() -> None:
    def work(exporter: InMemoryExporter) -> None:
        with background_batcher(exporter) as processor:
            end_spans(tracer_of(processor), SPANS)

    exporters = [InMemoryExporter() for _ in range(4)]
    threads = [threading.Thread(target=work, args=[exporter]) for exporter in exporters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [delivered_names(exporter) for exporter in exporters] == [{"default": ALL}] * 4


def test_spans_are_sent_while_the_program_runs_not_only_at_its_end() -> None:
    sent = threading.Event()
    exporter = InMemoryExporter(lambda batch: sent.set())
    with background_batcher(exporter, batch=BatchPolicy(max_delay=0.01)) as processor:
        end_spans(tracer_of(processor), 1)
        assert sent.wait(600)


def test_spans_of_many_threads_are_conserved_and_what_does_not_fit_is_dropped_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = InMemoryExporter(lambda batch: Hang())
    limits = Limits(max_queued_spans=10)
    with background_batcher(exporter, limits=limits, shutdown_timeout=0) as processor:
        tracer = tracer_of(processor)
        threads = [threading.Thread(target=end_spans, args=[tracer, 100]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert processor.statistics().ended == 800
    assert_all_counted(processor, processor.batcher)
    counts = processor.batcher.statistics()
    assert counts.undelivered == counts.accepted > 0
    assert counts.accepted + drops(processor)["queue_full"] == 800
    assert "queue_full" in caplog.text


def test_ending_a_span_does_not_wait_for_a_batcher_whose_thread_is_busy() -> None:
    busy, go_on = threading.Event(), threading.Event()

    def block(_: object) -> None:
        busy.set()
        assert go_on.wait(600)

    limits = Limits(max_queued_spans=5)
    with background_batcher(InMemoryExporter(block), limits=limits, batch=BatchPolicy(max_spans=1)) as processor:
        tracer = tracer_of(processor)
        end_spans(tracer, 1)
        assert busy.wait(600)
        end_spans(tracer, 20)
        assert processor.statistics().handed_over == 5
        assert drops(processor) == {"queue_full": 15}
        go_on.set()
    assert processor.batcher.statistics().delivered == 6
    assert_all_counted(processor, processor.batcher)


def test_force_flush_works_in_the_programs_threads() -> None:
    exporter = InMemoryExporter()
    with background_batcher(exporter, batch=BatchPolicy(max_delay=math.inf)) as processor:
        provider = provider_of(processor)
        end_spans(provider.get_tracer("tests"), SPANS)
        assert provider.force_flush()
        assert delivered_names(exporter) == {"default": ALL}
        provider.shutdown()


# -- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exception_propagates_unchanged_after_everything_was_delivered(error: BaseException) -> None:
    exporter = InMemoryExporter()
    with pytest.raises(type(error)) as caught, background_batcher(exporter) as processor:
        end_spans(tracer_of(processor), SPANS)
        raise error
    assert caught.value is error
    assert error.__context__ is None
    assert not hasattr(error, "__notes__")
    assert delivered_names(exporter) == {"default": ALL}


@pytest.mark.parametrize("error", [StopIteration(5), GeneratorExit(), StopAsyncIteration()])
def test_exceptions_with_a_meaning_for_generators_propagate_too(error: BaseException) -> None:
    exporter = InMemoryExporter()
    with pytest.raises(type(error)) as caught, background_batcher(exporter) as processor:
        end_spans(tracer_of(processor), SPANS)
        raise error
    assert caught.value is error
    assert delivered_names(exporter) == {"default": ALL}


def test_a_span_that_ends_after_it_is_dropped_and_counted() -> None:
    with background_batcher(InMemoryExporter()) as processor:
        tracer = tracer_of(processor)
    end_spans(tracer, 3)
    assert drops(processor) == {"already_shutdown": 3}


def test_spans_that_are_handed_back_are_in_notes_of_the_bodys_exception_and_can_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = InMemoryExporter(lambda batch: Hang())
    with pytest.raises(ValueError, match="x") as caught, background_batcher(exporter, shutdown_timeout=0) as processor:
        end_spans(tracer_of(processor), SPANS)
        raise ValueError("x")
    assert caught.value.__notes__[-1].startswith("SpanBatcher: 20 of 20 spans were handed back undelivered")
    assert "20 of 20 spans were handed back undelivered" in caplog.text
    assert sum(loss.count for loss in processor.batcher.undelivered) == 20


def test_a_strict_batcher_raises_at_the_end_unless_the_body_did() -> None:
    def run(error: Exception | None) -> None:
        with background_batcher(InMemoryExporter(lambda batch: Refused("no")), strict=True) as processor:
            end_spans(tracer_of(processor), 1)
            if error is not None:
                raise error

    with pytest.raises(UndeliveredSpansError, match=r"1 span was rejected: no \(1\)"):
        run(None)
    with pytest.raises(ValueError, match="x"):
        run(ValueError("x"))


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_an_exit_in_on_loss_ends_the_program(error: Exception | None) -> None:
    def leave(_: object) -> None:
        sys.exit(5)

    exporter = InMemoryExporter(lambda batch: Refused("no"))
    with pytest.raises(SystemExit) as caught, background_batcher(exporter, on_loss=leave) as processor:
        end_spans(tracer_of(processor), 1)
        if error is not None:
            raise error
    assert caught.value.code == 5
    assert caught.value.__context__ is error


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_it_is_the_same_at_the_top_level_and_has_the_documented_signature() -> None:
    assert trio_spanbatch.background_batcher is background_batcher
    signature = str(inspect.signature(background_batcher)).partition(" ->")[0]
    assert signature.startswith("(exporter: 'SpanExporter | None' = None, *, location: ")
    assert signature.endswith(" = 'default', **options: 'Any')")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"location": ""}, InvalidLocationError, "location must be a non-empty str"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout is -1"),
        ({"exporter": "http://localhost"}, TypeError, "exporter is of type str; it must be a SpanExporter"),
        ({"limit": 5}, TypeError, "unexpected keyword argument 'limit'"),
    ],
)
def test_errors_of_the_batchers_construction_are_raised_in_the_caller(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        background_batcher(**{"exporter": InMemoryExporter(), **arguments})
    assert background_threads() == []


def test_errors_of_entering_the_batcher_are_raised_in_the_caller() -> None:
    exporter = InMemoryExporter()
    with background_batcher(exporter):
        pass
    with pytest.raises(trio.ClosedResourceError, match="closed"), background_batcher(exporter):
        raise AssertionError("it was entered")
    assert background_threads() == []


async def test_in_a_trio_program_it_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match="in a trio program use `async with SpanBatcher"):
        background_batcher(InMemoryExporter())
    # Its threads are not trio's.
    exporter = InMemoryExporter()

    def work() -> None:
        with background_batcher(exporter) as processor:
            end_spans(tracer_of(processor), SPANS)

    await trio.to_thread.run_sync(work)
    assert delivered_names(exporter) == {"default": ALL}


# -- signals, forks, the end of the process ------------------------------------------------------------------------


async def report_of(scenario: str, signals: Callable[[Any], Any]) -> dict[str, Any]:
    async with child("-m", "tests.opentelemetry.background_program", scenario) as program:
        await signals(program)
        assert await program.wait() == 0
        report: dict[str, Any] = json.loads(program.said[-1])
        assert "Traceback" not in program.errors
    assert sorted(report["delivered"] + report["lost"]) == sorted(ALL)
    assert (report["accepted"], report["pending"], report["threads"]) == (SPANS, 0, [])
    return report


@pytest.mark.parametrize("scenario", ["plain", "asyncio", "thread"])
async def test_after_a_ctrl_c_everything_accepted_is_delivered(scenario: str) -> None:
    async def interrupt(program: Any) -> None:
        await program.says("ready")
        program.send_signal(signal.SIGINT)

    report = await report_of(scenario, interrupt)
    assert (report["error"], report["notes"], report["lost"]) == ("KeyboardInterrupt", [], [])


@pytest.mark.parametrize("scenario", ["plain", "asyncio"])
async def test_after_a_sigterm_whose_handler_exits_everything_accepted_is_delivered(scenario: str) -> None:
    async def terminate(program: Any) -> None:
        await program.says("ready")
        program.send_signal(signal.SIGTERM)

    report = await report_of(scenario, terminate)
    assert (report["error"], report["notes"], report["lost"]) == ("SystemExit", [], [])


@pytest.mark.parametrize("scenario", ["plain hangs", "asyncio hangs"])
async def test_a_second_ctrl_c_ends_the_drain_and_hands_the_spans_back(scenario: str) -> None:
    async def interrupt_twice(program: Any) -> None:
        await program.says("ready")
        program.send_signal(signal.SIGINT)
        await program.says("exporting")
        program.send_signal(signal.SIGINT)
        line = await program.says("lost")
        assert line == "lost: default: 20 spans handed back undelivered: Ctrl-C during the drain"

    report = await report_of(scenario, interrupt_twice)
    assert (report["error"], report["delivered"]) == ("KeyboardInterrupt", [])
    assert "20 of 20 spans were handed back undelivered (Ctrl-C during the drain: 20)" in report["notes"][0]


async def test_inside_a_coroutine_of_asyncio_whose_handler_takes_the_first_ctrl_c_the_second_one_ends_the_drain() -> (
    None
):
    async def interrupt_twice(program: Any) -> None:
        await program.says("exporting")
        program.send_signal(signal.SIGINT)
        # Asyncio only notes it: the task that it would cancel is the one that waits for the drain.
        program.send_signal(signal.SIGINT)
        while not any(line.startswith("lost") for line in program.said):
            program.send_signal(signal.SIGINT)
            await trio.sleep(0.05)

    report = await report_of("inside ends hangs", interrupt_twice)
    assert (report["error"], report["delivered"]) == ("KeyboardInterrupt", [])


@pytest.mark.parametrize(("scenario", "context"), [("ends hangs", "NoneType"), ("raises hangs", "ValueError")])
async def test_a_first_ctrl_c_in_the_drain_ends_it(scenario: str, context: str) -> None:
    async def interrupt(program: Any) -> None:
        await program.says("exporting")
        program.send_signal(signal.SIGINT)

    report = await report_of(scenario, interrupt)
    assert (report["error"], report["context"], report["delivered"]) == ("KeyboardInterrupt", context, [])
    assert "20 of 20 spans were handed back undelivered" in report["notes"][0]


def run_program(program: str) -> tuple[str, str, int]:
    heading = (
        "import os, sys, contextlib\n"
        "from trio_spanbatch.testing import InMemoryExporter\n"
        "from trio_spanbatch.opentelemetry import background_batcher\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "provider = TracerProvider(shutdown_on_exit=False)\n"
        "def end_span(): provider.get_tracer('tests').start_span('x').end()\n"
        "class Exporter(InMemoryExporter):\n"
        "    async def aclose(self):\n"
        "        print(sum(map(len, self.delivered.values())), 'delivered', flush=True)\n"
        "        await super().aclose()\n"
    )
    ended = run_to_end([sys.executable, "-W", "error", "-c", heading + program])
    return ended.stdout, ended.stderr, ended.returncode


def test_if_the_with_is_never_left_the_batcher_drains_when_the_program_exits() -> None:
    program = (
        "stack = contextlib.ExitStack()\n"
        "provider.add_span_processor(stack.enter_context(background_batcher(Exporter())))\n"
        "end_span()\n"
        "sys.exit(3)\n"
    )
    assert run_program(program) == ("1 delivered\n", "", 3)


def test_a_forked_child_ends_without_waiting_and_without_touching_the_parents_batcher() -> None:
    program = (
        "with background_batcher(Exporter()) as processor:\n"
        "    provider.add_span_processor(processor)\n"
        "    end_span()\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        end_span()\n"
        "        print(dict(processor.dropped)['already_shutdown'], 'dropped', flush=True)\n"
        "    else:\n"
        "        assert os.waitpid(child, 0)[1] == 3 << 8\n"
        "        end_span()\n"
        "sys.exit(0 if child else 3)\n"
    )
    out, _, code = run_program(program)
    assert (out, code) == ("1 dropped\n2 delivered\n", 0)


def test_in_a_child_that_was_forked_before_it_works() -> None:
    program = (
        "child = os.fork()\n"
        "if child:\n"
        "    sys.exit(os.waitpid(child, 0)[1])\n"
        "with background_batcher(Exporter()) as processor:\n"
        "    provider.add_span_processor(processor)\n"
        "    end_span()\n"
    )
    assert run_program(program) == ("1 delivered\n", "", 0)


def test_a_context_that_is_abandoned_ends_when_it_is_collected() -> None:
    exporter = InMemoryExporter()
    context: contextlib.AbstractContextManager[BatcherSpanProcessor] | None = background_batcher(exporter)
    assert context is not None
    end_spans(tracer_of(context.__enter__()), SPANS)
    del context
    gc.collect()
    assert delivered_names(exporter) == {"default": ALL}
    assert background_threads() == []
