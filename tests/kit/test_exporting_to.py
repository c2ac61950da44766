"""Programs that make their batchers themselves, without pytest's fixtures."""

from __future__ import annotations

import asyncio
import threading

import pytest
import trio
import trio.testing

from tests.support.batchers import make_span
from tests.support.processes import DEADLINE
from trio_spanbatch import OTLPExporter, Refused, SpanBatch, SpanBatcher
from trio_spanbatch.testing import ExportedSpans, InMemoryExporter, OTLPReceiver, exporting_to


async def program(name: str = "chat") -> None:
    async with SpanBatcher() as batcher:
        await batcher.add_span("acme", make_span(name))


def exporter_of(batcher: SpanBatcher) -> object:
    return batcher._runtime.exporter


def names(exporter: InMemoryExporter) -> list[str]:
    return [span.to_message().name for span in exporter.delivered.get("acme", [])]


def test_a_batcher_without_an_exporter_sends_to_the_given_one_which_stays_open() -> None:
    exporter = InMemoryExporter()
    with exporting_to(exporter) as programs:
        trio.run(program, "first")
        trio.run(program, "second")
    assert names(exporter) == ["first", "second"]
    assert not exporter.closed
    assert [batcher.statistics().delivered for batcher in programs.batchers] == [1, 1]
    programs.assert_no_losses()


def test_a_function_makes_an_exporter_for_each_batcher_which_closes_it() -> None:
    made: list[InMemoryExporter] = []

    def make() -> InMemoryExporter:
        made.append(InMemoryExporter())
        return made[-1]

    with exporting_to(make):
        trio.run(program)
        trio.run(program)
    assert [(names(exporter), exporter.closed) for exporter in made] == [(["chat"], True)] * 2


def test_what_a_function_makes_is_checked_when_the_batcher_is_made() -> None:
    with (
        exporting_to(lambda: None),  # type: ignore[arg-type, return-value]  # the mistake under test
        pytest.raises(TypeError, match="exporter is of type NoneType; it must be a SpanExporter"),
    ):
        SpanBatcher()


def test_a_batcher_with_an_exporter_of_its_own_is_not_touched() -> None:
    own = InMemoryExporter()
    with exporting_to(InMemoryExporter()) as programs:
        assert exporter_of(SpanBatcher(own)) is own
    assert programs.batchers == []


def test_the_innermost_applies_and_the_outer_one_is_restored_also_after_an_exception() -> None:
    outer, inner = InMemoryExporter(), InMemoryExporter()
    with exporting_to(outer):
        with pytest.raises(RuntimeError), exporting_to(inner):
            trio.run(program, "inside")
            raise RuntimeError
        trio.run(program, "outside")
    assert (names(inner), names(outer)) == (["inside"], ["outside"])
    assert isinstance(exporter_of(SpanBatcher()), OTLPExporter)


