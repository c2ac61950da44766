"""A `RecursionError` at each depth near the limit: the books are right, and the batcher works on."""

from __future__ import annotations

import pytest
import trio

from tests.support.books import NEXT, SCENES, Program, Run, Scene, at_height, at_height_async

HEIGHTS = range(80)

scenes = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name.replace(" ", "-"))


@scenes
def test_a_recursion_error_at_any_depth_leaves_the_books_right(scene: Scene) -> None:
    raised = []
    for height in HEIGHTS:

        async def call(scene: Scene, program: Program, height: int = height) -> None:
            if scene.is_async:
                await at_height_async(height, lambda: scene.act(program))
            else:
                at_height(height, lambda: scene.act(program))
                await trio.lowlevel.checkpoint()

        run = Run(scene)
        run.interrupt(call, NEXT[height % len(NEXT)])
        raised.append(run.raised is RecursionError)
    assert raised[0], "there was room for the call at the very end of the stack"
    assert not raised[-1], "the sweep does not reach places where there is room"
