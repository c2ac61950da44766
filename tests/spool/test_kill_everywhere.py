"""Programs with a spool on disk and a real server are killed at random moments: nothing that is committed is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spool.kill_everywhere import LIVES, main, run_round

_KILLS = 20


async def test_no_committed_span_is_lost_when_a_program_is_killed(tmp_path: Path) -> None:
    done = await run_round(tmp_path / "spool", 1)
    # One that leaves the batcher may end before it is killed.
    assert 0 < done.kills <= LIVES
    assert done.committed


@pytest.mark.long
def test_no_committed_span_is_lost_when_programs_are_killed_twenty_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", str(_KILLS), "--seed", "100"]) == 0
    assert "committed spans, all delivered" in capsys.readouterr().out
