"""Short soaks: one passes, and others fail when there is a reason.

They end after a number of spans instead of a time. The rule for flat figures is tested with made-up samples, since a
real run takes minutes.
"""

from __future__ import annotations

import mmap
import random
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.soak import __main__ as soak_module
from tests.soak.__main__ import Plan, Report, main, soak
from tests.soak.figures import AT_REST, MIB, SHORTEST, UNDER_WAY, Gauge, Sample, judge, measure
from tests.soak.oracle import ForgettingOracle
from tests.soak.program import Load, MakeExporter, send_over_http
from tests.support.processes import untraced_environment
from trio_spanbatch import Delivered, ExportResult, SpanBatch, SpanBatcher, SpanExporter
from trio_spanbatch.testing import InMemoryExporter

pytestmark = pytest.mark.long

SHORT = Plan(
    seconds=3600.0,
    spans=500,
    every=0.05,
    load=Load(
        spans_per_second=3000.0, locations=40, location_life=0.3, generation=0.2, longest_drain=3.0, idle_timeout=0.2
    ),
)


class Wrapped:
    """The real exporter, with a fault."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.exporter = send_over_http(url, rng)

    async def export(self, batch: SpanBatch) -> ExportResult:
        return await self.exporter.export(batch)

    async def aclose(self) -> None:
        await self.exporter.aclose()


class Forgets(Wrapped):
    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        return Delivered()


class Repeats(Wrapped):
    async def export(self, batch: SpanBatch) -> ExportResult:
        await self.exporter.export(batch)
        return await self.exporter.export(batch)


class Raises(Wrapped):
    async def export(self, batch: SpanBatch) -> ExportResult:
        raise ArithmeticError("a bug")


# -- whole runs ------------------------------------------------------------------------------------------------


async def test_a_short_soak_passes_and_has_seen_faults_and_rests() -> None:
    rows: list[str] = []
    # It rests once the oracle's patience is over, which is long enough for the server on any machine.
    report = await soak(attrs.evolve(SHORT, rests=1), say=rows.append)
    assert report.failures == []
    assert report.verdicts == []
    assert report.counts["spans accepted"] >= 500
    assert report.counts["spans delivered"] > 0
    assert report.counts["batchers left"] >= 2
    assert report.counts["rests"] >= 1
    assert report.faults
    assert any(row.endswith("  at rest") for row in rows)
    assert any(not row.endswith("  at rest") for row in rows[1:])


@pytest.mark.parametrize(
    ("make_exporter", "violation"),
    [
        pytest.param(Forgets, "is delivered, and the server never stored it", id="forgets"),
        pytest.param(Repeats, "though no attempt was ambiguous", id="repeats"),
        pytest.param(Raises, "logged: ", id="raises"),
    ],
)
async def test_a_soak_fails_with_an_exporter(make_exporter: MakeExporter, violation: str) -> None:
    report = await soak(attrs.evolve(SHORT, spans=50), say=lambda _: None, make_exporter=make_exporter)
    assert any(violation in failure for failure in report.failures), report.failures


async def test_a_soak_fails_if_a_socket_is_left_open() -> None:
    left: list[socket.socket] = []

    def leaky(url: str, rng: random.Random) -> SpanExporter:
        left.append(socket.socket())
        return Forgets(url, rng)

    report = await soak(attrs.evolve(SHORT, spans=50), say=lambda _: None, make_exporter=leaky)
    for one in left:
        one.close()
    assert any(failure.startswith("sockets after the end: ") for failure in report.failures), report.failures


# -- the command -----------------------------------------------------------------------------------------------


def start_soak(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=untraced_environment(),
    )


def test_a_ctrl_c_ends_a_soak_early_with_its_figures() -> None:
    with start_soak("--minutes=600", "--every=0.1", "--rate=1000", "--locations=10") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            if line.strip()[:1].isdigit():
                break
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        errors = child.stderr.read()
    assert errors == ""
    assert "spans accepted" in rest
    assert rest.endswith("passed: every span is accounted for\n")
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("violations", "code", "last"),
    [((), 0, "passed: every span is accounted for"), (("span 7 is lost",), 1, "FAILED: span 7 is lost")],
)
def test_the_exit_code_shows_whether_a_run_failed(
    violations: Sequence[str],
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans: list[Plan] = []

    async def found(plan: Plan, *, say: Callable[[str], object]) -> Report:
        await trio.lowlevel.checkpoint()
        plans.append(plan)
        return Report(samples=(), verdicts=(), violations=violations, faults={"500": 3}, counts={"names": 4})

    monkeypatch.setattr(soak_module, "soak", found)
    assert main(["--minutes=2", "--seed=5"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert (plans[0].seconds, plans[0].seed) == (120.0, 5)


def test_objects_left_to_the_garbage_collector_fail_a_soak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def leaves_a_socket(plan: Plan, *, say: Callable[[str], object]) -> Report:
        await trio.lowlevel.checkpoint()
        socket.socket()
        return Report(samples=(), verdicts=(), violations=(), faults={}, counts={})

    monkeypatch.setattr(soak_module, "soak", leaves_a_socket)
    hook = sys.unraisablehook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([]) == 1
    assert "FAILED: unclosed <socket" in capsys.readouterr().out
    assert sys.unraisablehook is hook


# -- growth of figures -----------------------------------------------------------------------------------------

STEADY = Sample(
    at=0.0,
    memory=60 * MIB,
    server_memory=50 * MIB,
    objects=60_000,
    blocks=250_000,
    tasks=150,
    sockets=30,
    locations=100,
    remembered=800,
)


WARM_UP = 300.0
BETWEEN_MIDDLES = 150.0


def samples_of(change: Callable[[Sample], Sample], *, seconds: float = 600.0) -> list[Sample]:
    return [change(attrs.evolve(STEADY, at=at * 5.0)) for at in range(1, int(seconds / 5) + 1)]


def growing(gauge: Gauge) -> Callable[[Sample], Sample]:
    """A leak that adds slightly more than is allowed from the middle of one half to the middle of the other."""
    allowed = gauge.most(getattr(STEADY, gauge.name)) - getattr(STEADY, gauge.name)

    def change(sample: Sample) -> Sample:
        value = getattr(sample, gauge.name) + (1.4 * allowed + 0.1) * sample.at / BETWEEN_MIDDLES
        return attrs.evolve(sample, **{gauge.name: value})

    return change


def not_flat(samples: Sequence[Sample], gauges: Sequence[Gauge] = (*UNDER_WAY, *AT_REST)) -> list[str]:
    return [verdict.gauge.label for verdict in judge(samples, WARM_UP, gauges) if not verdict.is_flat]


def test_a_constant_figure_is_flat() -> None:
    assert not_flat(samples_of(lambda sample: sample)) == []
    assert len(judge(samples_of(lambda sample: sample), WARM_UP, UNDER_WAY)) == len(UNDER_WAY)


@pytest.mark.parametrize("gauge", [*UNDER_WAY, *AT_REST], ids=lambda gauge: gauge.label)
def test_a_figure_that_grows_all_the_time_is_not_flat(gauge: Gauge) -> None:
    samples = samples_of(growing(gauge))
    assert not_flat(samples, [gauge]) == [gauge.label]
    report = Report(samples=samples, verdicts=judge(samples, WARM_UP, [gauge]), violations=(), faults={}, counts={})
    (failure,) = report.failures
    assert failure.startswith(f"{gauge.label} is not flat: ")


def test_a_figure_that_grows_only_during_the_warm_up_is_flat() -> None:
    def warms_up(sample: Sample) -> Sample:
        return attrs.evolve(sample, memory=sample.memory + int(min(sample.at, WARM_UP)) * MIB)

    assert not_flat(samples_of(warms_up)) == []


def test_a_peak_is_not_growth() -> None:
    def peaks(sample: Sample) -> Sample:
        return attrs.evolve(sample, sockets=1000) if 500 < sample.at < 560 else sample

    assert not_flat(samples_of(peaks)) == []


@pytest.mark.parametrize("seconds", [0.0, WARM_UP, WARM_UP + SHORTEST - 5])
def test_a_short_run_is_not_judged(seconds: float) -> None:
    assert judge(samples_of(lambda sample: sample, seconds=seconds), WARM_UP, UNDER_WAY) == []
    assert judge(samples_of(lambda sample: sample, seconds=WARM_UP + SHORTEST), WARM_UP, UNDER_WAY) != []


def test_a_half_with_one_measurement_is_not_judged() -> None:
    rests = [attrs.evolve(STEADY, at=at) for at in (400.0, 420.0, 440.0, 600.0)]
    assert judge(rests, WARM_UP, AT_REST) == []
    assert judge([*rests, attrs.evolve(STEADY, at=601.0)], WARM_UP, AT_REST) != []


# -- measurements ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_child() -> AsyncIterator[trio.Process]:
    """A process that does nothing."""
    child = await trio.lowlevel.open_process([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        with trio.move_on_after(60, shield=True):
            await child.wait()
            assert child.stdin is not None
            await child.stdin.aclose()


async def test_the_measurement_counts_locations_tasks_sockets_objects_and_memory() -> None:
    async with running_child() as child:
        before = measure(1.0, child.pid, {"names": 7})
        async with SpanBatcher(InMemoryExporter()) as batcher:
            for location in ("a", "b", "c"):
                batcher.add_span_nowait(location, ForgettingOracle().make_span())
            kept = [[number] for number in range(1, 20_001)]
            # Memory from the system, as Python may reuse memory that earlier tests have freed.
            with socket.socket(), mmap.mmap(-1, 50 * MIB) as memory:
                memory.write(bytes(50 * MIB))
                after = measure(2.0, child.pid, {"names": 9})
    assert len(kept) == 20_000
    assert (before.locations, after.locations) == (0, 3)
    assert after.tasks - before.tasks == 2  # the supervisor and the driver
    assert after.sockets - before.sockets == 1
    assert after.objects - before.objects >= 20_000
    assert after.blocks - before.blocks >= 20_000
    assert after.memory - before.memory >= 40 * MIB
    assert 0 < before.server_memory != before.memory
    assert (after.at, after.names) == (2.0, 9)
