"""The fixtures of the plugin, in runs of pytest as users start them."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.processes import run_to_end

INI = """
[pytest]
filterwarnings = error
trio_mode = {trio_mode}
"""
SPANS = """
import functools, pytest, threading, trio, trio.testing
from trio_spanbatch import Span, SpanBatcher, SpanContext

def span(name, number=1):
    return Span(name, SpanContext(1, number), start_time=number, end_time=number)

async def program(*names):
    async with SpanBatcher() as batcher:
        for number, name in enumerate(names, 1):
            await batcher.add_span("acme", span(name, number))
"""


class Outcome:
    """What pytest said about a run.

    Attributes:
        tests: For each test how its phases ended, such as ``["passed", "error"]``.
        text: All its output.
        reports: The part about errors and failures.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.reports = text.partition("= PASSES =")[0]
        self.tests: defaultdict[str, list[str]] = defaultdict(list)
        for word, name in re.findall(r"^(PASSED|FAILED|ERROR|XFAIL) \S+::(\w+)", text, re.MULTILINE):
            self.tests[name].append(word.lower())

    def section(self, name: str) -> str:
        """Return the text of the report about a test, without the records of its log."""
        heading = rf"^_+ (?:ERROR at \w+ of )?{name} _+\n"
        (text,) = re.findall(rf"{heading}(.*?)(?=^[_=]{{9}}|^-{{9}})", self.reports, re.MULTILINE | re.DOTALL)
        return str(text)


def run_pytest(folder: Path, test: str, *arguments: str, trio_mode: bool = True) -> Outcome:
    (folder / "pytest.ini").write_text(INI.format(trio_mode=trio_mode))
    (folder / "test_program.py").write_text(SPANS + dedent(test))
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    # Not `untraced_environment`, so that the plugin is measured.
    ended = run_to_end(
        [*command, "--strict-markers", "--strict-config"], folder=folder, environ=os.environ, together=True
    )
    return Outcome(ended.stdout)


