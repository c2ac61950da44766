"""Ctrl-C, as real SIGINTs in real child processes.

A child says on its standard output how far it is, the test sends a signal at that point, and the child prints what
became of its spans at the end. Nothing here waits for time to pass.

Tests of a Ctrl-C at a specific place in the package's code are in `test_interrupts_at_a_place`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from tests.support.paths import PROJECT
from tests.support.processes import untraced_environment
from trio_spanbatch._runtime.interrupts import InterruptWatch

pytestmark = pytest.mark.long

PRELUDE = """
    import functools
    import json, math, signal, sys
    import trio
    from trio_spanbatch import BatchPolicy, SpanBatcher
    from trio_spanbatch.testing import InMemoryExporter
    from tests.support.batchers import assert_conserved, make_spans

    def say(word):
        print(word, flush=True)

    def conclude(batchers, error):
        counts = []
        for batcher in batchers:
            statistics = batcher.statistics()
            assert_conserved(statistics)
            counts.append([statistics.accepted, statistics.delivered, statistics.undelivered])
            counts[-1].append(sorted({loss.reason for loss in batcher.undelivered}))
        say(json.dumps({"error": type(error).__name__, "counts": counts, "notes": getattr(error, "__notes__", [])}))

    def run_and_conclude(main, batchers):
        try:
            trio.run(main)
        except BaseException as error:
            conclude(batchers, error)

    class Says(InMemoryExporter):
        async def export(self, batch):
            say("exporting")
            return await super().export(batch)
