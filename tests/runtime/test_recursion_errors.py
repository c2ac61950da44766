"""After a `RecursionError` at any depth near the limit, the counts are right, and the batcher continues to work."""

from __future__ import annotations

import pytest
import trio

from tests.support.interruptions import (
    FOLLOW_UPS,
    SCENES,
    Program,
    Run,
    Scene,
    near_stack_limit,
    near_stack_limit_async,
)

FRAMES_LEFT = range(80)

scenes = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name.replace(" ", "-"))


@scenes
def test_a_recursion_error_at_any_depth_leaves_the_counts_right(scene: Scene) -> None:
    raised = []
    for frames_left in FRAMES_LEFT:

        async def call(scene: Scene, program: Program, frames_left: int = frames_left) -> None:
            if scene.is_async:
                await near_stack_limit_async(frames_left, lambda: scene.act(program))
            else:
                near_stack_limit(frames_left, lambda: scene.act(program))
                await trio.lowlevel.checkpoint()

        run = Run(scene)
        run.interrupt(call, FOLLOW_UPS[frames_left % len(FOLLOW_UPS)])
        raised.append(run.raised is RecursionError)
    assert raised[0], "the call succeeded without any frames left"
    assert not raised[-1], "even the largest number of frames is too small for the call"