VERDICTS = """
    async def test_a_batcher_is_entered(span_batcher, otlp_receiver, exported_spans):
        span_batcher.add_span_nowait("acme", span("chat"))
        await span_batcher.flush()
        otlp_receiver.assert_delivered("acme", ["chat"])
        assert exported_spans.tree() == {"acme": [{"name": "chat", "attributes": {}, "children": []}]}

    async def test_what_was_not_flushed_is_delivered_at_the_end(span_batcher):
        span_batcher.add_span_nowait("acme", span("chat"))

    async def test_a_clock_that_stands_still(span_batcher, otlp_receiver, mock_clock):
        otlp_receiver.set_answers([503, 503])
        span_batcher.add_span_nowait("acme", span("chat"))

    async def test_a_clock_that_jumps(span_batcher, otlp_receiver, autojump_clock):
        otlp_receiver.set_answers([503, 503, 503])
        span_batcher.add_span_nowait("acme", span("chat"))
        await span_batcher.flush()
        assert trio.current_time() > 1

    def test_a_program_that_makes_its_batcher(exported_spans):
        trio.run(program, "plan", "chat")
        trio.run(program, "chat", clock=trio.testing.MockClock(autojump_threshold=0))
        assert [one["name"] for one in exported_spans.at("acme")] == ["chat", "plan", "chat"]

    def test_a_batcher_that_the_test_enters(span_batcher, exported_spans):
        async def main():
            async with span_batcher:
                await span_batcher.add_span("acme", span("chat"))
        trio.run(main)
        assert exported_spans.locations == ["acme"]

    @pytest.fixture
    async def shop(span_batcher):
        await span_batcher.add_span("acme", span("open"))
        yield span_batcher
        await span_batcher.add_span("acme", span("close", 2))

    @pytest.fixture
    def door(span_batcher):
        span_batcher.add_span_nowait("acme", span("door", 3))

    async def test_fixtures_of_both_kinds(shop, door, otlp_receiver):
        await shop.flush()
        otlp_receiver.assert_delivered("acme", ["open", "door"])

    async def test_rejected(span_batcher, otlp_receiver):
        otlp_receiver.set_answers([400])
        span_batcher.add_span_nowait("acme", span("chat"))

    async def test_undelivered(otlp_receiver, autojump_clock):
        otlp_receiver.set_answers(lambda request: 503)
        await program("chat", "chat")

    @pytest.fixture
    def thread():
        started = threading.Event()
        async def main():
            with trio.CancelScope() as scope:
                thread.stop = functools.partial(trio.lowlevel.current_trio_token().run_sync_soon, scope.cancel)
                async with SpanBatcher(shutdown_timeout=0) as batcher:
                    batcher.add_span_nowait("acme", span("chat"))
                    started.set()
                    await trio.sleep_forever()
        thread = threading.Thread(target=trio.run, args=(main,))
        yield thread, started
        thread.stop()
        thread.join()

    def test_pending(thread, otlp_receiver):
        thread[0].start()
        assert thread[1].wait(60)

    async def test_unused(otlp_receiver):
        otlp_receiver.set_answers([503, 400])

    async def test_both(span_batcher, otlp_receiver):
        otlp_receiver.set_answers([400, 503])
        span_batcher.add_span_nowait("acme", span("chat"))

    @pytest.mark.span_batcher(allow_losses=True, allow_unused_answers=True)
    async def test_allowed(span_batcher, otlp_receiver):
        otlp_receiver.set_answers([400, 503])
        span_batcher.add_span_nowait("acme", span("chat"))

    @pytest.mark.span_batcher(allow_losses=True)
    class TestClass:
        @pytest.mark.span_batcher(allow_unused_answers=True)
        async def test_allowed_by_class_and_function(self, span_batcher, otlp_receiver):
            otlp_receiver.set_answers([400, 503])
            span_batcher.add_span_nowait("acme", span("chat"))

        @pytest.mark.span_batcher(allow_losses=False)
        async def test_the_function_decides(self, span_batcher, otlp_receiver):
            otlp_receiver.set_answers([400])
            span_batcher.add_span_nowait("acme", span("chat"))

    @pytest.mark.span_batcher(allow_unused_answers=True)
    async def test_allowed_is_the_other_thing(span_batcher, otlp_receiver):
        otlp_receiver.set_answers([400])
        span_batcher.add_span_nowait("acme", span("chat"))

    async def test_failed(span_batcher, otlp_receiver):
        otlp_receiver.set_answers([400, 503])
        span_batcher.add_span_nowait("acme", span("chat"))
        assert False

    @pytest.fixture
    async def crashing(nursery, span_batcher):
        async def crash():
            await trio.testing.wait_all_tasks_blocked()
            raise RuntimeError("crashed")
        nursery.start_soon(crash)
        with trio.CancelScope() as scope:
            yield

    async def test_crashed_while_the_clock_stands_still(mock_clock, crashing, span_batcher, otlp_receiver):
        otlp_receiver.set_answers([503, 503])
        span_batcher.add_span_nowait("acme", span("chat"))
        await trio.sleep_forever()

    @pytest.mark.xfail
    def test_expected_to_fail(otlp_receiver):
        otlp_receiver.set_answers([503])
        assert False

    def test_skipped(otlp_receiver):
        otlp_receiver.set_answers([503])
        pytest.skip("not today")

    @pytest.fixture
    def broken(otlp_receiver):
        otlp_receiver.set_answers([503])
        raise RuntimeError("broken")

    def test_broken_fixture(otlp_receiver, broken):
        pass

    def test_an_explicit_exporter(otlp_receiver):
        from trio_spanbatch.testing import InMemoryExporter
        from trio_spanbatch import Refused
        async def main():
            async with SpanBatcher(InMemoryExporter([Refused("no")])) as batcher:
                batcher.add_span_nowait("acme", span("chat"))
        trio.run(main)
        assert otlp_receiver.stored == {}

    def test_a_failing_function_for_answers(otlp_receiver):
        otlp_receiver.set_answers(lambda request: pytest.fail("not a 500"))
        trio.run(program, "chat", clock=trio.testing.MockClock(autojump_threshold=0))

    @pytest.mark.span_batcher(allow_loses=True)
    def test_unknown_argument(otlp_receiver):
        pass

    @pytest.mark.span_batcher(True)
    def test_positional_argument(otlp_receiver):
        pass

    @pytest.mark.span_batcher(allow_losses="yes")
    def test_argument_of_a_wrong_type(otlp_receiver):
        pass
"""
PASS = [
    "test_a_batcher_is_entered",
    "test_what_was_not_flushed_is_delivered_at_the_end",
    "test_a_clock_that_stands_still",
    "test_a_clock_that_jumps",
    "test_a_program_that_makes_its_batcher",
    "test_a_batcher_that_the_test_enters",
    "test_fixtures_of_both_kinds",
    "test_allowed",
    "test_an_explicit_exporter",
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_pytest(tmp_path_factory.mktemp("verdicts"), VERDICTS)


@pytest.mark.parametrize("name", PASS)
def test_sync_tests_trio_tests_and_fixtures_get_what_they_need_and_pass(verdicts: Outcome, name: str) -> None:
    assert verdicts.tests[name] == ["passed"], verdicts.text


BY_LOSSES = "(allowed by @pytest.mark.span_batcher(allow_losses=True))"
NO_TIME = "no time for another attempt before the shutdown deadline"
BY_ANSWERS = "(allowed by @pytest.mark.span_batcher(allow_unused_answers=True))"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("test_rejected", f"1 span was rejected: 400 Bad Request (1) {BY_LOSSES}"),
        (
            "test_undelivered",
            f"2 spans were handed back undelivered: {NO_TIME}: 503 Service Unavailable (2) {BY_LOSSES}",
        ),
        ("test_pending", f"1 span is pending {BY_LOSSES}"),
        ("test_unused", f"2 scripted answers were not used {BY_ANSWERS}"),
        (
            "test_both",
            f"1 span was rejected: 400 Bad Request (1) {BY_LOSSES}; 1 scripted answer was not used {BY_ANSWERS}",
        ),
        ("test_allowed_is_the_other_thing", f"1 span was rejected: 400 Bad Request (1) {BY_LOSSES}"),
    ],
)
def test_losses_and_unused_answers_are_an_error_at_teardown_in_one_line(
    verdicts: Outcome, name: str, line: str
) -> None:
    assert verdicts.tests[name] == ["passed", "error"], verdicts.text
    assert verdicts.section(name) == line + "\n"