"""


def run_child(program: str, signals: Sequence[str]) -> dict[str, Any]:
    """Run ``program`` and send it a SIGINT each time it says one of the words ``signals`` in turn."""
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=untraced_environment(),
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        awaited = list(signals)
        last = ""
        for line in child.stdout:
            last = line.strip()
            if awaited and last == awaited[0]:
                awaited.pop(0)
                child.send_signal(signal.SIGINT)
        errors = child.stderr.read()
        assert child.wait() == 0, errors
    assert not awaited, f"the child never said {awaited}; it said {last!r} last; {errors}"
    assert "Traceback" not in errors, errors
    result: dict[str, Any] = json.loads(last)
    return result


def test_ctrl_c_in_the_body_leaves_as_keyboard_interrupt_after_everything_was_delivered() -> None:
    result = run_child(
        """
        batcher = SpanBatcher(InMemoryExporter(), batch=BatchPolicy(max_delay=math.inf))

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(30))
                say("in the body")
                await trio.sleep_forever()

        run_and_conclude(main, [batcher])
        """,
        ["in the body"],
    )
    assert result == {"error": "KeyboardInterrupt", "counts": [[30, 30, 0, []]], "notes": []}


def test_ctrl_c_in_a_busy_body_interrupts_only_the_body() -> None:
    result = run_child(
        """
        batcher = SpanBatcher(InMemoryExporter(), batch=BatchPolicy(max_spans=10, max_delay=0.001))

        async def main():
            async with batcher:
                spans = make_spans(100)
                said = False
                while True:
                    for span in spans:
                        try:
                            batcher.add_span_nowait("a", span)
                        except trio.WouldBlock:
                            await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    if not said:
                        said = True
                        say("busy")

        run_and_conclude(main, [batcher])
        """,
        ["busy"],
    )
    accepted, delivered, undelivered, _ = result["counts"][0]
    assert (result["error"], undelivered) == ("KeyboardInterrupt", 0)
    assert accepted == delivered >= 100


@pytest.mark.parametrize("where", ["the main task", "another task"])
def test_ctrl_c_in_the_drain_stops_it_at_once_and_is_raised_again(where: str) -> None:
    result = run_child(
        f"""
        batcher = SpanBatcher(Says(delay=math.inf), batch=BatchPolicy(max_delay=math.inf), shutdown_timeout=math.inf)

        async def use():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(30))

        async def in_a_nursery():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)

        try:
            trio.run(use if {where!r} == "the main task" else in_a_nursery)
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            conclude([batcher], error)
        """,
        ["exporting"],
    )
    assert result["error"] == "KeyboardInterrupt"
    assert result["counts"] == [[30, 0, 30, ["Ctrl-C during the drain"]]]
    # The traceback that the user sees has the losses.
    assert "30 of 30 spans were handed back undelivered" in result["notes"][0]


def test_ctrl_c_in_the_body_ends_it_and_ctrl_c_in_the_drain_stops_that_too() -> None:
    result = run_child(
        """
        batcher = SpanBatcher(Says(delay=math.inf), batch=BatchPolicy(max_delay=math.inf), shutdown_timeout=math.inf)

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(30))
                say("in the body")
                await trio.sleep_forever()

        run_and_conclude(main, [batcher])
        """,
        ["in the body", "exporting"],
    )
    assert result["error"] == "KeyboardInterrupt"
    assert result["counts"] == [[30, 0, 30, ["Ctrl-C during the drain"]]]
    assert "30 of 30 spans were handed back" in result["notes"][0]


def test_ctrl_c_in_protected_code_just_before_the_drain_stops_it() -> None:
    result = run_child(
        """
        @trio.lowlevel.enable_ki_protection
        def press_ctrl_c():
            signal.raise_signal(signal.SIGINT)

        batcher = SpanBatcher(InMemoryExporter(delay=math.inf), shutdown_timeout=math.inf)

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))
                press_ctrl_c()

        run_and_conclude(main, [batcher])
        """,
        [],
    )
    assert (result["error"], result["counts"]) == ("KeyboardInterrupt", [[3, 0, 3, ["Ctrl-C during the drain"]]])


def test_ctrl_c_in_the_last_step_of_the_drain_is_raised_again() -> None:
    result = run_child(
        """
        class InterruptsAtTheEnd(InMemoryExporter):
            async def aclose(self):
                await super().aclose()
                signal.raise_signal(signal.SIGINT)

        batcher = SpanBatcher(InterruptsAtTheEnd())

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))

        run_and_conclude(main, [batcher])
        """,
        [],
    )
    assert (result["error"], result["counts"]) == ("KeyboardInterrupt", [[3, 3, 0, []]])


async def test_a_handler_that_other_code_restored_passes_the_signal_on_and_removes_itself() -> None:
    before = signal.getsignal(signal.SIGINT)
    watch = InterruptWatch.of_this_run()
    stopped: list[bool] = []

    def stop() -> None:
        stopped.append(True)

    watch.add(stop)
    ours = signal.getsignal(signal.SIGINT)
    assert ours != before
    assert not watch.remove(stop)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, ours)
    # A handler that is already installed is not stored as the one to pass signals on to.
    watch.add(stop)
    signal.raise_signal(signal.SIGINT)
    assert watch.remove(stop)
    signal.signal(signal.SIGINT, ours)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    # A Ctrl-C after a stop was removed does not count for it.
    await trio.lowlevel.checkpoint()
    assert stopped == []


def test_a_handler_that_is_put_back_after_the_end_of_the_run_gives_way_to_pythons_own() -> None:
    async def main() -> Any:
        watch = InterruptWatch.of_this_run()
        watch.add(main_stop)
        ours = signal.getsignal(signal.SIGINT)
        watch.remove(main_stop)
        await trio.lowlevel.checkpoint()
        return ours

    def main_stop() -> None: ...

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, trio.run(main))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


OWN_HANDLERS = {
    "before the run": """
        signal.signal(signal.SIGINT, lambda *_: seen.append("own"))

        async def main():
            await use()
    """,
    "in the run": """
        async def main():
            signal.signal(signal.SIGINT, lambda *_: seen.append("own"))
            await use()
    """,
    "a receiver": """
        async def main():
            with trio.open_signal_receiver(signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, signals)
                    await use()
                    nursery.cancel_scope.cancel()

        async def receive(signals):
            async for _ in signals:
                seen.append("own")
    """,
    "a callable object": """
        class Handler:
            def __call__(self, *_):
                seen.append("own")

        signal.signal(signal.SIGINT, Handler())

        async def main():
            await use()
    """,
    "with the name and the module of the one before": """
        async def main():
            @functools.wraps(signal.getsignal(signal.SIGINT))
            def handler(*_):
                seen.append("own")

            signal.signal(signal.SIGINT, handler)
            await use()
    """,
    "set during the drain": """
        async def set_later():
            await sending.wait()
            signal.signal(signal.SIGINT, lambda *_: seen.append("own"))
            ready.set()

        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(set_later)
                await use()
    """,
}


@pytest.mark.parametrize("how", OWN_HANDLERS)
def test_a_programs_own_handler_is_called_in_the_drain_and_the_drain_goes_on(how: str) -> None:
    result = run_child(
        """
        seen = []
        sending, ready = trio.Event(), trio.Event()

        class Slow(InMemoryExporter):
            async def export(self, batch):
                sending.set()
                if SET_LATER:
                    await ready.wait()
                say("exporting")
                while not seen:
                    await trio.sleep(0.001)
                return await super().export(batch)

        batchers = [SpanBatcher(Slow(), batch=BatchPolicy(max_delay=math.inf), shutdown_timeout=math.inf)]

        async def use():
            before = signal.getsignal(signal.SIGINT)
            async with batchers[0]:
                batchers[0].add_spans_nowait("a", make_spans(3))
            assert SET_LATER or signal.getsignal(signal.SIGINT) is before
        """.replace("SET_LATER", repr(how == "set during the drain"))
        + OWN_HANDLERS[how]
        + """
        trio.run(main)
        assert seen == ["own"]
        conclude(batchers, None)
        """,
        ["exporting"],
    )
    assert result == {"error": "NoneType", "counts": [[3, 3, 0, []]], "notes": []}


def documented_host() -> str:
    """Return the code of `docs/signals.md` that hosts trio in asyncio."""
    page = (PROJECT / "docs" / "signals.md").read_text(encoding="utf-8")
    return page.partition("### Under asyncio")[2].partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("where", ["in the body", "exporting"])
def test_under_an_asyncio_host_asyncio_handles_ctrl_c_and_no_span_is_lost(where: str) -> None:
    program = """
        import asyncio

        class Slow(InMemoryExporter):
            async def export(self, batch):
                say("exporting")
                while "cancelled" not in events:
                    await trio.sleep(0.001)
                return await super().export(batch)

        batcher = SpanBatcher(Slow(), batch=BatchPolicy(max_delay=math.inf), shutdown_timeout=math.inf)
        events = []

        async def watch_for_the_cancel():
            try:
                await trio.sleep_forever()
            finally:
                events.append("cancelled")

        async def main():
            handler = signal.getsignal(signal.SIGINT)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_for_the_cancel)
                async with batcher:
                    batcher.add_spans_nowait("a", make_spans(3))
                    say("in the body")
                    if IN_THE_BODY:
                        await trio.sleep_forever()
                assert signal.getsignal(signal.SIGINT) is handler
    """.replace("IN_THE_BODY", str(where == "in the body"))
    end = """
        try:
            asyncio.run(host())
        except BaseException as error:
            conclude([batcher], error)
    """
    program = "\n".join([textwrap.dedent(program), documented_host(), textwrap.dedent(end)])
    result = run_child(program, [where])
    assert (result["error"], result["counts"]) == ("KeyboardInterrupt", [[3, 3, 0, []]])


def test_ctrl_c_while_an_exporter_hangs_in_aclose_cuts_it_short() -> None:
    result = run_child(
        """
        class HangsInClose(InMemoryExporter):
            async def aclose(self):
                say("closing")
                await trio.sleep_forever()

        batcher = SpanBatcher(HangsInClose(), shutdown_timeout=1000)

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))

        run_and_conclude(main, [batcher])
        """,
        ["closing"],
    )
    assert (result["error"], result["counts"]) == ("KeyboardInterrupt", [[3, 3, 0, []]])


def test_ctrl_c_in_the_drains_of_two_batchers_stops_both_and_later_ones_work_as_before() -> None:
    result = run_child(
        """
        batchers = [SpanBatcher(Says(delay=math.inf), batch=BatchPolicy(max_delay=math.inf), shutdown_timeout=math.inf)
                    for _ in range(2)]

        async def use(batcher, start):
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))
                await start.wait()

        async def both():
            first, second = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, batchers[0], first)
                nursery.start_soon(use, batchers[1], second)
                await trio.testing.wait_all_tasks_blocked()
                first.set()
                await trio.testing.wait_all_tasks_blocked()
                second.set()
                await trio.testing.wait_all_tasks_blocked()
                say("both drain")

        async def main():
            handler_before = signal.getsignal(signal.SIGINT)
            try:
                await both()
            except* KeyboardInterrupt:
                pass
            assert signal.getsignal(signal.SIGINT) is handler_before
            say("sleeping")
            await trio.sleep_forever()

        import trio.testing
        run_and_conclude(main, batchers)
        """,
        ["both drain", "sleeping"],
    )
    assert result["error"] == "KeyboardInterrupt"
    assert result["counts"] == [[3, 0, 3, ["Ctrl-C during the drain"]]] * 2


def test_a_process_that_ignores_sigint_still_ignores_it_in_the_drain() -> None:
    result = run_child(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        class Slow(InMemoryExporter):
            async def export(self, batch):
                say("exporting")
                await trio.sleep(0)
                return await super().export(batch)

        batcher = SpanBatcher(Slow(), batch=BatchPolicy(max_delay=math.inf))

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))

        trio.run(main)
        conclude([batcher], None)
        """,
        ["exporting"],
    )
    assert result["counts"] == [[3, 3, 0, []]]


def test_a_batcher_in_a_run_that_is_not_in_the_main_thread_drains_without_a_handler() -> None:
    result = run_child(
        """
        import threading
        batcher = SpanBatcher(InMemoryExporter(), batch=BatchPolicy(max_delay=math.inf))

        async def main():
            async with batcher:
                batcher.add_spans_nowait("a", make_spans(3))

        thread = threading.Thread(target=trio.run, args=(main,))
        thread.start()
        thread.join()
        conclude([batcher], None)
        """,
        [],
    )
    assert result["counts"] == [[3, 3, 0, []]]
