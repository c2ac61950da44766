"""A seeded run repeats exactly, even where trio's order depends on memory addresses."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio
from trio._core import _run

from tests.support.seeded_trio import run_seeded, seeded

TASKS = 12

Program: TypeAlias = Callable[[list[int]], Awaitable[None]]


@pytest.fixture(autouse=True)
def without_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore trio's defaults: importing Hypothesis turns the switch on permanently."""
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)


def orders(program: Program) -> list[list[int]]:
    """Run a program several times with one seed and different addresses. Return its records."""
    seen = []
    ballast: list[object] = []
    for _ in range(20):
        # Objects allocated in between change the addresses of the objects of the next run.
        ballast += [bytearray(random.randrange(10_000)) for _ in range(random.randrange(100))]
        del ballast[:: random.randrange(2, 5)]
        order: list[int] = []
        run_seeded(1, program, order)
        seen.append(order)
    return seen


async def wake_up_at_once(order: list[int]) -> None:
    async def wait(number: int) -> None:
        await trio.sleep(1)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(wait, number)


async def stand_in_line(order: list[int], number: int) -> None:
    """Wait forever, and record the moment of a cancel, not the task's next step."""

    def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        order.append(number)
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)


async def cancel_tasks_of_one_scope(order: list[int]) -> None:
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                nursery.start_soon(stand_in_line, order, number)


async def cancel_scopes_in_one_scope(order: list[int]) -> None:
    async def wait(number: int) -> None:
        with trio.CancelScope():
            await stand_in_line(order, number)

    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                nursery.start_soon(wait, number)


async def pass_one_deadline(order: list[int]) -> None:
    async def wait(number: int) -> None:
        with trio.move_on_at(trio.current_time() + 1):
            await stand_in_line(order, number)

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(wait, number)


@pytest.mark.parametrize(
    "program", [wake_up_at_once, cancel_tasks_of_one_scope, cancel_scopes_in_one_scope, pass_one_deadline]
)
def test_the_same_seed_gives_the_same_order(program: Program) -> None:
    first, *others = orders(program)
    assert sorted(first) == list(range(TASKS))
    assert all(order == first for order in others)


def test_another_seed_gives_another_order() -> None:
    seen = set()
    for seed in range(20):
        order: list[int] = []
        run_seeded(seed, wake_up_at_once, order)
        seen.add(tuple(order))
    assert len(seen) == 20


def test_a_seeded_run_returns_what_the_function_returns_on_a_clock_that_jumps() -> None:
    async def sleep(seconds: float) -> float:
        await trio.sleep(seconds)
        return trio.current_time()

    assert run_seeded(1, sleep, 1e6) == 1e6


def test_afterwards_trio_is_unchanged() -> None:
    def state() -> tuple[object, ...]:
        switch = _run._ALLOW_DETERMINISTIC_SCHEDULING
        return switch, _run._r.getstate(), _run.Task.__hash__, _run.CancelStatus.__hash__, "id" in vars(_run)

    before = state()
    with pytest.raises(KeyError):
        run_seeded(1, raise_key_error)
    assert state() == before


async def raise_key_error() -> None:
    await trio.lowlevel.checkpoint()
    raise KeyError


@pytest.mark.parametrize("name", ["_ALLOW_DETERMINISTIC_SCHEDULING", "_r"])
def test_a_trio_without_the_switches_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_run, name)
    with pytest.raises(RuntimeError, match="seeded runs need them"), seeded(1):
        pass