def test_the_marker_of_a_function_adds_to_that_of_its_class_and_overrides_it(verdicts: Outcome) -> None:
    assert "PASSED test_program.py::TestClass::test_allowed_by_class_and_function\n" in verdicts.text
    assert "ERROR test_program.py::TestClass::test_allowed_by_class_and_function" not in verdicts.text
    assert "ERROR test_program.py::TestClass::test_the_function_decides" in verdicts.text


def test_a_test_that_failed_or_was_skipped_or_not_run_is_not_failed_again(verdicts: Outcome) -> None:
    assert verdicts.tests["test_failed"] == ["failed"]
    assert verdicts.tests["test_crashed_while_the_clock_stands_still"] == ["failed"]
    assert verdicts.tests["test_expected_to_fail"] == ["xfail"]
    assert verdicts.tests["test_skipped"] == []
    assert "ERROR at teardown of test_skipped" not in verdicts.text
    assert verdicts.tests["test_broken_fixture"] == ["error"]
    assert "RuntimeError: broken" in verdicts.section("test_broken_fixture")


def test_a_failure_inside_the_receiver_does_not_break_the_trio_run(verdicts: Outcome) -> None:
    name = "test_a_failing_function_for_answers"
    assert "TrioInternalError" not in verdicts.text
    assert verdicts.tests[name] == ["passed", "error"], verdicts.text


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("test_unknown_argument", "allow_loses=True"),
        ("test_positional_argument", "True"),
        ("test_argument_of_a_wrong_type", "allow_losses='yes'"),
    ],
)
def test_a_wrong_argument_of_the_marker_is_an_error_in_one_line(verdicts: Outcome, name: str, given: str) -> None:
    assert verdicts.tests[name] == ["error"]
    assert verdicts.section(name) == (
        f"@pytest.mark.span_batcher has the argument {given}; it takes allow_losses=True and "
        "allow_unused_answers=True\n"
    )