async def test_tasks_inherit_it_and_concurrent_tasks_do_not_see_it() -> None:
    first, second = InMemoryExporter(), InMemoryExporter()
    inside, go_on = trio.Event(), trio.Event()

    async def with_exporter(exporter: InMemoryExporter, name: str) -> None:
        with exporting_to(exporter):
            inside.set()
            await go_on.wait()
            async with trio.open_nursery() as children:
                for _ in range(2):
                    children.start_soon(program, name)
            await trio.to_thread.run_sync(trio.run, program, name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(with_exporter, first, "a")
        nursery.start_soon(with_exporter, second, "b")
        await inside.wait()
        assert isinstance(exporter_of(SpanBatcher()), OTLPExporter)
        go_on.set()
    assert (names(first), names(second)) == (["a"] * 3, ["b"] * 3)


def test_a_thread_that_was_started_without_its_starters_context_sees_it() -> None:
    exporter = InMemoryExporter()

    async def on_asyncio() -> None:
        await asyncio.to_thread(trio.run, program, "with context")

    with exporting_to(exporter):
        thread = threading.Thread(target=trio.run, args=(program, "without"))
        thread.start()
        thread.join()
        asyncio.run(on_asyncio())
    assert names(exporter) == ["without", "with context"]


async def test_what_the_exporter_says_about_itself_still_applies() -> None:
    class Particular(InMemoryExporter):
        timeout = 77.0

        def check_location(self, location: str) -> None:
            raise ValueError(f"no {location}")

        def endpoint_of(self, location: str) -> str:
            return f"server of {location}"

    with exporting_to(Particular()):
        async with SpanBatcher() as batcher:
            with pytest.raises(ValueError, match="no acme"):
                batcher.add_span_nowait("acme", make_span())


async def test_losses_of_all_batchers_are_told_in_one_line(autojump_clock: trio.testing.MockClock) -> None:
    def refuse(batch: SpanBatch) -> Refused | None:
        return Refused("no") if len(batch.spans) == 1 else None

    with exporting_to(InMemoryExporter(refuse)) as programs:
        await program()
        async with SpanBatcher() as batcher:
            batcher.add_span_nowait("acme", make_span())
            with pytest.raises(AssertionError) as caught:
                programs.assert_no_losses()
    assert str(caught.value) == "1 span was rejected: no (1); 1 span is pending"
    with pytest.raises(AssertionError, match=r"^1 span was rejected: no \(1\); 1 span was rejected: no \(1\)$"):
        programs.assert_no_losses()


def test_a_receiver_in_memory_serves_all_trio_runs_inside_with() -> None:
    receiver = OTLPReceiver(listen=False, location_header="X-Scope-OrgID", answers=[503])
    clock = trio.testing.MockClock(autojump_threshold=0)
    with receiver, exporting_to(receiver.exporter) as programs:
        trio.run(program, "first", clock=clock)
        trio.run(program, "second")
    programs.assert_no_losses()
    receiver.assert_answers_used()
    receiver.assert_delivered("acme", ["second", "first"])
    assert ExportedSpans(receiver).locations == ["acme"]
    assert receiver.open_connections == 0


def test_a_receiver_that_was_left_refuses_connections(caplog: pytest.LogCaptureFixture) -> None:
    with OTLPReceiver(listen=False) as receiver:
        pass
    clock = trio.testing.MockClock(autojump_threshold=0)
    with exporting_to(receiver.exporter) as programs:
        trio.run(program, clock=clock)
    with pytest.raises(AssertionError, match=r"1 span was handed back undelivered: .*refuse"):
        programs.assert_no_losses()


async def test_leaving_a_receiver_closes_its_connections() -> None:
    with OTLPReceiver(listen=False) as receiver:
        stream = await receiver.network.connect_tcp("receiver.test", 80)
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.open_connections == 1
    with trio.fail_after(DEADLINE):
        assert await stream.recv(10) == b""
    await trio.testing.wait_all_tasks_blocked()
    assert receiver.open_connections == 0


def test_with_is_for_receivers_that_do_not_listen_and_only_once() -> None:
    with pytest.raises(TypeError, match="`async with`; `with` is for listen=False only"), OTLPReceiver():
        pass
    with OTLPReceiver(listen=False) as receiver, pytest.raises(trio.BusyResourceError), receiver:
        pass


async def test_the_exporter_of_a_receiver_that_listens_uses_a_socket() -> None:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        with exporting_to(receiver.exporter):
            await program()
    receiver.assert_delivered("acme", ["chat"])


async def test_what_was_not_delivered_is_told_with_the_difference() -> None:
    async with OTLPReceiver(listen=False, location_header="X-Scope-OrgID") as receiver:
        with pytest.raises(AssertionError) as caught:
            receiver.assert_delivered("acme", ["chat"])
        assert str(caught.value) == "'acme': missing 'chat'; delivered there: nothing; elsewhere: nothing"
        async with SpanBatcher(receiver.exporter()) as batcher:
            for location, name in (("acme", "chat"), ("acme", "chat"), ("acme", "plan"), ("globex", "tool")):
                await batcher.add_span(location, make_span(name))
    receiver.assert_delivered("acme", iter(["plan", "chat", "chat"]))
    receiver.assert_delivered("nobody", [])
    with pytest.raises(AssertionError) as caught:
        receiver.assert_delivered("acme", ["chat", "tool", "tool"])
    assert str(caught.value) == (
        "'acme': missing 'tool' 2 times; unexpected 'chat', 'plan'; delivered there: 'chat' 2 times, 'plan'; "
        "elsewhere: 1 at 'globex'"
    )
