"""An exception that a signal handler raises at each line of a call, and a span that one adds: the books are right."""

from __future__ import annotations

import pytest
import trio

from tests.support.books import (
    NEXT,
    PACKAGE,
    SCENES,
    TRIO,
    AtCall,
    AtLine,
    Interrupted,
    Program,
    Run,
    Scene,
    called,
    sweep,
)

scenes = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name.replace(" ", "-"))


def _raise() -> None:
    raise Interrupted


@scenes
@pytest.mark.parametrize("folders", [(PACKAGE,), (PACKAGE, TRIO)], ids=["our lines", "lines of trio's too"])
def test_an_exception_of_a_signal_handler_at_any_line_leaves_the_books_right(
    scene: Scene, folders: tuple[str, ...]
) -> None:
    def attempt(number: int) -> bool:
        async def call(scene: Scene, program: Program) -> None:
            with AtLine(number, _raise, *folders):
                await called(scene, program)
            await trio.lowlevel.checkpoint()

        run = Run(scene)
        try:
            run.interrupt(call, NEXT[number % len(NEXT)])
        except BaseException as error:
            error.add_note(f"at line {number}")
            raise
        return isinstance(run.raised, Interrupted)

    assert len(list(sweep(attempt))) > 10


@scenes
def test_a_span_that_a_signal_handler_adds_at_any_call_is_counted_once(scene: Scene) -> None:
    def attempt(number: int) -> bool:
        async def call(scene: Scene, program: Program) -> None:
            def nested() -> None:
                nonlocal done
                done = True
                try:
                    program.add("a" if number % 2 else "b")
                except trio.WouldBlock:
                    pass

            done = False
            with AtCall(number, nested):
                await called(scene, program)
            nonlocal reached
            reached = done
            await trio.lowlevel.checkpoint()

        reached = False
        run = Run(scene)
        try:
            run.interrupt(call, NEXT[number % len(NEXT)])
        except BaseException as error:
            error.add_note(f"at call {number}")
            raise
        return reached

    assert len(list(sweep(attempt))) > 10