LOADED = """
    import sys
    OURS = {name for name in sys.modules if name.partition(".")[0] == "trio_spanbatch"}
    OTHERS = sys.modules.keys() & {"trio", "httpx", "h11", "google.protobuf", "opentelemetry"}

    def test_loaded():
        assert OURS == {"trio_spanbatch", "trio_spanbatch.pytest_plugin"}
        assert not OTHERS

    def test_sync():
        pass
"""


def test_without_a_fixture_nothing_of_the_package_is_imported_and_pytest_trio_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_loaded.py").write_text(dedent(LOADED))
    plugins = ("no:trio", "no:anyio", "no:hypothesispytest", "no:randomly", "no:cacheprovider")
    options = [option for name in plugins for option in ("-p", name)]
    command = [sys.executable, "-W", "error", "-m", "pytest", "-rA", "--strict-markers", *options, "test_loaded.py"]
    ended = run_to_end(command, folder=tmp_path, environ=os.environ, together=True)
    assert "2 passed" in ended.stdout, ended.stdout


def test_a_users_coverage_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "shop.py").write_text("def sell():\n    return 1\n")
    (tmp_path / "test_shop.py").write_text("import shop\n\ndef test_sell(exported_spans):\n    assert shop.sell()\n")
    command = [sys.executable, "-W", "error", "-m", "pytest", "--cov=shop", "--cov-fail-under=100", "test_shop.py"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ended = run_to_end(command, folder=tmp_path, environ=environ, together=True)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^shop\.py +2 +0 +100%", ended.stdout, re.MULTILINE), ended.stdout


def test_the_fixtures_work_under_xdist_without_trio_mode_and_with_anyios_runner(tmp_path: Path) -> None:
    test = """
        @pytest.mark.trio
        async def test_trio(span_batcher, exported_spans):
            await span_batcher.add_span("acme", span("chat"))
            await span_batcher.flush()
            assert exported_spans.locations == ["acme"]

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["trio", ("trio", {"strict_exception_groups": True})])
        async def test_anyio(anyio_backend, span_batcher, exported_spans):
            await span_batcher.add_span("acme", span("chat"))
            await span_batcher.flush()
            await program("chat")
            assert len(exported_spans.at("acme")) == 2

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_asyncio(anyio_backend, exported_spans):
            import anyio, threading
            await anyio.to_thread.run_sync(trio.run, program, "chat")
            thread = threading.Thread(target=trio.run, args=(program, "chat"))
            thread.start()
            thread.join()
            assert len(exported_spans.at("acme")) == 2

        def test_sync(exported_spans):
            trio.run(program, "chat")
            assert exported_spans.locations == ["acme"]
        """
    outcome = run_pytest(tmp_path, test, "--numprocesses=2", trio_mode=False)
    assert "5 passed" in outcome.text, outcome.text


def test_the_marker_is_listed_and_the_plugin_can_be_switched_off(tmp_path: Path) -> None:
    listed = run_pytest(tmp_path, "", "--markers")
    assert "@pytest.mark.span_batcher(allow_losses=False, allow_unused_answers=False): " in listed.text
    off = run_pytest(tmp_path, "def test_off(otlp_receiver): pass", "-p", "no:trio_spanbatch")
    assert "fixture 'otlp_receiver' not found" in off.text
